"""Fast networks on a CPU. The environment variable ``SPINUP_FAST=0`` switches them off."""

import os

_IS_ON = os.environ.get("SPINUP_FAST") != "0"  # read once, so that it stays the same during a run


def is_on() -> bool:
    """Returns True unless ``SPINUP_FAST=0`` switches compiled networks and captures off."""
    return _IS_ON
