"""The command line, ``python -m spinup.run``: see `spinup.cli.main`."""

import sys

from spinup.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
