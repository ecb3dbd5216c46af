"""The next sub-word of raw text: continued pre-training of a causal model, and generation."""
