"""A run on a GPU that is there for minutes: its parts, its budget, and what it leaves behind."""
