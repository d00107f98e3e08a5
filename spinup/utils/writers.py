"""Writers of the log: to the terminal, ``progress.txt``, TensorBoard, Weights & Biases.

To add a writer, write a subclass of `Writer` and add it to `WRITERS` under a name. The keyword
argument of that name, of `Logger` or in ``logger_kwargs``, then switches it on.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spinup.runs.files import open_own, write_text
from spinup.runs.folder import PROGRESS, TENSORBOARD


class Writer:
    """Base class of writers, which only rank 0 has.

    Args:
        setting: value of the Logger's keyword argument for this writer.

    Raises:
        ModuleNotFoundError: a package is missing; nothing has been written yet.
    """

    def __init__(self, setting: Any):
        self.setting = setting

    def open(self, folder: Path, config: Mapping[str, Any], exp_name: str | None) -> None:
        """Prepares for rows. Called once, after the run has claimed its folder."""

    def write(self, headers: Sequence[str], row: Mapping[str, Any]) -> None:
        """Writes a row with the columns `headers`, in their order."""
        raise NotImplementedError

    def close(self) -> None:
        """Writes all remaining data, and closes the log. Called only after `open`."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the JSON values that a resumed run needs to continue the log."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned. Called before `open`."""


class Terminal(Writer):
    """Prints each row as a table, or as one line with ``setting="line"``."""

    def write(self, headers, row):
        line = _line(row) if self.setting == "line" else ""
        say(line or _table(headers, row))


def say(text: str) -> None:
    """Prints a text. A closed terminal or a full disk doesn't end the run."""
    try:
        print(text, flush=True)
    except BrokenPipeError:  # the reader, such as head, has exited
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (or Python prints an error at its exit)
    except (OSError, ValueError):  # ValueError: Python has closed the stream
        pass


def _table(headers, row):
    width = max(15, *map(len, headers))
    line = "-" * (width + 22)
    rows = [f"| {key:>{width}} | {_short(row.get(key, '')):>15} |" for key in headers]
    return "\n".join([line, *rows, line])


def _line(row):
    """Returns a summary of a row on one line; empty if the row has none of its columns."""
    names = {
        "epoch": ("Epoch",),
        "return": ("AverageTestEpRet", "AverageEpRet"),
        "length": ("TestEpLen", "EpLen"),
        "steps": ("TotalEnvInteracts",),
        "time": ("Time",),
    }
    found = {
        label: next((row[column] for column in columns if column in row), None)
        for label, columns in names.items()
    }
    parts = [f"{label} {_words(label, val)}" for label, val in found.items() if val is not None]
    return "   ".join(parts)


def _words(label, val):
    if label == "time":
        return f"{val:,.0f} s"
    return f"{val:>5,}" if isinstance(val, int) else f"{val:>7.4g}"


def _short(val):
    return f"{val:8.3g}" if hasattr(val, "__float__") else str(val)


class Progress(Writer):
    """The tab-separated file named `setting`, which always holds whole rows.

    Rows that can't be written to a full disk are kept, and written with the next ones.
    """

    def __init__(self, setting=PROGRESS):
        super().__init__(setting)
        self.file = None
        self._text = ""  # all rows
        self._waiting = b""  # rows that aren't in the file yet

    def open(self, folder, config, exp_name):
        path = folder / self.setting
        open_own(path, "ab").close()  # refuses a link
        if path.read_text(errors="replace") != self._text:
            write_text(path, self._text)
        self.file = open_own(path, "ab", buffering=0)

    def write(self, headers, row):
        text = "" if self._text else "\t".join(headers) + "\n"
        text += "\t".join(str(row.get(key, "")) for key in headers) + "\n"
        self._text += text
        self._waiting += text.encode()
        self._catch_up()

    def _catch_up(self):
        end, written = self.file.seek(0, os.SEEK_END), 0
        try:
            while written < len(self._waiting):
                written += self.file.write(self._waiting[written:])
        except OSError:
            with contextlib.suppress(OSError):
                self.file.truncate(end)  # removes a partial row
            raise
        self._waiting = b""

    def close(self):
        try:
            self._catch_up()
        finally:
            self.file.close()

    def read(self, folder: Path) -> list[str]:
        """Reads the rows of the existing file; returns its columns. Call it before `open`."""
        path = folder / self.setting
        self._text = path.read_text(errors="replace") if path.exists() else ""
        return self._text.split("\n", 1)[0].split("\t") if self._text else []

    def state_dict(self):
        return {"text": self._text}

    def load_state_dict(self, state):
        self._text = state["text"]


class TensorBoard(Writer):
    """Event files for TensorBoard, over environment steps."""

    def __init__(self, setting):
        super().__init__(setting)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ModuleNotFoundError(
                'tensorboard=True needs TensorBoard: pip install ".[tensorboard]"'
            ) from None
        self._make = SummaryWriter

    def open(self, folder, config, exp_name):
        self._board = self._make(folder / TENSORBOARD)

    def write(self, headers, row):
        for key, val in row.items():
            self._board.add_scalar(key, val, int(row.get("TotalEnvInteracts", 0)))

    def close(self):
        self._board.close()


class WeightsAndBiases(Writer):
    """A run of Weights & Biases; ``setting`` is its project. A resumed run continues it."""

    def __init__(self, setting):
        super().__init__(setting)
        if not isinstance(setting, str):
            raise ValueError(f"wandb must be the name of a project, not {setting!r}")
        try:
            import wandb

            self._init = wandb.init  # AttributeError: `wandb` is a local folder
        except (ImportError, AttributeError):
            raise ModuleNotFoundError(
                'wandb needs Weights & Biases: pip install ".[wandb]"'
            ) from None
        self._id = None

    def open(self, folder, config, exp_name):
        self._run = self._init(
            project=self.setting,
            name=folder.name,
            group=exp_name,
            dir=str(folder),
            config=dict(config),
            id=self._id,
            resume="allow",
        )
        self._id = self._run.id
        self._run.define_metric("*", step_metric="TotalEnvInteracts")

    def write(self, headers, row):
        self._run.log(dict(row))

    def close(self):
        self._run.finish()

    def state_dict(self):
        return {"id": self._id}

    def load_state_dict(self, state):
        self._id = state["id"]


# Optional copies of the log, by the Logger's keyword argument. One that fails is switched off.
WRITERS: dict[str, type[Writer]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
}
