"""A class, several, or a number for a whole text or a pair of texts."""
