"""Atomic writing of files (completely or not at all), and errors of a full disk."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

StrPath = str | os.PathLike

# Which moves and removes no file that is open, and flushes none that is open for reading only.
ON_WINDOWS = os.name == "nt"

# Errors of a disk that is full, or out of reach for a while, and may have room again later.
_MAY_PASS = {errno.ENOSPC, errno.EFBIG, errno.EIO, errno.EDQUOT, errno.ESTALE}


def write_json(path: StrPath, content: Any) -> None:
    """Writes a JSON file atomically."""
    write_text(path, json.dumps(content, indent=4) + "\n")


def write_text(path: StrPath, text: str) -> None:
    """Writes a text file atomically."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # ranks may write at once
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def open_own(path: StrPath, mode: str, **kwargs: Any) -> IO:
    """Opens a file of a run folder for writing; raises OSError for a symbolic link."""
    no_link = getattr(os, "O_NOFOLLOW", 0)
    opener = lambda path, flags: os.open(path, flags | no_link, 0o666)  # noqa: E731
    return open(path, mode, opener=opener, **kwargs)


@contextlib.contextmanager
def as_os_error() -> Iterator[None]:
    """Turns the exception of safetensors for a file that can't be written into an OSError."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def may_pass(error: OSError) -> bool:
    """Returns True if an error may be temporary: the disk is full or out of reach."""
    return error.errno in _MAY_PASS


def read_object(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file, or an empty dict if it can't be read."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
