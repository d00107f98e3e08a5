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
        example: id of an environment that it can learn.
    """

    title: str
    actions: tuple[str, ...]
    example: str


# The function `NAME` lies in the module `spinup.algos.NAME`.
ALGORITHMS = {
    "ppo": Algorithm("Proximal Policy Optimization", ("Box", "Discrete"), "CartPole-v1"),
    "sac": Algorithm("Soft Actor-Critic", ("bounded Box",), "Pendulum-v1"),
    "td3": Algorithm("Twin Delayed DDPG", ("bounded Box",), "Pendulum-v1"),
}
