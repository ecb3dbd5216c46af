"""Raw text for encoders: the words that are hidden in it."""
