"""The parser of the commands that take files and options: ``plot``, ``test_policy``."""

from __future__ import annotations

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """An ``argparse`` parser whose errors are one line; the exit status is 2.

    Args:
        command: the command's name.
        description: what it does.
    """

    def __init__(self, command: str, description: str):
        super().__init__(prog=f"spinup {command}", description=description)

    def error(self, message: str) -> NoReturn:
        """Prints what is wrong, and exits."""
        self.exit(2, f"{self.prog}: {message}\n")
