"""What the benchmarks in ``bench/`` are made of."""

import gc

# A garbage collector that wakes often took a third of the seconds in which each process imports; and where it
# wakes in the midst of a call, it is noise.
gc.set_threshold(5_000)
