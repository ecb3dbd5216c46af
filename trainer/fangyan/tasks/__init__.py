"""What a model can learn. Add a folder here and register its Config below."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fangyan.config import OneOf
from fangyan.errors import UserError
from fangyan.tasks.causal_lm.task import CausalLMConfig
from fangyan.tasks.cloze.task import ClozeConfig
from fangyan.tasks.extractive_qa.task import ExtractiveQAConfig
from fangyan.tasks.instruction.task import InstructionConfig
from fangyan.tasks.masked_lm.task import MaskedLMConfig
from fangyan.tasks.sequence_classification.config import SequenceClassificationConfig
from fangyan.tasks.task import Task, TaskConfig
from fangyan.tasks.token_classification.config import TokenClassificationConfig

TASKS = OneOf(
    TokenClassificationConfig,
    CausalLMConfig,
    InstructionConfig,
    MaskedLMConfig,
    SequenceClassificationConfig,
    ClozeConfig,
    ExtractiveQAConfig,
    default="token_classification",
)


def task_of_export(config: Mapping[str, Any], model_config: Any, source: str) -> Task:
    """Return the task of an exported model.

    Args:
        config: what :meth:`Task.export_config` returned, with the task's name as ``task``.
        model_config: transformers' configuration of the model.
        source: file and field, for the message.

    Raises:
        UserError: if there is no such task.
    """
    member = TASKS.members.get(str(config.get("task")))
    if member is None or not issubclass(member, TaskConfig):
        raise UserError(
            f"{source}: task is {config.get('task')!r}, expected one of {', '.join(TASKS.members)}"
        )
    return member.from_export(config, model_config)
