"""The spec of an experiment: a file that the launcher writes and the experiment's process reads.

The spec is a JSON file with the name of a function and its keyword arguments. If the function can't
be imported, or JSON can't represent an argument, it is a pickle in a private temporary file. A
pickle is read only if no other user can have written it, and never from a run folder.
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
    """Writes the spec of a call, readable only by this user.

    Args:
        thunk: the function.
        kwargs: its keyword arguments.
        num_cpu: number of MPI ranks.
        folder: folder for a JSON spec.

    Returns:
        The temporary file to delete after the run, or None, and the spec: a JSON file in `folder`
        if the function can be imported and its arguments are plain values, else the temporary file.
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
    """Returns the function in a spec, and its keyword arguments."""
    if spec_file.endswith(PICKLE_SUFFIX):
        return _read_private_pickle(spec_file)
    try:
        spec = json.loads(Path(spec_file).read_text())
        thunk, kwargs = spec["thunk"], decode(spec["kwargs"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{spec_file} is not the spec of an experiment: {error!r}") from error
    return import_callable(thunk), kwargs


def _read_private_pickle(path):
    """Unpickles the launcher's file after checking that only this user can have written it."""
    with open(path, "rb") as file:
        about = os.fstat(file.fileno())
        others_can_write = about.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
        if others_can_write or (hasattr(os, "getuid") and about.st_uid != os.getuid()):
            raise ValueError(f"{path} is not private to this user (mode 0600): it is not read")
        return pickle.load(file)  # noqa: S301 (written for this process by its own launcher)
