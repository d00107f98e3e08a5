"""The argument parser of ``plot`` and ``test_policy``."""

from __future__ import annotations

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """An ``argparse`` parser that prints errors in one line and exits with status 2.

    Args:
        command: name of the command.
        description: description of the command.
    """

    def __init__(self, command: str, description: str):
        super().__init__(prog=f"spinup {command}", description=description)

    def error(self, message: str) -> NoReturn:
        """Prints the error and exits."""
        self.exit(2, f"{self.prog}: {message}\n")
