"""From a recipe to a run folder: the engine, its checkpoints, and the loop around it."""
