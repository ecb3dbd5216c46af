"""Which hidden states of a batch reach the model's head: of labelled sub-words, or one of each sequence.

Between body and head a model may have layers of its own (the transform of a masked language model, the dense
layer of a classifier), which expect a sequence in each row. So the states are chosen where the body makes
them, and everything behind is the model's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fangyan.data.packing import Batch
from fangyan.data.tokenization import TokenizedSequence
from fangyan.models.structure import try_forward

Choose = Callable[[Tensor], Tensor]


class HiddenStates:
    """A model's last hidden states, in the hands of whoever chooses among them.

    Args:
        model: of transformers, with a head.
        head: the layer that makes the logits.

    Attributes:
        can_choose: whether there are layers between these states and the head, and one module that makes the
            states was found.
        head_reads_rows: whether the head takes whole rows, (R, W, H), or one vector of each.
    """

    def __init__(self, model: Any, head: nn.Module):
        makers, last, taken = _find_makers(model, head)
        # What the head takes itself needs no choice: it skips what has no label.
        wanted = [] if _same(last, taken) else makers
        self._source = next((maker for maker in reversed(wanted) if _is_used(maker, model)), None)
        self.can_choose = self._source is not None
        self.head_reads_rows = taken.dim() > 2

    @contextmanager
    def choosing(self, choose: Choose) -> Iterator[None]:
        """Replace the hidden states, (R, W, H), by what ``choose`` returns, within this context."""
        assert self._source is not None
        handle = self._source.register_forward_hook(
            lambda _module, _inputs, output: _replaced(output, choose)
        )
        try:
            yield
        finally:
            handle.remove()


def _find_makers(model: Any, head: nn.Module) -> tuple[list[nn.Module], Tensor | None, Tensor]:
    """Find by a forward the modules within the body whose output is the body's.

    Returns:
        The modules, the outermost last; the body's hidden states; and what the head takes.
    """
    body = model.base_model
    outputs: list[tuple[nn.Module, Tensor | None]] = []
    hooks = [
        module.register_forward_hook(lambda layer, _inputs, output: outputs.append((layer, _first(output))))
        for module in (*body.modules(), head)
    ]
    taken: list[Tensor] = []
    hooks.append(head.register_forward_pre_hook(lambda _head, inputs: taken.append(inputs[0])))
    try:
        try_forward(model)
    finally:
        for hook in hooks:
            hook.remove()
    last = next((tensor for module, tensor in reversed(outputs) if module is body), None)
    makers = [module for module, tensor in outputs if tensor is last and module not in (body, head)]
    return makers if last is not None else [], last, taken[-1]


def _is_used(maker: nn.Module, model: Any) -> bool:
    """Return whether the body returns what a module makes, and not a copy that it has kept before."""
    found: list[Tensor | None] = []
    handles = [
        maker.register_forward_hook(lambda _module, _inputs, output: _replaced(output, _first_place)),
        model.base_model.register_forward_hook(lambda _body, _inputs, output: found.append(_first(output))),
    ]
    try:
        try_forward(model)
    except (IndexError, RuntimeError, ValueError):
        return False
    finally:
        for handle in handles:
            handle.remove()
    return found[-1] is not None and found[-1].shape[1] == 1


def _first_place(hidden: Tensor) -> Tensor:
    return hidden[:, :1]


def _same(left: Tensor | None, right: Tensor) -> bool:
    """Return whether two tensors are one, or views of all of it."""
    return left is not None and left.data_ptr() == right.data_ptr() and left.shape == right.shape


def _first(output: Any) -> Tensor | None:
    """Return a module's output, or the first of its outputs."""
    if isinstance(output, Tensor):
        return output
    first = (
        output[0]
        if isinstance(output, tuple | list) and output
        else getattr(output, "last_hidden_state", None)
    )
    return first if isinstance(first, Tensor) else None


def _replaced(output: Any, choose: Choose) -> Any:
    if isinstance(output, Tensor):
        return choose(output)
    if isinstance(output, tuple):
        return (choose(output[0]), *output[1:])
    output.last_hidden_state = choose(output.last_hidden_state)
    return output


def pooled(sequences: Sequence[TokenizedSequence]) -> list[tuple[int, int]]:
    """Return sequence and sub-word of what stands for each sequence as a whole."""
    places = []
    for i, sequence in enumerate(sequences):
        assert sequence.alignment is not None
        places.append((i, sequence.alignment.places[0]))
    return places


def positions(batch: Batch, places: Sequence[tuple[int, int]]) -> Tensor:
    """Return where sub-words of a batch's sequences are in its rows, one after the other, (P,), int64.

    The host knows; asking the device would wait for it. A batch without any has its first place, which is not
    learned: a rank without work reaches the head all the same.
    """
    width = batch.input_ids.shape[1]
    found = [batch.offsets[i][0] * width + batch.offsets[i][1] + place for i, place in places] or [0]
    return torch.tensor(found, device=batch.input_ids.device)
