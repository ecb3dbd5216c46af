"""Data larger than memory: the same examples, sequences and splits as in memory, from files."""

import json
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from itertools import chain

import pytest
from fangyan.data import store, token_store
from fangyan.data.batching import shuffled_batches
from fangyan.data.example import Example
from fangyan.data.formats import parse_data
from fangyan.data.store import ExampleFile, Subset, keep_examples
from fangyan.data.token_store import TokenStore, to_arrays, tokenize_all
from fangyan.data.tokenization import TokenizedSequence, WordAlignment
from fangyan.errors import UserError


def examples(count):
    """Examples of every kind of field, some of one group."""
    for i in range(count):
        tokens = tuple(f"字{i}\udcff\n" * (i % 3 + 1))
        tagged = {"tokens": tokens, "tags": ("n",) * len(tokens), "spaces": (True,) * len(tokens)}
        yield Example(
            tagged if i % 2 else {"text": f"第{i}句\u2028"}, f"a.txt:{i}", f"第{i}句\u2028" if i % 4 else "g"
        )


def tokenize(chosen):
    """Two sequences of each example, of different lengths; words where it has any."""
    found = []
    for i, example in enumerate(chosen):
        numbers = [ord(character) for character in example.source]
        alignment = WordAlignment([1, 2], numbers[-1], (0, 2), 3)
        found += [TokenizedSequence(numbers, [*numbers[1:], -100], i, alignment) for _ in range(2)]
    return found


def test_keep_examples_in_a_file(tmp_path, monkeypatch):
    everything = list(examples(20))
    assert keep_examples(iter(everything), tmp_path / "cache") == everything
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(store, "IN_MEMORY", 2000)
    kept = keep_examples(iter(everything), tmp_path / "cache")
    assert isinstance(kept, ExampleFile)
    assert list(kept) == everything
    assert kept[-1] == everything[-1]
    assert kept[3:5] == everything[3:5]
    assert list(Subset(kept, kept.groups.argsort())) == [everything[i] for i in kept.groups.argsort()]
    with pytest.raises(IndexError):
        kept[20]
    # Whatever ends the process, nothing stays.
    assert list((tmp_path / "cache").iterdir()) == []


def test_keep_examples_where_nothing_can_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "IN_MEMORY", 0)
    (tmp_path / "cache").write_text("a file", encoding="utf-8")
    with pytest.raises(
        UserError, match="data.cache_dir: .*cache cannot be written .*, expected a folder with room"
    ):
        keep_examples(examples(3), tmp_path / "cache")


def test_load_fractions_of_a_file(tmp_path, monkeypatch):
    """Groups stay whole, nothing is lost, and the order is that of the file."""
    text = "".join(f"第{i % 400}句\n" for i in range(1000))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    content = {"format": "text", "train": str(tmp_path / "a.txt"), "dev": 0.1, "test": 0.2}
    data = parse_data(content | {"cache_dir": str(tmp_path / "cache")}, "test")
    in_memory = data.load(seed=0)
    monkeypatch.setattr(store, "IN_MEMORY", 1000)
    splits = data.load(seed=0)
    texts = {name: [example.fields["text"] for example in split] for name, split in splits.items()}
    assert sorted(chain(*texts.values())) == sorted(text.split())
    for a, b in (("train", "dev"), ("train", "test"), ("dev", "test")):
        assert not set(texts[a]) & set(texts[b])
    for name, split in splits.items():
        assert isinstance(split, Subset)
        assert len(split) == pytest.approx(len(in_memory[name]), abs=3)
        lines = [int(example.source.rpartition(":")[2]) for example in split]
        assert lines == sorted(lines)
    assert [list(split) for split in data.load(seed=0).values()] == [list(split) for split in splits.values()]
    assert list(data.load(seed=1)["dev"]) != list(splits["dev"])


def test_token_store_returns_what_it_was_made_of():
    sequences = tokenize(list(examples(5)))
    kept = TokenStore(to_arrays(sequences))
    assert list(kept) == sequences
    assert kept[2:4] == sequences[2:4]
    assert kept.lengths.tolist() == [len(sequence.input_ids) for sequence in sequences]
    assert kept.num_valid.tolist() == [len(sequence.input_ids) - 1 for sequence in sequences]
    assert len(TokenStore(to_arrays([]))) == 0


