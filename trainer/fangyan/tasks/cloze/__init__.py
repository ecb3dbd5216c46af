"""Classes of texts, as words that a masked language model fills in."""
