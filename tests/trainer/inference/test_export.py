"""What an export writes: transformers' own files in pieces, all of them or none."""

import json
import re
import shutil

import export_rank
import pytest
import torch
from fangyan.distributed.process_group import start_distributed
from fangyan.errors import RESUMING, UserError
from fangyan.inference.export import export
from fangyan.inference.shards import write_shards
from model_families import BY_NAME, FAMILIES, save
from safetensors.torch import load_file
from small_disk import fill, mounted
from tiny_runs import exported, workload
from torch import nn
from transformers import AutoConfig, AutoTokenizer
from transformers.core_model_loading import ConversionOps, WeightConverter

PAGE = 4096
# Some weights of the tiny models are larger.
SMALL = 4_000


@pytest.fixture(autouse=True)
def _one_rank():
    start_distributed()


def weights_in(folder):
    """Return each weight by its name, and the file that has it."""
    found = {path.name: load_file(path) for path in folder.glob("*.safetensors")}
    weights = {name: weight for file in found.values() for name, weight in file.items()}
    assert len(weights) == sum(map(len, found.values()))
    return weights, {name: file for file, content in found.items() for name in content}


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype, name
        assert torch.equal(left[name], right[name]), name


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_write_shards_writes_what_transformers_would(family, tmp_path):
    """Tied weights once, under the names of transformers' files, merged or divided as there."""
    save(family, tmp_path / "model")
    model = family.auto_model.from_pretrained(tmp_path / "model")
    model.save_pretrained(tmp_path / "theirs")
    expected, _ = weights_in(tmp_path / "theirs")
    for size in (1_000_000_000, SMALL):
        folder = tmp_path / f"ours-{size}"
        folder.mkdir()
        write_shards(folder, model, "", size)
        found, files = weights_in(folder)
        assert_equal(found, expected)
        assert ("model.safetensors" in files.values()) == (size > SMALL)
        if size == SMALL:
            index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
            assert index["weight_map"] == files
            assert index["metadata"]["total_parameters"] == model.num_parameters()
            assert index["metadata"]["total_size"] == sum(weight.nbytes for weight in found.values())
        for file in set(files.values()):
            sizes = [found[name].nbytes for name in found if files[name] == file]
            assert len(sizes) == 1 or sum(sizes) <= size


@pytest.mark.parametrize("name", ["Qwen 3", "GPT-NeoX", "T5"])
def test_write_shards_divides_as_transformers_does(name, tmp_path):
    model = save(BY_NAME[name], tmp_path / "model")
    model.save_pretrained(tmp_path / "theirs", max_shard_size=SMALL)
    (tmp_path / "ours").mkdir()
    write_shards(tmp_path / "ours", model, "", SMALL)
    for path in (tmp_path / "ours").iterdir():
        assert path.read_bytes() == (tmp_path / "theirs" / path.name).read_bytes()


class Exchange(ConversionOps):
    """Needs two weights for each that it returns."""

    supports_many_to_many = True

    def convert(self, weights, source_patterns, target_patterns, **_):
        first, second = (weights[pattern][0] for pattern in source_patterns)
        return {target_patterns[0]: second.clone(), target_patterns[1]: first.clone()}

    @property
    def reverse_op(self):
        return Exchange()


