"""Scores as probabilities, on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def log_softmax(scores_NC: NDArray[np.floating[Any]], temperature: float = 1.0) -> NDArray[Any]:
    """Return the log-probabilities of scores, (..., C), divided by a temperature; of their dtype."""
    scaled_NC = scores_NC / temperature
    shifted_NC = scaled_NC - scaled_NC.max(-1, keepdims=True)
    found: NDArray[Any] = shifted_NC - np.log(np.exp(shifted_NC).sum(-1, keepdims=True))
    return found


def softmax(scores_NC: NDArray[np.floating[Any]], temperature: float = 1.0) -> NDArray[Any]:
    """Return the probabilities of scores, (..., C), divided by a temperature; of their dtype."""
    found: NDArray[Any] = np.exp(log_softmax(scores_NC, temperature))
    return found
