"""What a recipe trains, and on what: loaded and laid out, before there is an engine."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from fangyan_kernels.capability import bfloat16_missing
from numpy.typing import NDArray

from fangyan.data.batching import Epochs
from fangyan.data.example import DATASET, Example
from fangyan.data.store import cache_folder, keep_examples
from fangyan.data.tokenization import Tokenizer
from fangyan.data.vocabulary import characters_without_subword, check_prefixes, unknown_characters
from fangyan.device import device, on_gpu
from fangyan.distributed.agreement import digest_of
from fangyan.errors import UserError
from fangyan.inference.export import Base
from fangyan.models.dropout import use_byte_dropout
from fangyan.models.layout import choose_layout
from fangyan.models.packed import PackedModel
from fangyan.models.structure import (
    fingerprint,
    head_name,
    is_in,
    looks_ahead,
    max_length,
    new_modules,
    num_outputs,
    num_parameters,
)
from fangyan.models.vocabulary import extend_vocabulary
from fangyan.objectives.objective import Prepared
from fangyan.recipe import Recipe
from fangyan.tasks.evaluation import BATCH_TOKENS
from fangyan.tasks.task import Metrics
from fangyan.training.checks import workload_findings
from fangyan.training.engine import activation_dtype, check_precision, choose_precision, slow_precision
from fangyan.training.loaded_data import LoadedData, choose_metric, load_data
from fangyan.training.self_replay import own_texts
from fangyan.training.step_batches import StepBatches

# The shortest sequence that a document is cut into, however small a batch.
_SHORTEST = 8
# Sequences that are looked at for unknown sub-words, and the most of these.
_SAMPLED, _MOST_UNKNOWN = 2000, 0.2
# What checks of a model take, and so the least that an adapter leaves of its length.
_LEAST_ROOM = 64


class Workload(StepBatches):
    """A recipe's data and model, and every step laid out.

    Making one needs no process group and touches no file of the run.

    Args:
        recipe: of the run.
        data: of the recipe, where it is loaded already.

    Attributes:
        splits: examples, by name.
        retained: examples that show what is forgotten, by the name of the data set.
        task: fitted to them.
        tokenizer: of the model.
        max_length: most sub-words of a sequence that is not trained on.
        cache: folder for data larger than memory.
        longest: most sub-words of a sequence that is trained on.
        sequences: the training data as the model takes it.
        lengths: sub-words of each.
        num_valid: labels of each that are learned.
        batches: by epoch, by step, the indices of the sequences to train on.
        model: what is trained.
        base: of an adapter's export; None where the model's own weights learn.
        num_frozen: parameters that do not learn.
        new_parameters: ``id`` of those that are random.
        prepared: what the objective has made before the first step.
        messages: for the user, on the model.
        findings: on the data.
    """

    def __init__(self, recipe: Recipe, data: LoadedData | None = None):
        self.recipe = recipe = choose_precision(recipe)
        check_precision(recipe.engine)
        data = data or load_data(recipe)
        self.splits, self.task = dict(data.splits), data.task
        self.retained, self._num_own = data.retained, data.num_own
        self.metric = choose_metric(recipe, self.task)
        self.messages = slow_precision(recipe.engine)
        task = self.task
        model, backend = recipe.model.load(
            task.auto_model,
            recipe.seed,
            task.model_kwargs(),
            task.tokenizer_kwargs,
            as_stored=True,
            train=self.splits["train"],
        )
        if task.is_causal and looks_ahead(model):
            raise UserError(
                f"model.path: {type(model).__name__} sees what follows a sub-word, expected a causal model"
            )
        task.use_model(model, backend)
        self._check_task()
        head = self._find_new_head(model)
        new_head = self._unknown_head(model, head)
        recipe.objective.check(task, new_head is not None or not recipe.model.pretrained)
        new = new_modules(model, head)
        self._fingerprint = fingerprint(model, new)
        self.base = self._describe_base(model, new)
        self.cache = cache_folder(recipe.data.cache_dir)
        self._add_own_texts(model, backend)
        unknown = self._check_vocabulary(model, backend)
        self.tokenizer = Tokenizer(backend)
        if recipe.train.token_masking and self.tokenizer.mask_id is None:
            raise UserError(f"train.token_masking: {recipe.model.path!r} has no mask token, expected 0")
        check_prefixes(recipe.data.prefixes, self.tokenizer)
        self.max_length = self._longest(self._room(max_length(model, recipe.model.max_length), model))
        weights = task.class_weights
        self._class_weights = None if weights is None else torch.tensor(weights, dtype=torch.float32)
        self._changed = "", {}
        self.prepared = Prepared()
        self.batches = self._lay_out_steps()
        self._check_known(unknown)
        new_weights = _new_weights(model, new_head)
        self.model = self._adapt(model, head)
        self.new_parameters = _parameters_of(self.model.base, new_weights)
        self._choose_layout()
        self.findings = [*data.findings, *workload_findings(self)]
        self.num_frozen = sum(num_parameters(p) for p in model.parameters() if not p.requires_grad)

    @cached_property
    def floor(self) -> dict[str, Metrics]:
        """Return the metrics of a guess, per split: made late, as it loads the library that scores."""
        return self.task.floor(self.splits)

    def _check_task(self) -> None:
        """Refuse what means nothing for the task."""
        task = self.task
        if task.has_targets and self.recipe.objective.smooths_labels:
            raise UserError(
                "objective.label_smoothing: is for one class per text, found several, numbers or spans; "
                "expected 0"
            )
        if self.recipe.train.token_masking and not task.takes_token_masking:
            raise UserError(
                f"train.token_masking: is {self.recipe.train.token_masking}, which means nothing for "
                f"{task.name}; expected 0"
            )

    def _find_new_head(self, model: Any) -> str | None:
        """Return the module that is a new head, with all of its layers; None where the model has its own."""
        has_new: list[str] = getattr(model, "new_weights", []) if self.task.head_may_be_missing else []
        if not self.task.has_new_head and not has_new:
            return None
        if has_new:
            self.messages.append(
                f"model.path: {type(model).__name__} has no head in its files: {len(has_new):,} weights are "
                f"new and random, such as {has_new[0]}"
            )
        name = head_name(model, num_outputs(model))
        return name if self.task.pooling is None else name.partition(".")[0]

    def _unknown_head(self, model: Any, head: str | None) -> str | None:
        """Return the head if it knows nothing of its labels: some of its weights are random."""
        config = self.recipe.model
        if head is None or (
            config.pretrained
            and not config.is_scratch
            and not any(is_in(name, [head]) for name in getattr(model, "new_weights", []))
        ):
            return None
        return head

    def _check_known(self, can_be_added: bool) -> None:
        """Refuse a tokenizer that does not know the data: a model learns nothing of what is unknown to it.

        Args:
            can_be_added: whether new characters would help; those of an unknown word may be known alone.
        """
        backend, unknown = self.tokenizer.backend, self.tokenizer.backend.unk_token_id
        if unknown in (backend.bos_token_id, backend.eos_token_id, backend.pad_token_id):
            return  # GPT-2's, which knows every byte
        sample = [self.sequences[i] for i in range(min(len(self.sequences), _SAMPLED))]
        around = len(self.tokenizer.prefix) + len(self.tokenizer.suffix)
        total = sum(len(sequence.input_ids) - around for sequence in sample)
        count = sum(sequence.input_ids.count(unknown) for sequence in sample)
        if count > _MOST_UNKNOWN * total:
            remedy = (
                "a model of its script, model.extend_vocabulary" if can_be_added else "a model of its script"
            )
            raise UserError(
                f"model.path: {self.recipe.model.path} knows too little of the data: "
                f"{100 * count / total:.0f}% of the sub-words of train are unknown to it, expected "
                f"{100 * _MOST_UNKNOWN:.0f}% at most; {remedy}, or for taggers model.path: scratch"
            )

    def _room(self, requested: int, model: Any) -> int:
        """Return the most sub-words of a sequence beside the tokens that an adapter adds."""
        added = self.recipe.adaptation.added_tokens
        limit = max_length(model, None)
        if limit - added < _LEAST_ROOM:
            raise UserError(
                f"adaptation.virtual_tokens: {added:,}, but the model takes {limit:,} sub-words and virtual "
                f"tokens; expected {max(limit - _LEAST_ROOM, 0):,} at most"
            )
        return min(requested, limit - added)

    def _longest(self, limit: int) -> int:
        """Return the most sub-words of a sequence: no more than a batch, whose mask grows by the square."""
        if self.recipe.model.max_length is not None:
            return limit
        return min(limit, max(self.recipe.train.batch_tokens, BATCH_TOKENS))

    def _choose_layout(self) -> None:
        """Choose how batches are laid out by what the model computes of them; weights are whole here."""
        recipe = self.recipe
        self.messages += choose_layout(
            self.model,
            # Models that start from nothing are never packed, which is nothing to warn of.
            recipe.train.packing and not recipe.model.is_scratch,
            recipe.engine.precision != "fp32" and not bfloat16_missing(device()),
            recipe.model.attention_dropout,
        )
        if self.model.layout == "unpadded" and recipe.engine.zero_stage == 3:
            raise UserError(
                f"engine.zero_stage: 3, but {type(self.model.base).__name__} takes a forward for each length "
                "of its sequences, so that ranks would take different numbers of them; expected 2 at most"
            )

    def _lay_out_steps(self) -> Epochs:
        config = self.recipe.train
        self.longest = min(self.max_length, max(config.batch_tokens, _SHORTEST))
        train = self.splits["train"]
        self.sequences = self.task.tokenize_all(train, self.tokenizer, self.longest, self.cache)
        if not len(self.sequences):
            raise UserError(
                f"data.train: none of its {len(train):,} examples makes a sequence to learn from, such as "
                f"{train[0].source}; expected one at least"
            )
        if not isinstance(train, list):
            self.messages.append(f"sub-words are kept in {self.cache}, which may be deleted between runs")
        self.lengths, self.num_valid = self.sequences.lengths, self.sequences.num_valid
        return Epochs(
            self.lengths, config.batch_tokens, self.recipe.seed, config.epochs, self._repeats(train)
        )

    def _repeats(self, train: Sequence[Example]) -> NDArray[np.float32] | None:
        """Return how often each sequence is seen in an epoch, (S,); None where all are seen once."""
        data = self.recipe.data
        wanted = data.repeats(islice(train, self._num_own))
        if wanted is None and not data.replay.share:
            return None
        sets = wanted or {}
        of_example = np.array(
            [sets.get(example.fields.get(DATASET, ""), 1.0) for example in train], dtype=np.float32
        )
        examples = np.array([sequence.example for sequence in self.sequences])
        own: NDArray[np.float32] = of_example[examples]
        if not data.replay.share:
            return own
        repeats = data.replay.repeats(own, self.lengths, examples >= self._num_own)
        self.messages.append(
            f"data.replay: {len(train) - self._num_own:,} examples, seen {repeats[-1]:.2f} times per epoch, "
            f"are {100.0 * data.replay.share:.3g}% of its sub-words"
        )
        return repeats

    def _add_own_texts(self, model: Any, backend: Any) -> None:
        """Let the model write what is replayed, if it is to, before anything of it changes."""
        replay = self.recipe.data.replay
        if replay.is_own:
            texts = own_texts(model, backend, self._fingerprint, replay.texts, self.recipe.seed, self.cache)
            self.splits["train"] = keep_examples(chain(self.splits["train"], texts), self.cache)

    def _describe_base(self, model: Any, new: list[str]) -> Base | None:
        """Return what an adapter's export says on its base: before it is quantized or has new embeddings."""
        recipe = self.recipe
        if recipe.adaptation.trains_base_weights:
            return None
        return Base(
            recipe.model,
            self.task,
            recipe.seed,
            new,
            self._fingerprint,
            recipe.adaptation.base_quantization,
            model.config.get_text_config().vocab_size,
        )

    def _check_vocabulary(self, model: Any, backend: Any) -> bool:
        """Count characters without a sub-word, and add as many of them as the recipe says.

        Returns:
            Whether characters are unknown that could be added.
        """
        characters = characters_without_subword(self.splits["train"], backend)
        added = characters[: self.recipe.model.extend_vocabulary]
        if added:
            extend_vocabulary(model, backend, added)
            shown = " ".join(character.text for character in added[:20])
            self.messages.append(f"added to the vocabulary: {len(added):,} characters, {shown}")
        message = unknown_characters(characters[len(added) :])
        self.messages += [message] if message else []
        return message is not None

    def _adapt(self, model: Any, head: str | None) -> PackedModel:
        recipe, task = self.recipe, self.task
        adapted = recipe.adaptation.apply(
            model,
            peft_task_type=task.peft_task_type,
            new_head=head,
            total_steps=self.total_steps,
            activation_dtype=activation_dtype(recipe.engine),
            kernels=recipe.engine.kernels,
        )
        if not on_gpu():
            use_byte_dropout(adapted)
        packed = task.pack(adapted, "padded", recipe.engine.kernels)
        if recipe.train.gradient_checkpointing:
            packed.use_gradient_checkpointing()
        return packed

    @property
    def total_steps(self) -> int:
        """Return the optimizer steps of all epochs."""
        return self.batches.num_batches

    @property
    def inference_config(self) -> dict[str, Any]:
        """Return what the configuration of an export says of its use, for ``fangyan.load``."""
        prefixes, layout = self.recipe.data.prefixes, self.model.layout
        return {
            "task": self.task.name,
            **self.task.export_config(),
            # Masks work on every machine.
            "layout": "rows" if layout == "varlen" else layout,
            "max_length": self.max_length,
            **({"prefixes": prefixes} if prefixes else {}),
        }

    def digests(self) -> dict[str, str]:
        """Return digests of what was loaded, by the field of the recipe: the same on every rank of a run.

        Random weights are left out, of which all take the first rank's: processors draw them differently.
        """
        found = {"data.train": self.sequences.digest()}
        scored = {f"data.{name}": self.splits[name] for name in self.splits.keys() - {"train"}}
        scored |= {f"retain: {name}": examples for name, examples in self.retained.items()}
        for name, examples in scored.items():
            sample = range(0, len(examples), max(1, len(examples) // 1000))
            found[name] = digest_of(str([len(examples), [dict(examples[i].fields) for i in sample]]))
        shapes = [(key, tuple(parameter.shape)) for key, parameter in self.model.named_parameters()]
        config = self.recipe.model
        weights = self._fingerprint if config.pretrained and not config.is_scratch else ""
        return found | {"model.path": digest_of(f"{shapes} {weights}")}


def _new_weights(model: Any, head: str | None) -> list[str]:
    """Return the names of weights that are random: those that its files lack, or else those of a head.

    Args:
        model: of transformers, before it is adapted.
        head: that knows nothing of its labels, or None.
    """
    lacking: list[str] = getattr(model, "new_weights", [])
    if lacking or head is None:
        return lacking
    return [f"{head}.{name}" for name, _ in model.get_submodule(head).named_parameters()]


def _parameters_of(model: Any, names: Collection[str]) -> set[int]:
    """Return the ``id`` of parameters by their names, of which PEFT may have made copies that are trained."""
    return {
        id(parameter)
        for name, parameter in model.named_parameters()
        if name.replace("modules_to_save.default.", "") in names
    }
