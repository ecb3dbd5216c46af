"""The optimizers are subclasses of bitsandbytes' own: without it there is nothing to test."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("bitsandbytes") else ["test_*.py"]
