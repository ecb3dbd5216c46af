"""What tests and benchmarks of the kernels share; nothing here is needed to use them.

error_budget           how far a value or gradient may be from float64
offline                Triton kernels compiled for a GPU that is not here
cross_entropy_kernels  the kernels of ``linear_cross_entropy`` as a call compiles them
lora_kernels           the kernels of ``lora_linear`` as a call compiles them
routing                CPU tensors through the operators to the Triton kernels
launches               launches and compiled variants recorded, nothing launched
"""
