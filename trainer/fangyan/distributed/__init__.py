"""Ranks and nodes: how a run's processes find each other, agree, watch each other and stop together."""
