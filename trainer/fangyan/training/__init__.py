"""From a recipe to a run folder: the engine, its checkpoints, and the loop around it."""

import fangyan.device  # noqa: F401  (before DeepSpeed, which guesses its device where it is imported)
