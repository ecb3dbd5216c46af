"""Where the command line writes what it has predicted."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fangyan.errors import UserError, disk_error
from fangyan.progress import track
from fangyan.terminal import printable


def write_pieces(pieces: Iterable[str], output: Path | None, what: str = "") -> None:
    """Write pieces as they come to standard output, or to a file that is there once it is whole.

    Args:
        pieces: of text.
        output: the file, or None.
        what: is done meanwhile, for a bar of progress where a terminal does not show the pieces themselves.
    """
    from fangyan.data.compression import open_file
    from fangyan.files import REPEAT

    if what and not (output is None and sys.stdout.isatty()):
        pieces = track(pieces, what)
    if output is None:
        show = printable if sys.stdout.isatty() else str  # a file or a program gets what was predicted
        for piece in pieces:
            print(show(piece), end="", flush=True)
        return
    if output.is_dir():
        raise UserError(f"--output {output}: a folder, expected a file")
    # A device or a pipe takes what comes, as /dev/stdout does; of a link, what it leads to is replaced.
    is_stream = output.exists() and not output.is_file()
    target = output if is_stream else output.resolve()
    partial = target if is_stream else target.with_name(f".partial-{target.name}")
    try:
        with open_file(partial, "wt", encoding="utf-8") as file:
            file.writelines(pieces)
        if not is_stream:
            partial.replace(target)
    except OSError as error:
        if error.filename is not None:  # it could not be opened, or another could not be read
            raise
        raise disk_error(output, error, REPEAT) from error
    finally:
        if not is_stream:
            partial.unlink(missing_ok=True)


def user_lines() -> Iterator[str]:
    """Yield lines as a user types them, after a prompt where there is a terminal."""
    from fangyan.data.example import read_stream

    if not sys.stdin.isatty():
        yield from (line for _, line in read_stream(sys.stdin.buffer, "standard input"))
        return
    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return


def predictions(
    run: Path,
    texts: Iterable[str],
    as_json: bool,
    *,
    interactive: bool,
    options: dict[str, Any],
    source: str | None,
) -> Iterator[str]:
    """Yield what is predicted for texts, in pieces as they come."""
    from fangyan.inference.load import load

    for prediction in load(run, source).stream(texts, interactive=interactive, options=options):
        if as_json:
            yield json.dumps(prediction.record(), ensure_ascii=False)
        else:
            yield from prediction.pieces()
        yield "\n"


def lines_of(path: Path | None) -> Iterable[str]:
    """Return the lines of a file, or of standard input (``-``)."""
    from fangyan.data.example import read_lines, read_stream

    assert path is not None
    numbered = read_stream(sys.stdin.buffer, "standard input") if path == Path("-") else read_lines(path)
    return (line for _, line in numbered)


def given(**options: Any) -> dict[str, Any]:
    """Return the options that the user has given."""
    return {name: value for name, value in options.items() if value is not None}
