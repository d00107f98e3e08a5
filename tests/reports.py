"""A script whose ranks each report what they see in a file, since printed lines could be mixed."""

from __future__ import annotations

import json

REPORT = """
import json, os, sys
from spinup.utils.mpi_tools import mpi_fork, num_procs, proc_id

mpi_fork(2)
seen = dict(
    size=num_procs(),
    argv=sys.argv[1:],
    name=__name__,
    package=__package__,
    threads=os.environ["OMP_NUM_THREADS"],
    warnoptions=sys.warnoptions,
    dev_mode=sys.flags.dev_mode,
    no_bytecode=sys.dont_write_bytecode,
)
with open(f"rank{proc_id()}.json", "w") as file:
    json.dump(seen, file)
"""


def reports(folder):
    """Returns the reports of the ranks of `REPORT`, in their order."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("rank*.json"))]
