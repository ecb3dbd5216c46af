"""The README.md of an exported graph: how it is used without fangyan, and how it was checked."""

from __future__ import annotations

from typing import Any

from fangyan.tasks.task import Task

_README = """# {name}

An ONNX graph of `{model_class}`{precision}, written by fangyan. Inputs: {inputs}, (batch, length), int64.
Outputs: {outputs}. A batch may have any size, a sequence {longest:,} sub-words at most.{alone}

{checked}

```python
{example}
```

Run it in this folder; it needs onnxruntime and tokenizers alone. {note}
"""

_OPEN = """import json

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer.json")
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
with open("config.json", encoding="utf-8") as file:
    labels = json.load(file).get("id2label")
names = [value.name for value in session.get_inputs()]


def run(encoded):
    values = {"input_ids": encoded.ids, "token_type_ids": encoded.type_ids}
    values["attention_mask"] = encoded.attention_mask
    return [found[0] for found in session.run(None, {name: np.array([values[name]]) for name in names})]


"""

_ALONE = """
The scale of its activations is that of all that is run at once, padding too: run texts one by one, and what
one gets does not depend on the others."""

# A token's scores, by which of its sub-words has its label.
_PIECES = {"first": "pieces[0]", "last": "pieces[-1]", "mean": "pieces.mean(0)"}

# By the Hub's name of what a model does.
_EXAMPLES = {
    "token-classification": """tokens = TOKENS
encoded = tokenizer.encode(tokens, is_pretokenized=True)
(logits,) = run(encoded)
for i, token in enumerate(tokens):
    pieces = logits[[k for k, owner in enumerate(encoded.word_ids) if owner == i]]
    print(token, labels[str(PIECE.argmax())])""",
    "text-classification": """(logits,) = run(tokenizer.encode(TEXTS))
for i, score in enumerate(logits):
    print(labels[str(i)], score)""",
    "question-answering": """context = "阿明住喺香港"
encoded = tokenizer.encode("住喺邊度", context)
start, end = run(encoded)
inside = [i for i, owner in enumerate(encoded.sequence_ids) if owner == 1]
spans = {(i, j): start[i] + end[j] for i in inside for j in inside if i <= j}
first, last = max(spans, key=spans.get)
print(context[encoded.offsets[first][0] : encoded.offsets[last][1]])""",
    "fill-mask": """mask = MASK
encoded = tokenizer.encode(f"我{mask}飯")
(logits,) = run(encoded)
print(tokenizer.id_to_token(int(logits[encoded.tokens.index(mask)].argmax())))""",
    "text-generation": """text = BEGINNING
for _ in range(8):
    # Of all sub-words again: the graph keeps nothing.
    (logits,) = run(tokenizer.encode(text, add_special_tokens=False))
    text += tokenizer.decode([int(logits[-1].argmax())], skip_special_tokens=False)
print(text)""",
}

_NOTES = {
    "token-classification": "It takes the most likely label of each token by itself; `fangyan predict` on "
    "this folder also sees to it that labels go together. ",
    "text-generation": "`fangyan predict` on the run keeps what it has computed of the sub-words before. ",
    "question-answering": "`fangyan predict` on this folder also reads long contexts, in parts. ",
}


def readme(
    *,
    name: str,
    model_class: str,
    task: Task,
    backend: Any,
    inputs: list[str],
    outputs: list[str],
    longest: int,
    checked: str,
    in_int8: bool,
) -> str:
    """Return the README.md of a graph.

    Args:
        name: of its folder.
        model_class: of transformers.
        task: what it learned.
        backend: its tokenizer.
        inputs: of the graph.
        outputs: of it.
        longest: most sub-words of a sequence.
        checked: what was compared, and found.
        in_int8: whether its weights are in 8 bits.
    """
    return _README.format(
        name=name,
        model_class=model_class,
        alone=_ALONE if in_int8 else "",
        precision=" with weights in 8 bits" if in_int8 else "",
        inputs=", ".join(f"`{value}`" for value in inputs),
        outputs=", ".join(f"`{value}`" for value in outputs),
        longest=longest,
        checked=checked,
        example=_OPEN + _example(task, backend),
        note=_NOTES.get(task.pipeline_tag, "") + task.usage_note,
    )


def _example(task: Task, backend: Any) -> str:
    in_characters = getattr(task, "token_unit", "words") == "characters"
    pair = getattr(task, "has_pairs", False)
    return (
        _EXAMPLES[task.pipeline_tag]
        .replace("TOKENS", 'list("我食飯")' if in_characters else '["我", "食", "飯"]')
        .replace("PIECE", _PIECES.get(getattr(task, "subword", ""), "pieces[0]"))
        .replace("TEXTS", '"你食咗飯未呀", "我食咗飯喇"' if pair else '"你食咗飯未呀"')
        .replace("MASK", repr(backend.mask_token))
        .replace("BEGINNING", repr(_beginning(backend)))
    )


def _beginning(backend: Any) -> str:
    """Return what a model of text is to continue: a question in its chat template, where it has one."""
    if backend.chat_template is None:
        return f"{backend.bos_token or ''}我哋"
    messages = [{"role": "user", "content": "我哋"}]
    text: str = backend.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text