def test_write_shards_of_weights_that_are_only_converted_together(tmp_path):
    """Although each of the files' comes from one of the model's."""
    model = save(BY_NAME["BERT"], tmp_path / "model")
    names = [f"attention.self.{name}.weight" for name in ("query", "key")]
    model._weight_conversions = [WeightConverter([f"{name}_" for name in names], names, [Exchange()])]
    model.save_pretrained(tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    write_shards(tmp_path / "ours", model, "", SMALL)
    assert_equal(weights_in(tmp_path / "ours")[0], weights_in(tmp_path / "theirs")[0])
    assert "bert.encoder.layer.0.attention.self.query.weight_" in weights_in(tmp_path / "ours")[0]


def test_write_shards_of_weights_side_by_side(tmp_path):
    """As ZeRO 1 and 2 have them: views of one vector."""
    model = save(BY_NAME["BERT"], tmp_path / "model")
    vector = nn.utils.parameters_to_vector(model.parameters()).detach()
    nn.utils.vector_to_parameters(vector, model.parameters())
    (tmp_path / "ours").mkdir()
    write_shards(tmp_path / "ours", model, "")
    assert_equal(weights_in(tmp_path / "ours")[0], weights_in(tmp_path / "model")[0])


def files_in(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def parts(name, folder):
    """Return the arguments of an export of a tiny model."""
    model = save(BY_NAME[name], folder)
    return model, AutoTokenizer.from_pretrained(folder), {"task": "token_classification"}, "the card"


@pytest.mark.parametrize("size", [1_000_000_000, SMALL])
@pytest.mark.parametrize("name", ["BERT", "Qwen 3"])
def test_export_is_save_pretrained_with_more(name, size, tmp_path):
    model, tokenizer, inference, card = parts(name, tmp_path / "model")
    export(tmp_path / "ours", model, tokenizer, inference, card, shard_size=size)
    model.save_pretrained(tmp_path / "theirs", max_shard_size=size)
    tokenizer.save_pretrained(tmp_path / "theirs")
    assert files_in(tmp_path / "ours") == files_in(tmp_path / "theirs") | {"README.md": card.encode()}
    assert AutoConfig.from_pretrained(tmp_path / "ours").fangyan == inference


def test_export_replaces_an_earlier_one(tmp_path):
    """Whatever it was, and whatever a kill has left."""
    arguments = parts("BERT", tmp_path / "model")
    export(tmp_path / "ours", *arguments, shard_size=SMALL)
    (tmp_path / "ours.partial").mkdir()
    (tmp_path / "ours.partial" / "model-00001-of-00002.safetensors").write_bytes(b"half")
    (tmp_path / "ours-old.partial").mkdir()
    export(tmp_path / "ours", *arguments)
    assert sorted(files_in(tmp_path / "ours")) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "ours"]


def test_export_that_fails_leaves_the_earlier_one(tmp_path):
    """Of an error that is not the disk's: weights that transformers does not know to be tied."""
    model, *others = parts("BERT", tmp_path / "model")
    export(tmp_path / "ours", model, *others)
    before = files_in(tmp_path / "ours")
    layers = model.bert.encoder.layer
    layers[0].attention.self.key.weight = layers[1].attention.self.key.weight
    with pytest.raises(RuntimeError, match="shared tensors"):
        export(tmp_path / "ours", model, *others)
    assert files_in(tmp_path / "ours") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "ours"]


@pytest.mark.parametrize("is_adapter", [False, True])
def test_export_to_a_full_disk(is_adapter, tmp_path):
    """For each number of free pages until it is enough: a sentence, and nothing else."""
    if is_adapter:
        run = workload(BY_NAME["BERT"], tmp_path)
    arguments = parts("BERT", tmp_path / "model")
    sentences = []
    with mounted(tmp_path / "disk", 256 * PAGE) as disk:
        for pages in range(256):
            filler = fill(disk, leave=pages * PAGE)
            try:
                if is_adapter:
                    exported(run, disk / "model")
                else:
                    export(disk / "model", *arguments)
                break
            except UserError as error:
                sentences.append(str(error))
                assert not [path for path in disk.iterdir() if path != filler]
            finally:
                filler.unlink()
        size = sum(path.stat().st_size for path in (disk / "model").iterdir())
    assert len(sentences) > size / PAGE / 2
    pattern = (
        r"cannot be written \(No space left on device\); 0\.\d{3} GB are free on its disk; "
        f"the checkpoints are whole; after making room, {RESUMING} the run"
    )
    assert [sentence for sentence in sentences if not re.search(pattern, sentence)] == []
    shutil.rmtree(tmp_path / "model")


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 2), (3, 3)])
def test_export_within_its_bound(ranks, stage, tmp_path, server, free_port):
    """One shard on the first rank, and the largest weight beside it at ZeRO-3; nothing on others.

    Three ranks do not divide the weights.
    """
    port = free_port()
    processes = [
        server.Process(target=export_rank.measure, args=(rank, ranks, port, str(tmp_path), stage))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0] * ranks
    expected = {name: weight.detach() for name, weight in export_rank.model().named_parameters()}
    found, files = weights_in(tmp_path / "model")
    assert_equal(found, expected)
    assert len(set(files.values())) > 3
    peaks = [json.loads((tmp_path / str(rank)).read_text(encoding="ascii")) for rank in range(ranks)]
    largest = max(weight.nbytes for weight in found.values())
    slack = 10_000_000
    assert peaks[0] < export_rank.SHARD_SIZE + (largest if stage == 3 else 0) + slack
    assert max(peaks[1:], default=0) < slack
