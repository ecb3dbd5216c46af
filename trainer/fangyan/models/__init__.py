"""Transformers models: loading, packed batches, a head that computes its loss."""
