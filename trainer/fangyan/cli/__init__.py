"""The command line. Each command imports what it needs, so that ``--help`` is quick.

A command is a function in a module of this folder, and a line in :data:`COMMANDS`.
"""

from __future__ import annotations

import errno
import gc
import os
import traceback
from collections.abc import Callable
from typing import Annotated

import typer

from fangyan.cli import analysis, first_run, machine, recipes, runs, service
from fangyan.cli.end import end, fail, leave
from fangyan.cli.options import Command, QuietOption, TrainCommand
from fangyan.errors import Stopped, UserError
from fangyan.terminal import arguments_error, clear_bar, use_utf8

app = typer.Typer(
    help="Adapts language models to dialects and local languages.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command(cls=Command)(first_run.init)
app.command(cls=TrainCommand)(recipes.train)
# In the order of the help.
COMMANDS: list[Callable[..., None]] = [
    recipes.tune,
    recipes.check,
    recipes.estimate_memory,
    recipes.prompt,
    first_run.recipes,
    runs.evaluate,
    analysis.compare,
    analysis.probe,
    analysis.report,
    runs.predict,
    runs.select,
    runs.chat,
    runs.export,
    service.serve,
    service.ui,
    machine.env,
]
for _command in COMMANDS:
    app.command(_command.__name__.replace("_", "-"), cls=Command)(_command)


@app.callback()
def _launched(
    _local_rank: Annotated[int, typer.Option("--local_rank", hidden=True)] = 0,
    with_input: Annotated[bool, typer.Option("--end-with-input", hidden=True)] = False,
    _quiet: QuietOption = False,
) -> None:
    """Take the options that launchers pass to every rank.

    The first is DeepSpeed's, and LOCAL_RANK says the same. The second is of ``train --hostfile``.
    """
    if with_input:
        from fangyan.distributed.front import end_with_input

        end_with_input()


# Errors that need not name a file to be the machine's.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


def main() -> None:
    """Run the ``fangyan`` command: a user's mistake is one sentence and exit code 2."""
    # Imports make a million objects that stay: a garbage collector that wakes often took 0.6 of the 4.5
    # seconds of `fangyan predict RUN TEXT`.
    gc.set_threshold(5_000)
    use_utf8()
    if mistake := arguments_error():
        fail(mistake)
    try:
        app()
    except Stopped as error:  # which the run's log has said
        end(error.exit_code)
    except UserError as error:
        # What every rank meets is said once per machine.
        silent = error.on_every_rank and os.environ.get("LOCAL_RANK", "0") != "0"
        fail(str(error), silent, error.exit_code)
    except BrokenPipeError:  # whoever read the output has gone
        os._exit(0)
    except OSError as error:
        if error.filename is None and error.errno not in _DISK:
            raise
        name = error.filename or "the disk"
        fail(f"{os.fsdecode(name) if isinstance(name, bytes) else name}: {error.strerror or error}")
    except Exception as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, without importing torch for --help
            clear_bar()
            traceback.print_exc()
            end(1, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        fail(
            "train.batch_tokens: the GPU's memory does not hold a step; expected fewer tokens, or more "
            f"train.gradient_accumulation_steps ({str(error).splitlines()[0]})"
        )


def command() -> None:
    """Run the ``fangyan`` command in a process that is its own."""
    try:
        main()
    except SystemExit as ended:
        leave(ended.code if isinstance(ended.code, int) else int(ended.code is not None))
    leave(0)
