"""Tags and classes by a causal model that was not trained for them: it scores words after a prompt."""
