"""Each input has a number, which alone decides what it is: what fails is repeated by its name."""

import signal
from contextlib import contextmanager

import pytest

# Of all inputs. A command is a process of its own.
SHARES = {
    "test_recipe": 0.35,
    "test_overrides": 0.15,
    "test_data_file": 0.34,
    "test_prediction": 0.12,
    "test_command_line": 0.04,
}
# Of an input that is no command. Machines that run tests have other things to do.
SECONDS = 20
LONGEST = 600


def pytest_generate_tests(metafunc):
    if "number" in metafunc.fixturenames:
        share = SHARES[metafunc.function.__name__]
        metafunc.parametrize("number", range(max(1, round(metafunc.config.getoption("inputs") * share))))


@contextmanager
def _within(seconds):
    def stop(*_):
        raise TimeoutError(f"not done in {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def tried():
    """A function's value, or None where it ends as a user's mistake may; any other end fails the test."""
    from fangyan.errors import UserError

    def call(function, *arguments):
        with _within(SECONDS):
            try:
                return function(*arguments)
            except UserError as error:
                sentence = str(error)
                assert sentence
                assert "\n" not in sentence
                assert len(sentence) <= LONGEST, sentence
                return None

    return call
