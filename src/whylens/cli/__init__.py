"""The command line. Nothing here imports torch before a command needs it, so that `--help` answers at once."""

from whylens.cli.app import main

__all__ = ["main"]
