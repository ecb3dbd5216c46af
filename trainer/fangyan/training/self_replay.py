"""Texts that a model writes before it is trained, and then learns again: ``data.replay.source: self``."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fangyan.data.example import Example
from fangyan.data.store import writing_into
from fangyan.device import device, on_gpu
from fangyan.distributed.agreement import digest_of
from fangyan.errors import UserError
from fangyan.files import whole_file
from fangyan.models.structure import evaluating, max_length
from fangyan.progress import progress
from fangyan.terminal import say_later

# Sub-words of a text at most, within the model's length, and texts that are written at once.
_LONGEST, _BATCH = 128, 25


def own_texts(
    model: Any, backend: Any, fingerprint: str, number: int, seed: int, cache: Path
) -> list[Example]:
    """Return texts of a model's own, from its beginning of a text on, sampled from all of its sub-words.

    They are kept in the cache: other ranks, and a run that resumes, find them there.

    Args:
        model: of transformers, as it is before it is trained.
        backend: its tokenizer.
        fingerprint: of its weights.
        number: of texts.
        seed: of the sampling.
        cache: folder of the texts.

    Raises:
        UserError: if the model has no token to begin with, or the cache cannot be written.
    """
    first = backend.eos_token_id if backend.bos_token_id is None else backend.bos_token_id
    if first is None:
        raise UserError(
            "data.replay.source: is self, but the model has no token that begins a text; expected data"
        )
    path = cache / f"own-texts-{digest_of(f'{fingerprint} {number} {seed} {_LONGEST}')}.json"
    with writing_into(cache):
        cache.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("wb") as lock:
            with say_later(f"waits for another process, which writes the same texts and holds {lock.name}"):
                fcntl.flock(lock, fcntl.LOCK_EX)
            texts = _read(path)
            if len(texts) != number:
                texts = _write_texts(model, backend, first, number, seed)
                with whole_file(path) as partial:
                    partial.write_text(json.dumps(texts, ensure_ascii=False), encoding="utf-8")
    return [
        Example({"text": text}, f"{path}:{i}", text) for i, text in enumerate(texts, start=1) if text.strip()
    ]


def _read(path: Path) -> list[str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [str(text) for text in found] if isinstance(found, list) else []


@torch.no_grad()
def _write_texts(model: Any, backend: Any, first: int, number: int, seed: int) -> list[str]:
    """Let the model write; its weights may be mapped files, which a GPU gets a copy of for this."""
    texts: list[str] = []
    before = next(model.parameters()).device
    longest = min(_LONGEST, max_length(model, None) - 1)  # beside the token that it begins with
    model.to(device())
    with (
        # What is drawn later, such as an adapter, is then the same where the texts were in the cache.
        torch.random.fork_rng([device()] if on_gpu() else []),
        _plain_generation(model),
        evaluating(model),
        progress("writing texts to replay", number) as bar,
    ):
        torch.manual_seed(seed)
        while len(texts) < number:
            ids = torch.full((min(_BATCH, number - len(texts)), 1), first, device=device())
            written = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=longest,
                do_sample=True,
                top_k=0,
                pad_token_id=backend.pad_token_id,
                eos_token_id=backend.eos_token_id,
            )
            texts += backend.batch_decode(written[:, 1:], skip_special_tokens=True)
            bar.advance(len(ids))
    model.to(before)
    return texts


@contextmanager
def _plain_generation(model: Any) -> Iterator[None]:
    """Leave a model's own settings aside, such as a penalty on repetition: they change its distribution."""
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
