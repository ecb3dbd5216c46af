"""A trained model in use: text in; tags, or more text, out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from transformers import TextIteratorStreamer

from fangyan.data import Example, load_parts, read_files
from fangyan.data.encode import Encoder
from fangyan.errors import UserError
from fangyan.evaluate import Reader, Tagger
from fangyan.models.exported import load_exported
from fangyan.models.packed import PackedModel
from fangyan.recipe import Recipe, load_recipe
from fangyan.tasks.language_modelling import LanguageModelling
from fangyan.tasks.scores import Scores, word_spans
from fangyan.tasks.token_tagging import TokenTagging


@dataclass(frozen=True, slots=True)
class Prediction:
    """A tagged sentence.

    Attributes:
        tokens: the characters or words that were tagged.
        tags: a tag a token.
        words: for a segmenter, the words found and their tags; else the tokens and theirs.
    """

    tokens: tuple[str, ...]
    tags: tuple[str, ...]
    words: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return " ".join(f"{word}/{tag}" for word, tag in self.words)


class Predictor:
    """A run's model, ready to tag; made by :func:`load`."""

    def __init__(self, model: Any, tokenizer: Any, notes: dict[str, Any], recipe: Recipe | None):
        labels = [model.config.id2label[i] for i in range(model.config.num_labels)]
        device = _device()
        self._recipe = recipe
        self._characters = notes["tokens"] == "characters"
        packed = PackedModel(model, len(labels), notes["layout"]).to(device).eval()
        self._tagger = Tagger(
            TokenTagging(labels, notes["scheme"]),
            Encoder(tokenizer, notes["max_length"]),
            lambda batch: packed(batch, with_loss=False),
            device,
            packed.row_width,
        )

    def predict(self, texts: Iterable[str]) -> list[Prediction]:
        """Tags each text: its characters, or its words between white space."""
        return list(self.stream(texts))

    def stream(self, texts: Iterable[str], chunk: int = 256) -> Iterator[Prediction]:
        """As :meth:`predict`, ``chunk`` texts at a time, for input of any length; order is kept."""
        source = iter(texts)
        while lines := list(islice(source, chunk)):
            sentences = [self._split(line) for line in lines]
            for tokens, tags in zip(sentences, self._tagger.tag(sentences), strict=True):
                yield Prediction(tokens, tags, self._words(tokens, tags))

    def evaluate(self, paths: list[str] | None = None) -> Scores:
        """Scores in percent on files of the run's format, or on its own test (else dev) part."""
        examples = _examples(self._recipe, paths)
        for example in examples:
            self._tagger.task.classes(example)
        return self._tagger.score(examples)

    def _split(self, text: str) -> tuple[str, ...]:
        words = text.split()
        return tuple("".join(words)) if self._characters else tuple(words)

    def _words(self, tokens: tuple[str, ...], tags: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
        if self._tagger.task.scheme != "words":
            return tuple(zip(tokens, tags, strict=True))
        joint = "" if self._characters else " "
        return tuple((joint.join(tokens[start:end]), tag) for start, end, tag in word_spans(tags))


class Generator:
    """A run's language model, ready to write; made by :func:`load`."""

    def __init__(self, model: Any, tokenizer: Any, notes: dict[str, Any], recipe: Recipe | None):
        self._recipe = recipe
        self._tokenizer = tokenizer
        classes = model.get_output_embeddings().out_features
        packed = PackedModel(model, classes, notes["layout"]).to(_device()).eval()
        self._model = model
        encoder = Encoder(tokenizer, notes["max_length"])
        self._reader = Reader(LanguageModelling(), encoder, packed, _device(), packed.row_width)

    def stream(self, text: str, max_new_tokens: int = 64, temperature: float = 0.0) -> Iterator[str]:
        """Goes on from a text, a piece at a time.

        Args:
            max_new_tokens: most sub-words; the model may end before.
            temperature: 0 takes the likeliest sub-word each time; more draws from all of them, by
                PyTorch's generator.
        """
        tokenizer = self._tokenizer
        first = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        ids = torch.tensor([first + tokenizer(text, add_special_tokens=False)["input_ids"]], device=_device())
        if ids.numel() == 0:
            raise UserError("predict: the text is empty and the model has no token to begin with")
        sampling = {"temperature": temperature, "top_k": 0} if temperature > 0.0 else {}
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        thread = Thread(
            target=self._model.generate,
            kwargs={
                "input_ids": ids,
                "attention_mask": torch.ones_like(ids),
                "max_new_tokens": max_new_tokens,
                "do_sample": temperature > 0.0,
                "pad_token_id": tokenizer.pad_token_id,
                "eos_token_id": tokenizer.eos_token_id,
                "streamer": streamer,
                **sampling,
            },
        )
        thread.start()
        yield from streamer
        thread.join()

    def predict(self, texts: Iterable[str], **options: Any) -> list[str]:
        """What follows each text; options are those of :meth:`stream`."""
        return ["".join(self.stream(text, **options)) for text in texts]

    def evaluate(self, paths: list[str] | None = None) -> Scores:
        """Perplexities on text files, or on the run's own test (else dev) part."""
        return self._reader.score(_examples(self._recipe, paths))


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _examples(recipe: Recipe | None, paths: list[str] | None) -> list[Example]:
    if recipe is None:
        raise UserError("evaluate needs a run folder with its recipe.yaml, found a model alone")
    if paths:
        examples = read_files(paths, recipe.data)
    else:
        parts = load_parts(recipe.data, recipe.seed)
        examples = parts.get("test", parts["dev"])
    if not examples:
        raise UserError(f"{', '.join(paths or [])}: no sentence in it, expected at least one")
    return examples


def load(run: str | Path) -> Predictor | Generator:
    """Loads the model of a run folder, or an exported model folder.

    Raises:
        UserError: if there is no exported model.
    """
    folder = Path(run)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run")
    path = folder / "recipe.yaml"
    recipe = load_recipe(path) if path.is_file() else None
    model, tokenizer, notes = load_exported(folder if recipe is None else folder / "model")
    kind = Generator if notes["task"] == "language_modelling" else Predictor
    return kind(model, tokenizer, notes, recipe)


def merge(run: str | Path, output: str | Path) -> None:
    """Writes a run's model as plain transformers files, its adapter, if it has one, merged into its weights.

    Raises:
        UserError: if the adapter is no change of the weights, or ``output`` exists.
    """
    folder, target = Path(run), Path(output)
    if target.exists():
        raise UserError(f"{target}: it exists, expected a new folder")
    source = folder / "model" if (folder / "recipe.yaml").is_file() else folder
    model, tokenizer, _ = load_exported(source, mergeable=True)
    if hasattr(model, "merge_and_unload"):
        if model.active_peft_config.is_prompt_learning:
            raise UserError(f"{source}: prompts cannot be merged into the weights, expected another adapter")
        model = model.merge_and_unload()
    partial = target.with_name(target.name + ".partial")
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(target)
