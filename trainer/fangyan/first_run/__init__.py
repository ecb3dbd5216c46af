"""A user's first run: what a file of theirs is, and a recipe for it."""
