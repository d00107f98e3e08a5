"""Versions of the software that a run uses."""

from __future__ import annotations

import platform
from importlib import import_module
from typing import Any

from spinup.fast import kernels
from spinup.version import __version__


def versions() -> dict[str, Any]:
    """Returns the versions of spinup and of the libraries that compute, for ``config.json``."""
    packages = {name: import_module(name).__version__ for name in ("torch", "gymnasium", "numpy")}
    compiled = kernels.compiled()
    return dict(spinup=__version__, **packages, python=platform.python_version(), compiled=compiled)
