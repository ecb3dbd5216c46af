"""``fangyan ui`` as a process, and a treebank that is learned in seconds."""

import re
import signal
import time
from contextlib import contextmanager
from pathlib import Path

SENTENCES = [
    "mun lean dáppe",
    "don leat doppe",
    "son boahtá odne",
    "mii leat dáppe odne",
    "soai leaba doppe ihttin",
]
TAGS = {"mun": "PRON", "don": "PRON", "son": "PRON", "mii": "PRON", "soai": "PRON"}
TAGS |= {"lean": "AUX", "leat": "AUX", "leaba": "AUX", "boahtá": "VERB"}


def treebank(count):
    """Sentences of CoNLL-U, all different by a number in them."""
    blocks = []
    for i in range(count):
        words = [*SENTENCES[i % len(SENTENCES)].split(), str(i)]
        tags = [TAGS.get(word, "NUM" if word.isdecimal() else "ADV") for word in words]
        rows = enumerate(zip(words, tags, strict=True), start=1)
        blocks.append("".join(f"{n}\t{word}\t_\t{tag}" + "\t_" * 6 + "\n" for n, (word, tag) in rows))
    return "\n".join(blocks)


class Page:
    """A running ``fangyan ui``: its process, and the address that it has printed."""

    def __init__(self, process, address):
        self.process, self.address = process, address
        self.port = int(re.search(r":(\d+)/", address)[1])
        self.token = address.partition("token=")[2]

    def kill(self):
        """End it as a power failure does."""
        self.process._processes[0].kill()
        self.process.communicate(timeout=30)


@contextmanager
def served(cli, port=0):
    """Run ``fangyan ui`` in the folder of a command line."""
    process = cli.start("ui", "--port", str(port))
    output, errors = map(Path, process._paths[0])
    deadline = time.monotonic() + 60
    while not (found := output.exists() and re.search(r"http://\S+\n", output.read_text(encoding="utf-8"))):
        assert process.poll() is None, errors.read_text(encoding="utf-8")
        assert time.monotonic() < deadline
        time.sleep(0.05)
    page = Page(process, found[0].strip())
    try:
        yield page
    finally:
        if process.poll() is None:
            process._processes[0].terminate()
            process.communicate(timeout=30)
            assert process._processes[0].exitcode in (0, -signal.SIGTERM)
