"""Conversations: a model learns the assistant's answers."""
