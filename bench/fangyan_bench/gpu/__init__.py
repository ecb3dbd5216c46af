"""A run on a GPU that is rented for minutes: its parts, its budget, and what it leaves behind."""
