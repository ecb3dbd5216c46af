"""What the benchmarks in ``bench/`` are made of."""

import gc

# A garbage collector that wakes often goes through all that each process imports again and again; and where
# it wakes in the midst of a call, it is noise.
gc.set_threshold(5_000)
