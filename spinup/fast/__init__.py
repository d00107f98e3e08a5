"""Fast networks on a CPU. The environment variable ``SPINUP_FAST=0`` switches them off."""

from __future__ import annotations

import importlib
import os
import warnings
from types import ModuleType

_IS_ON = os.environ.get("SPINUP_FAST") != "0"  # read once, so that it stays the same during a run


def is_on() -> bool:
    """Returns True unless ``SPINUP_FAST=0`` switches compiled networks and captures off."""
    return _IS_ON


def compiled_module(name: str, interface: int) -> ModuleType | None:
    """Returns a compiled module of this package, or None if there is none to use.

    Args:
        name: name of the module.
        interface: number of the interface that the caller knows. A module with another one, built
            from other files, isn't used, with a warning.
    """
    if not is_on() or os.environ.get("SPINUP_COMPILED") == "0":
        return None
    try:
        module = importlib.import_module(f"{__name__}.{name}")
    except ImportError:
        return None
    if getattr(module, "interface", 1) == interface:
        return module
    warnings.warn(
        "spinup's compiled functions are of another version than its Python files, so slower ones "
        "are used: install spinup again (pip install -e .)",
        stacklevel=3,
    )
    return None
