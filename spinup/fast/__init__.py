"""What makes networks fast on a CPU. ``SPINUP_FAST=0`` in the environment switches it off."""

import os

_IS_ON = os.environ.get("SPINUP_FAST") != "0"  # read once: a run doesn't change its path


def is_on() -> bool:
    """Returns True unless ``SPINUP_FAST=0`` switches compiled networks and captures off."""
    return _IS_ON
