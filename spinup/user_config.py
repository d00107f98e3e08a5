"""Settings for every run of this installation. Edit this file to change them."""

import os
from pathlib import Path


def default_data_dir() -> str:
    """Returns the folder for runs that are started without ``data_dir``.

    Returns:
        ``$SPINUP_DATA_DIR`` if that is set. Otherwise, the folder ``data`` beside ``spinup/`` in a
        checkout, and the folder ``data`` in the current directory for an installed package.
    """
    chosen = os.environ.get("SPINUP_DATA_DIR")
    if chosen:
        return os.path.abspath(os.path.expanduser(chosen))
    repository = Path(__file__).resolve().parent.parent
    is_checkout = (repository / "setup.py").is_file() or (repository / ".git").exists()
    return str((repository if is_checkout else Path.cwd()) / "data")


# The default folder for runs. The environment variable SPINUP_DATA_DIR overrides it.
DEFAULT_DATA_DIR = default_data_dir()

# If True, every run folder's name has the date and time, as with --datestamp.
FORCE_DATESTAMP = False

# If True, the names of a grid's variants abbreviate the keys that have no shorthand to their first
# letters (ac_kwargs:hidden_sizes becomes ac-hid). If False, the names contain the whole keys.
DEFAULT_SHORTHAND = True

# Length in seconds of the countdown on a terminal before a grid starts. 0 starts it at once.
WAIT_BEFORE_LAUNCH = 5
