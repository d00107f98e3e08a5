"""An experiment as a file: written by the process that launches it, read by the one that runs it.

It is a JSON file that names an importable function and gives its keyword arguments, or, where the
function or an argument has no such form, a file pickled for that process alone. Pickles are only
read where nobody else can have written them, never from a run folder.
"""

from __future__ import annotations

import json
import os
import pickle
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spinup.runs.folder import SPEC
from spinup.runs.json_values import decode, encode, import_callable, importable_name

PICKLE_SUFFIX = ".pkl"


def write_spec(
    thunk: Callable, kwargs: dict[str, Any], num_cpu: int, folder: Path
) -> tuple[Path | None, Path]:
    """Writes a call down for the process that is to make it, readable by this user only.

    Args:
        thunk: the function.
        kwargs: its keyword arguments.
        num_cpu: the number of MPI ranks.
        folder: where it goes if it is a JSON file.

    Returns:
        The temporary file to delete afterwards, if there is one, and the file to run: a JSON spec
        in `folder` if the function can be imported and its arguments are plain values, else a
        pickle outside of it.
    """
    name = importable_name(thunk)
    try:
        if name is None:
            raise TypeError("The function can't be imported by another process")
        content = {"thunk": name, "kwargs": encode(kwargs), "num_cpu": num_cpu}
    except TypeError:
        private = _write_private_pickle(thunk, kwargs)
        return private, private
    spec = folder.absolute() / SPEC
    with open(os.open(spec, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(content, file, indent=4)
    return None, spec


def _write_private_pickle(thunk, kwargs):
    import cloudpickle

    content = cloudpickle.dumps((thunk, kwargs), pickle.HIGHEST_PROTOCOL)
    handle, name = tempfile.mkstemp(prefix="spinup-", suffix=PICKLE_SUFFIX)  # mode 0600
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    return Path(name)


def read_spec(spec_file: str) -> tuple[Callable, dict[str, Any]]:
    """Returns the function that a spec names, and its keyword arguments."""
    if spec_file.endswith(PICKLE_SUFFIX):
        return _read_private_pickle(spec_file)
    try:
        spec = json.loads(Path(spec_file).read_text())
        thunk, kwargs = spec["thunk"], decode(spec["kwargs"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{spec_file} is not the spec of an experiment: {error!r}") from error
    return import_callable(thunk), kwargs


def _read_private_pickle(path):
    """Unpickles what the launching process wrote, after a check that only this user could."""
    with open(path, "rb") as file:
        about = os.fstat(file.fileno())
        others_can_write = about.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
        if others_can_write or (hasattr(os, "getuid") and about.st_uid != os.getuid()):
            raise ValueError(f"{path} is not private to this user (mode 0600): it is not read")
        return pickle.load(file)  # noqa: S301 (written for this process by its own launcher)
