"""Requests that wait while the model runs are run together next."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from fangyan.tasks.predictor import Predictor

# Texts that may wait: more is refused at once, rather than answered when nobody waits any longer.
MOST_WAITING = 4096

Records = list[dict[str, Any]]


class Busy(Exception):
    """Report that too many texts wait already."""


@dataclass(frozen=True)
class _Request:
    texts: Sequence[str]
    options: Mapping[str, Any]
    answer: Future[Records] = field(default_factory=Future)


class Batcher:
    """Runs a model in a thread of its own, on the texts of several requests at once.

    It waits for nothing: what has come in while the model ran is its next batch. A lone request is answered
    as soon as it could be, and the more wait, the larger the batches.

    Args:
        predictor: the model.
        most_texts: of a batch, unless one request has more; 1 runs each request alone.
    """

    def __init__(self, predictor: Predictor, most_texts: int):
        self._predictor = predictor
        self._most_texts = most_texts
        self._requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting = 0
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Return how many texts wait, or are being run."""
        return self._waiting

    @property
    def is_alive(self) -> bool:
        """Return whether texts are answered."""
        return self._thread.is_alive()

    def submit(self, texts: Sequence[str], options: Mapping[str, Any]) -> Future[Records]:
        """Return what will be predicted for texts, as records.

        Args:
            texts: of one request.
            options: of :meth:`fangyan.tasks.task.Predictor.stream`.

        Raises:
            Busy: if :data:`MOST_WAITING` texts wait already.
        """
        with self._lock:
            if self._waiting and self._waiting + len(texts) > MOST_WAITING:
                raise Busy
            self._waiting += len(texts)
        request = _Request(texts, options)
        request.answer.add_done_callback(lambda _: self._answered(len(texts)))
        self._requests.put(request)
        return request.answer

    def close(self, seconds: float | None = None) -> None:
        """Answer what waits, and end the thread.

        Args:
            seconds: to wait for it; the thread ends with the process at the latest.
        """
        self._requests.put(None)
        self._thread.join(seconds)

    def _answered(self, count: int) -> None:
        with self._lock:
            self._waiting -= count

    def _work(self) -> None:
        left: _Request | None = None
        while (first := left or self._requests.get()) is not None:
            batch, left, is_last = self._together(first)
            # Of a request that was given up nothing is run.
            self._answer([request for request in batch if request.answer.set_running_or_notify_cancel()])
            if is_last:
                return

    def _together(self, first: _Request) -> tuple[list[_Request], _Request | None, bool]:
        """Return a batch, a request that was taken and is not of it, and whether no more will come."""
        batch, count = [first], len(first.texts)
        while count < self._most_texts:
            try:
                following = self._requests.get_nowait()
            except queue.Empty:
                break
            if following is None:
                return batch, None, True
            if following.options != first.options or count + len(following.texts) > self._most_texts:
                return batch, following, False
            batch.append(following)
            count += len(following.texts)
        return batch, None, False

    def _answer(self, batch: Sequence[_Request]) -> None:
        """Answer some requests, each once its own texts are done: a model that writes takes one at a time.

        Where one has a mistake, all that have no answer yet are run alone, so that it is nobody else's.
        """
        if not batch:
            return
        left = deque(batch)
        try:
            texts = [text for request in batch for text in request.texts]
            stream = self._predictor.stream(texts, options=batch[0].options)
            while left:
                records = [prediction.record() for prediction in islice(stream, len(left[0].texts))]
                left.popleft().answer.set_result(records)
        except Exception as error:
            if len(batch) == 1:
                batch[0].answer.set_exception(error)
                return
            for request in left:
                self._answer([request])
