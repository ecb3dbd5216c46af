"""Requests that are run together have the answers that each has alone."""

import threading
from concurrent.futures import CancelledError, wait
from types import SimpleNamespace

import fangyan
import pytest
import tiny_exports
from fangyan.errors import UserError
from fangyan.serving import batching
from fangyan.serving.batching import Batcher, Busy

PAIRS = ["我\t你", "食飯\t飲茶", "今日去街\t佢"]


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return fangyan.load(tiny_exports.pair_classifier(tmp_path_factory.mktemp("pairs") / "model"))


@pytest.fixture
def batcher(predictor):
    batcher = Batcher(predictor, 8)
    yield batcher
    batcher.close()


class Counting:
    """A predictor that remembers what was run together, and waits for leave before the first batch."""

    def __init__(self, predictor, leave):
        self._predictor, self._leave = predictor, leave
        self.batches = []

    def stream(self, texts, **options):
        self._leave.wait(10)
        self.batches.append(list(texts))
        return self._predictor.stream(texts, **options)


def records(predictor, texts):
    return [prediction.record() for prediction in predictor.predict(texts)]


def test_requests_that_wait_are_run_together(predictor):
    """Up to the most texts; a request is never divided."""
    leave = threading.Event()
    counting = Counting(predictor, leave)
    batcher = Batcher(counting, 4)
    requests = [PAIRS[:1], PAIRS[:2], PAIRS[1:], PAIRS * 3, PAIRS[2:]]
    answers = [batcher.submit(texts, {}) for texts in requests]
    assert batcher.waiting == sum(map(len, requests))
    leave.set()
    for texts, answer in zip(requests, answers, strict=True):
        assert answer.result(10) == records(predictor, texts)
    assert batcher.waiting == 0
    batcher.close()
    assert [len(batch) for batch in counting.batches] in ([1, 4, 9, 1], [3, 2, 9, 1])
    assert not batcher.is_alive


def test_a_mistake_is_of_its_own_request_alone(predictor):
    leave = threading.Event()
    batcher = Batcher(Counting(predictor, leave), 8)
    first = batcher.submit(PAIRS[:1], {})
    good, bad, other = (batcher.submit(texts, {}) for texts in (PAIRS[:2], ["no tab"], PAIRS[2:]))
    leave.set()
    with pytest.raises(UserError, match="'no tab' has 0 tabs, expected a pair of texts"):
        bad.result(10)
    assert good.result(10) == records(predictor, PAIRS[:2])
    assert first.result(10) + other.result(10) == records(predictor, [PAIRS[0], PAIRS[2]])
    batcher.close()


def test_a_request_is_answered_once_its_own_texts_are_done():
    """A model that writes takes text after text: nobody waits for what others asked after."""
    leave, go_on = threading.Event(), threading.Event()

    class Slow:
        def stream(self, texts, options):
            leave.wait(10)
            for text in texts:
                if text == "long":
                    go_on.wait(10)
                if text == "wrong":
                    raise UserError("wrong")
                yield SimpleNamespace(record=lambda text=text: {"text": text})

    batcher = Batcher(Slow(), 8)
    batcher.submit(["before"], {})
    answers = [batcher.submit(texts, {}) for texts in (["a", "b"], ["long"], ["wrong"], ["c"])]
    leave.set()
    assert answers[0].result(10) == [{"text": "a"}, {"text": "b"}]
    assert not answers[1].done()
    go_on.set()
    assert [answers[i].result(10) for i in (1, 3)] == [[{"text": "long"}], [{"text": "c"}]]
    with pytest.raises(UserError, match="wrong"):
        answers[2].result(10)
    batcher.close()


def test_requests_with_other_options_are_run_apart(batcher, predictor):
    answers = [batcher.submit(PAIRS[:1], options) for options in ({}, {"temperature": 1.0}, {})]
    with pytest.raises(UserError, match="temperature: is for models that write text"):
        answers[1].result(10)
    assert answers[0].result(10) == answers[2].result(10) == records(predictor, PAIRS[:1])


def test_more_than_may_wait_is_refused_at_once(predictor, monkeypatch):
    monkeypatch.setattr(batching, "MOST_WAITING", 3)
    leave = threading.Event()
    batcher = Batcher(Counting(predictor, leave), 8)
    answers = [batcher.submit(PAIRS[:2], {}), batcher.submit(PAIRS[:1], {})]
    with pytest.raises(Busy):
        batcher.submit(PAIRS[:1], {})
    leave.set()
    wait(answers)
    assert batcher.submit(PAIRS * 2, {}).result(10) == records(predictor, PAIRS * 2)  # nothing else waits
    batcher.close()


def test_what_is_given_up_is_not_run(predictor):
    leave = threading.Event()
    counting = Counting(predictor, leave)
    batcher = Batcher(counting, 1)
    first, second, third = (batcher.submit([text], {}) for text in PAIRS)
    assert second.cancel()
    leave.set()
    assert third.result(10) == records(predictor, PAIRS[2:])
    with pytest.raises(CancelledError):
        second.result(0)
    assert first.done()
    assert batcher.waiting == 0
    assert counting.batches == [PAIRS[:1], PAIRS[2:]]
    batcher.close()


def test_closing_answers_what_waits(predictor):
    batcher = Batcher(predictor, 8)
    answers = [batcher.submit(PAIRS, {}) for _ in range(20)]
    batcher.close()
    assert all(answer.result(0) == records(predictor, PAIRS) for answer in answers)
