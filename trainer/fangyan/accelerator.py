"""To be imported before DeepSpeed, which guesses its device then, and warns of a guess that is no GPU."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
