"""Characters of data that are commands of a terminal are shown, not sent."""

import io
import os

from fangyan.cli.output import write_pieces
from fangyan.terminal import Terminal, printable
from rich.table import Table

TAG = "B-\x1b[31m\x9b2J\rn\u009d"


def test_printable_shows_control_characters():
    assert printable(TAG) == "B-\\x1b[31m\\x9b2J\\x0dn\\x9d"
    assert printable("食飯\t/ v\n") == "食飯\t/ v\n"


def test_tables_and_lines_of_a_terminal():
    stream = io.StringIO()
    terminal = Terminal(file=stream, width=60)
    table = Table("tag", title=TAG)
    table.add_row(TAG)
    terminal.print(table)
    terminal.print(TAG, markup=False)
    written = stream.getvalue()
    assert written.count("\\x1b[31m\\x9b2J") == 3
    assert not any(character in written for character in "\x1b\x9b\r")


def test_predictions_are_escaped_for_a_terminal_alone(monkeypatch, capfd):
    read_end, write_end = os.openpty()
    with os.fdopen(write_end, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr("sys.stdout", terminal)
        write_pieces([TAG, "\n"], None)
    assert os.read(read_end, 100).decode().rstrip() == printable(TAG)
    os.close(read_end)
    monkeypatch.undo()
    write_pieces([TAG, "\n"], None)
    assert capfd.readouterr().out == TAG + "\n"
