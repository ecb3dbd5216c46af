# The C++ extension. It exports nothing to Python: importing it registers the CPU kernels of the
# operators that ops.py declares.
