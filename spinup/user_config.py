"""Settings that people change for good. All of them can be edited here."""

import os
from pathlib import Path


def default_data_dir() -> str:
    """Where runs land when no ``data_dir`` is given.

    Returns:
        ``$SPINUP_DATA_DIR`` if that is set; in a checkout, the ``data`` folder beside ``spinup/``;
        for an installed package, ``data`` below the current directory (never in site-packages).
    """
    chosen = os.environ.get("SPINUP_DATA_DIR")
    if chosen:
        return os.path.abspath(os.path.expanduser(chosen))
    repository = Path(__file__).resolve().parent.parent
    is_checkout = (repository / "setup.py").is_file() or (repository / ".git").exists()
    return str((repository if is_checkout else Path.cwd()) / "data")


# Where runs land by default. The environment variable SPINUP_DATA_DIR overrides it.
DEFAULT_DATA_DIR = default_data_dir()

# Whether every run folder carries a date and time, as if --datestamp were always given.
FORCE_DATESTAMP = False

# Whether a parameter of a grid is named in its variants by the first letters of its key when it has
# no shorthand (ac_kwargs:hidden_sizes becomes ac-hid). If not, by its whole key.
DEFAULT_SHORTHAND = True

# Seconds to look over a grid before it starts, counted down on a terminal. 0 starts at once.
WAIT_BEFORE_LAUNCH = 5
