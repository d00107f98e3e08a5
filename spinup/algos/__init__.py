"""The algorithms: a file each, and a line each in the table of what they are and can handle.

The table holds plain data, so that the command line can show it without importing PyTorch.
"""

from typing import NamedTuple


class Algorithm(NamedTuple):
    """An algorithm, as known without importing its file.

    Attributes:
        title: its name in full.
        actions: the kinds of action space that it handles: ``"Discrete"``, ``"Box"`` (of
            floating-point numbers), or ``"bounded Box"`` (its bounds finite, too).
    """

    title: str
    actions: tuple[str, ...]


# The function `NAME` lies in the module `spinup.algos.NAME`.
ALGORITHMS = {
    "ppo": Algorithm("Proximal Policy Optimization", ("Box", "Discrete")),
    "sac": Algorithm("Soft Actor-Critic", ("bounded Box",)),
    "td3": Algorithm("Twin Delayed DDPG", ("bounded Box",)),
}