@pytest.fixture
def in_file(tmp_path, monkeypatch):
    monkeypatch.setattr(token_store, "_CHUNK", 7)
    return ExampleFile(examples(40), tmp_path / "cache")


def test_tokenize_all_by_processes_and_from_the_cache(tmp_path, in_file):
    cache = tmp_path / "cache"
    expected = tokenize(list(in_file))
    assert list(tokenize_all(tokenize, in_file, "how", cache)) == expected
    (folder,) = cache.glob("tokenized-*[0-9a-f]")
    written = folder.stat().st_mtime_ns

    def only_the_sample(chosen):
        assert len(chosen) <= 100
        assert os.getpid() == parent
        return tokenize(chosen)

    parent = os.getpid()
    again = ExampleFile(examples(40), cache)
    found = tokenize_all(only_the_sample, again, "how", cache)
    assert list(found) == expected
    assert folder.stat().st_mtime_ns == written
    # Batches follow from lengths alone, wherever they are.
    lengths = [len(sequence.input_ids) for sequence in expected]
    assert list(shuffled_batches(found.lengths, 50, 3, 1)) == list(shuffled_batches(lengths, 50, 3, 1))


@pytest.mark.parametrize("change", ["examples", "how", "rules"])
def test_tokenize_all_finds_no_other_result(tmp_path, in_file, change):
    cache = tmp_path / "cache"
    tokenize_all(tokenize, in_file, "how", cache)
    changed = Subset(in_file, in_file.groups.argsort()) if change == "examples" else in_file

    def other_rules(chosen):
        return tokenize(chosen)[::2]

    rules = other_rules if change == "rules" else tokenize
    found = tokenize_all(rules, changed, "another" if change == "how" else "how", cache)
    assert list(found) == rules(list(changed))
    assert len(list(cache.glob("tokenized-*[0-9a-f]"))) == 2


def test_tokenize_all_after_a_kill(tmp_path, in_file):
    """Neither the half-written folder nor the lock of a killed process is in the way."""
    cache = tmp_path / "cache"

    def hang(chosen):
        if len(chosen) <= 7:
            (tmp_path / "hangs").touch()
            time.sleep(60)
        return tokenize(chosen)

    process = multiprocessing.get_context("fork").Process(
        target=tokenize_all, args=(hang, in_file, "how", cache)
    )
    process.start()
    deadline = time.monotonic() + 20
    while not (tmp_path / "hangs").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert list(cache.glob("*.partial"))
    assert list(tokenize_all(tokenize, in_file, "how", cache)) == tokenize(list(in_file))
    assert not list(cache.glob("*.partial"))


def test_tokenize_all_says_mistakes_of_any_process(tmp_path, in_file):
    def refuse(chosen):
        if len(chosen) == 5:  # the last chunk
            raise UserError(f"{chosen[0].source}: wrong")
        return tokenize(chosen)

    with pytest.raises(UserError, match="a.txt:35: wrong"):
        tokenize_all(refuse, in_file, "how", tmp_path / "cache")


def test_arrays_json_describes_the_files(tmp_path, in_file):
    tokenize_all(tokenize, in_file, "how", tmp_path / "cache")
    (folder,) = (tmp_path / "cache").glob("tokenized-*[0-9a-f]")
    description = json.loads((folder / "arrays.json").read_text(encoding="utf-8"))
    sizes = {name: array["length"] * int(array["dtype"][2:]) for name, array in description.items()}
    assert sizes == {path.name: path.stat().st_size for path in folder.iterdir() if path.suffix != ".json"}


@pytest.mark.parametrize("empty", [20, 40])
def test_tokenize_all_where_whole_chunks_make_no_sequence(tmp_path, in_file, empty):
    """Chunks without a sequence do not know which arrays others have."""

    def some(chosen):
        numbers = [int(example.source.partition(":")[2]) for example in chosen]
        found = [sequence for sequence in tokenize(chosen) if numbers[sequence.example] >= empty]
        return [replace(sequence, segments=[1] * len(sequence.input_ids)) for sequence in found]

    expected = [
        replace(sequence, example=sequence.example + start)
        for start in range(0, 40, 7)
        for sequence in some(in_file[start : start + 7])
    ]
    assert list(tokenize_all(some, in_file, str(empty), tmp_path / "cache")) == expected
    assert bool(expected) == (empty < 40)
