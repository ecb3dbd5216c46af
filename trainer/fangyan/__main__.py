"""``python -m fangyan``; what DeepSpeed's launcher starts on every rank."""

from fangyan.cli import command

command()
