"""``python -m spinup`` is ``python -m spinup.run``."""

import sys

from spinup.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
