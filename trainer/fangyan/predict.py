"""A trained model in use: text in, tags out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForTokenClassification, AutoTokenizer

from fangyan.data import load_parts, read_files
from fangyan.data.encode import Encoder
from fangyan.errors import UserError
from fangyan.evaluate import Tagger
from fangyan.models.packed import PackedModel
from fangyan.recipe import Recipe, load_recipe
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

    def __init__(self, folder: Path, recipe: Recipe | None):
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder}: no exported model in it, expected a finished run or its model folder")
        try:
            model = AutoModelForTokenClassification.from_pretrained(folder)
            tokenizer = AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(f"{folder}: cannot be loaded: {' '.join(str(error).split())[:300]}") from None
        extra = getattr(model.config, "fangyan", None)
        if extra is None:
            raise UserError(
                f"{folder}/config.json: no field 'fangyan', expected a model that fangyan exported"
            )
        labels = [model.config.id2label[i] for i in range(model.config.num_labels)]
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._recipe = recipe
        self._characters = extra["tokens"] == "characters"
        packed = PackedModel(model, len(labels), extra["layout"]).to(device).eval()
        self._tagger = Tagger(
            TokenTagging(labels, extra["scheme"]),
            Encoder(tokenizer, extra["max_length"]),
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
        if self._recipe is None:
            raise UserError("evaluate needs a run folder with its recipe.yaml, found a model alone")
        if paths:
            examples = read_files(paths, self._recipe.data)
        else:
            parts = load_parts(self._recipe.data, self._recipe.seed)
            examples = parts.get("test", parts["dev"])
        if not examples:
            raise UserError(f"{', '.join(paths or [])}: no sentence in it, expected at least one")
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


def load(run: str | Path) -> Predictor:
    """Loads the model of a run folder, or an exported model folder.

    Raises:
        UserError: if there is no exported model.
    """
    folder = Path(run)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run")
    recipe = folder / "recipe.yaml"
    if recipe.is_file():
        return Predictor(folder / "model", load_recipe(recipe))
    return Predictor(folder, None)
