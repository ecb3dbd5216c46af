"""Schemas of the optimizers' operators on the CPU; nothing is differentiated."""

import torch

# A step of an optimizer with 8-bit or 32-bit states over one tensor, in place: optim8bit/reference.py owns
# the meaning. Returns the number of elements that it skipped.
torch.library.define(
    "fangyan::optimizer_step_",
    "(str algorithm, Tensor(a!) parameter, Tensor gradient, Tensor(b!) state1, Tensor(c!)? state2,"
    " Tensor(d!)? absmax1, Tensor(e!)? absmax2, Tensor? qmap1, Tensor? qmap2, Tensor(f!)? copy, float lr,"
    " float beta1, float beta2, float beta3, float alpha, float eps, float weight_decay, int step,"
    " float gradient_scale=1.0) -> int",
)

# The sum of the squares of all elements, summed in double precision: for the norm of gradients.
torch.library.define("fangyan::sum_of_squares", "(Tensor[] tensors) -> float")
