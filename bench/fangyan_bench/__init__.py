"""What the benchmarks in ``bench/`` are made of."""
