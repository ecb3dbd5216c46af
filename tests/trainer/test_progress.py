"""Bars of progress: on a terminal, in a log file, in a notebook, and where there are none."""

import io
import os
import re
import subprocess
import sys
import threading
import time

import pytest
from fangyan import progress as module
from fangyan.progress import Bar, progress, track
from fangyan.terminal import OUTPUT, Terminal, duration, parts, print_results, say, warn

# Two kinds of work, one in the other, with a line of each stream between.
WORK = """
import sys, time
from fangyan import progress
from fangyan.terminal import print_results, say

progress._PATIENCE = 0.1
for i in progress.track(range(8), "counting"):
    time.sleep(0.05)
    if i == 4:
        say("half")
        print_results("result")
        with progress.progress("loading [b]x[/b]"):
            time.sleep(0.4)
assert not [thread for thread in __import__("threading").enumerate() if thread.name.startswith("Timer")]
"""


def on_a_terminal(code):
    """Return what a program writes to a pipe, and to a terminal of 80 columns that is its standard error."""
    ours, theirs = os.openpty()
    command = [sys.executable, "-c", code]
    environment = os.environ | {"COLUMNS": "80", "TERM": "xterm", "NO_COLOR": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                piece = os.read(ours, 4096)
            except OSError:  # the terminal has no other end any more
                break
            if not piece:
                break
            shown += piece
        out = process.stdout.read().decode()
    os.close(ours)
    assert process.returncode == 0, shown.decode()
    return out, shown.decode()


def screen(shown):
    """Return the lines that are left on a terminal."""
    rows, row = [""], 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", shown):
        if part == "\n":
            row += 1
            rows += [""] * (row == len(rows))
        elif part == "\x1b[2K":
            rows[row] = ""
        elif part == "\x1b[1A":
            row -= 1
        elif part[0] not in "\x1b\r":
            rows[row] += part
    return [line for line in rows if line.strip()]


def test_bars_on_a_terminal_give_way_and_leave_nothing():
    out, shown = on_a_terminal(WORK)
    assert out == "result\n"
    assert screen(shown) == ["fangyan: half"]
    assert re.search(r"counting .* \d of 8, \d\.\d s left", shown)
    assert "loading [b]x[/b]" in shown
    assert "\x1b[?25l" not in shown  # a cursor that is hidden stays so where the process is killed


def test_no_bar_on_a_terminal_where_work_is_quick_quiet_or_of_another_rank():
    quick = 'from fangyan.progress import track\nlist(track(range(9), "counting"))'
    quiet = "from fangyan.terminal import make_quiet\nmake_quiet()" + WORK
    other = "import os\nos.environ['RANK'] = '1'" + WORK
    assert on_a_terminal(quick)[1] == ""
    assert on_a_terminal(quiet) == ("result\n", "")
    assert screen(on_a_terminal(other)[1]) == ["fangyan: half"]


def test_a_log_file_has_a_line_now_and_then(monkeypatch, capfd):
    monkeypatch.setattr(module, "_LINE_SECONDS", 0.2)
    with progress("counting", 100) as bar:
        bar.began -= 10.0
        bar.status = "loss 1.5"
        for _ in range(100):
            bar.show()
            bar.advance()
            if bar.done % 25 == 0:
                bar.began -= 0.2  # as if so much time had passed
    lines = capfd.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 4
    assert re.fullmatch(r"counting: 10 of 100, loss 1\.5, 1 min 3\d s left \(10%\)", lines[0])


def test_a_log_file_has_no_line_of_what_is_quick(capfd):
    assert list(track(range(1000), "counting")) == list(range(1000))
    with progress("loading"):
        pass
    assert capfd.readouterr() == ("", "")


def test_a_bar_is_looked_at_ten_times_per_second_and_leaves_no_thread(monkeypatch):
    class Screen(module._Nowhere):
        interval, shown = 0.1, 0

        def show(self, bar):
            self.shown += bar.done > 0

    screen, begin = Screen(), time.monotonic()
    monkeypatch.setattr(module, "_screen", lambda: screen)
    monkeypatch.setattr(module, "_PATIENCE", 0.1)
    with progress("counting") as bar:
        while time.monotonic() - begin < 0.5:
            bar.advance()
    assert bar.done > 1000
    assert 1 <= screen.shown <= 6
    assert not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]


def test_a_bar_of_another_thread_is_not_shown():
    screens = []
    thread = threading.Thread(target=lambda: screens.append(Bar("serving")._screen))
    thread.start()
    thread.join()
    assert isinstance(screens[0], module._Nowhere)


NOTEBOOK = """
import time
from fangyan import progress
from fangyan.terminal import Terminal, say

progress._PATIENCE = 0.0
progress._Notebook.interval = 0.0
bar = progress.Bar("counting", 2000)
for _ in range(1000):
    bar.advance()
Terminal(file=open("table.txt", "w"), width=20).print("in a file")
"""


def test_a_notebook_has_one_output_that_is_replaced(tmp_path):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    cells = [nbformat.v4.new_code_cell(code) for code in (NOTEBOOK, "bar.close(); say('done')")]
    client = nbclient.NotebookClient(
        nbformat.v4.new_notebook(cells=cells), resources={"metadata": {"path": str(tmp_path)}}
    )
    shown = []

    def keep(cell_index, **_):
        shown.append([dict(each["data"]) for each in client.nb.cells[cell_index]["outputs"]])

    client.on_cell_executed = keep
    client.execute()
    (output,) = shown[0]
    assert re.fullmatch(r"counting: 1,000 of 2,000, .* left", output["text/plain"])
    assert '<progress max="2000" value="1000">' in output["text/html"]
    # Taken away by the next cell, which says something.
    assert [each["data"]["text/plain"] for each in client.nb.cells[0]["outputs"]] == [""]
    assert "fangyan: done" in str(shown[1])
    assert (tmp_path / "table.txt").read_text(encoding="utf-8") == "in a file\n"


def test_results_of_parts_are_said_on_the_way_and_warnings_once(capfd, monkeypatch):
    with parts():
        print_results("part")
        warn("twice")
        with parts():
            warn("twice")
        monkeypatch.setattr(OUTPUT, "quiet", True)
        print_results("part")
        say("nothing")
    print_results("whole")
    warn("loud")
    assert capfd.readouterr() == ("whole\n", "part\nfangyan: twice\nfangyan: loud\n")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 0 min"),
        (90_000_000, "25,000 h 0 min"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_a_long_title_is_one_line():
    from rich.table import Table

    stream = io.StringIO()
    table = Table("a", title="a title that is longer than its table")
    table.add_row("b")
    Terminal(file=stream, width=60).print(table)
    assert stream.getvalue().splitlines()[0].strip() == table.title
