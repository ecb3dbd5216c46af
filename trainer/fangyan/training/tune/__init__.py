"""Search of a recipe's fields for the best dev metric."""
