"""Scores of a prompted model on a recipe's data, beside those of the most frequent label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from fangyan.config import short
from fangyan.data.example import Example
from fangyan.data.tokenization import Tokenizer
from fangyan.device import device
from fangyan.errors import UserError
from fangyan.inference.load import load_run
from fangyan.models.structure import looks_ahead, max_length
from fangyan.prompting.scoring import LabelWords, WordScorer, calibrated, normalized
from fangyan.prompting.template import Template, draw_shots
from fangyan.recipe import Recipe
from fangyan.tasks.task import Metrics, Unit
from fangyan.yaml_text import parse_yaml, yaml_error

# Between examples that are shown.
_BETWEEN = "\n\n"


@dataclass(frozen=True, slots=True)
class PromptScores:
    """Metrics of the same examples.

    Attributes:
        split: that they are of.
        examples: how many.
        shots: how many units are shown in a prompt.
        floor: of a guess; see :meth:`Task.floor`.
        plain: of the most likely label word.
        calibrated: of the most likely after contextual calibration.
        prompt: the last one, for a look at it.
    """

    split: str
    examples: int
    shots: int
    floor: Metrics
    plain: Metrics
    calibrated: Metrics
    prompt: str


def evaluate_prompts(
    recipe: Recipe,
    shots: int = 0,
    examples: int = 100,
    words: Mapping[str, str] | None = None,
    template: str | None = None,
    instruction: str = "",
) -> PromptScores:
    """Score a causal model that is shown some examples, and never trained, on a recipe's test or dev split.

    Args:
        recipe: says data, task, seed and model, whose ``path`` may be a run of a language model.
        shots: labelled units of train to show: texts, or tokens in their sentences; as many of each label as
            can be.
        examples: most examples to score, drawn from the split.
        words: what stands for a label, by default itself.
        template: see :class:`Template`.
        instruction: what comes before everything.

    Raises:
        UserError: for a task without one label per text or token, a model that is not causal, or a prompt
            that is longer than it takes.
    """
    splits = recipe.data.load(recipe.seed)
    task = recipe.task.build(splits, recipe.data)
    if not task.unit_labels:
        raise UserError(f"task: prompts are for tags and one class per text, found another {task.name}")
    split = "test" if "test" in splits else "dev"
    scored = _drawn(splits[split], examples, recipe.seed)
    units = [task.units(example) for example in scored]
    fields = units[0][0].fields
    chosen = Template(Template.default(fields) if template is None else template, instruction)
    chosen.check(fields)
    model, tokenizer = _load(recipe)
    label_words = LabelWords(task.unit_labels, words or {}, tokenizer)
    asked = {task.inputs(example) for example in scored}
    shown = draw_shots(
        splits["train"], task.units, shots, recipe.seed, lambda example: task.inputs(example) in asked
    )
    beginning = _beginning(chosen, shown, dict(zip(task.unit_labels, label_words.words, strict=True)))
    first = [] if tokenizer.backend.bos_token_id is None else [tokenizer.backend.bos_token_id]
    begin_ids = first + tokenizer.continuation(beginning)
    prompts = [tokenizer.continuation(chosen.of(unit)) for each in units for unit in each]
    _check_room(model, prompts, len(begin_ids) + max(map(len, label_words.ids)), len(shown))
    scorer = WordScorer(model, label_words, begin_ids, tokenizer.pad_id)
    scores_NC = scorer.score(prompts)
    free_MC = scorer.score([tokenizer.continuation(text) for text in chosen.without_content(units[0][0])])
    bounds = np.cumsum([len(each) for each in units])[:-1]

    def metrics(found_NC: NDArray[np.float32]) -> Metrics:
        outputs = [task.unit_output(i, rows_UC) for i, rows_UC in enumerate(np.split(found_NC, bounds))]
        return task.metrics(scored, outputs)

    floor = task.floor({"train": splits["train"], split: scored}).get(split, {})
    last = beginning + chosen.of(units[-1][-1])
    plain, better = metrics(normalized(scores_NC)), metrics(calibrated(scores_NC, free_MC))
    return PromptScores(split, len(scored), len(shown), floor, plain, better, last)


def parse_words(text: str) -> dict[str, str]:
    """Return words for labels from a mapping in YAML.

    Raises:
        UserError: if it is anything else.
    """
    try:
        words = parse_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(f"--words {short(text)}{yaml_error(error)}") from None
    if not isinstance(words, dict) or not all(
        isinstance(word, str) and word.strip() for word in words.values()
    ):
        raise UserError(f"--words: {short(text)}, expected such as {{question: 問, statement: 述}}")
    # As files have classes that are true and false.
    return {
        str(label).lower() if isinstance(label, bool) else str(label): word.strip()
        for label, word in words.items()
    }


def _drawn(examples: Sequence[Example], number: int, seed: int) -> list[Example]:
    """Return some examples in their order, the same for every number of shots."""
    drawn = np.random.default_rng(seed).permutation(len(examples))[:number]
    return [examples[i] for i in np.sort(drawn).tolist()]


def _load(recipe: Recipe) -> tuple[Any, Tokenizer]:
    """Return the recipe's model, or that of the run at its path, and its tokenizer."""
    from transformers import AutoModelForCausalLM

    folder = Path(recipe.model.path)
    if (folder / "recipe.yaml").is_file() or (folder / "adapter_config.json").is_file():
        exported = load_run(folder)
        if exported.task.auto_model is not AutoModelForCausalLM:
            raise UserError(f"model.path: {folder} is no language model, expected one")
        model, backend = exported.model, exported.backend
    else:
        model, backend = recipe.model.load(AutoModelForCausalLM, recipe.seed)
    if looks_ahead(model):
        raise UserError(
            f"model.path: {type(model).__name__} sees what follows a sub-word, expected a causal model"
        )
    return model.to(device()).eval(), Tokenizer(backend)


def _beginning(template: Template, shots: Sequence[Unit], words: Mapping[str, str]) -> str:
    """Return what all prompts begin with: the instruction, and examples with their labels."""
    parts = [template.instruction] if template.instruction else []
    parts += [f"{template.of(unit)} {words[unit.label]}" for unit in shots]
    return "".join(part + _BETWEEN for part in parts)


def _check_room(model: Any, prompts: Sequence[Sequence[int]], around: int, shots: int) -> None:
    """Refuse prompts that are longer than the model takes.

    Args:
        model: of transformers.
        prompts: sub-words of each.
        around: sub-words before and after each.
        shots: that are shown in those before.
    """
    virtual = getattr(getattr(model, "active_peft_config", None), "num_virtual_tokens", 0) or 0
    longest, limit = around + max(map(len, prompts)), max_length(model, None) - virtual
    if longest > limit:
        raise UserError(
            f"--shots: a prompt with {shots} has {longest:,} sub-words, but the model takes {limit:,}; "
            "expected fewer, or shorter texts"
        )
