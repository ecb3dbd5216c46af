"""Training steps that take their time, for tests of what happens beside them."""

import time
from pathlib import Path

from fangyan.training.trainer import Trainer


def hang():
    """Let the fourth step of a run in this process hang; a file says when."""

    def wait(step):
        if step == 3:
            Path("hangs").touch()
            time.sleep(300)

    _before_each_step(wait)


def delay():
    """Let each step take a quarter of a second at least."""
    _before_each_step(lambda _: time.sleep(0.25))


def _before_each_step(function):
    train_step = Trainer.train_step

    def delayed(trainer, indices, step):
        function(step)
        return train_step(trainer, indices, step)

    Trainer.train_step = delayed
