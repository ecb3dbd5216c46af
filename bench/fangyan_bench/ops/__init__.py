"""The ops that the suite measures, a file each."""
