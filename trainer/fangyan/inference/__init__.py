"""Trained models: written for others to load, and loaded to use."""
