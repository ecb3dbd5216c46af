"""From files to batches: formats, splits, tokenization, packing."""
