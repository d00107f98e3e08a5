"""The algorithms, one file each, and a table of their properties.

The table holds plain data, so that the command line can show it without importing PyTorch.
"""

from typing import NamedTuple


class Algorithm(NamedTuple):
    """The properties of an algorithm, available without importing its file.

    Attributes:
        title: its full name.
        actions: the kinds of action space that it handles: ``"Discrete"``, ``"Box"`` (of
            floating-point numbers), or ``"bounded Box"`` (of which all bounds are finite).
        example: id of an environment that it can learn.
    """

    title: str
    actions: tuple[str, ...]
    example: str


# The function `NAME` is in the module `spinup.algos.NAME`.
ALGORITHMS = {
    "vpg": Algorithm("Vanilla Policy Gradient", ("Box", "Discrete"), "CartPole-v1"),
    "trpo": Algorithm("Trust Region Policy Optimization", ("Box", "Discrete"), "CartPole-v1"),
    "ppo": Algorithm("Proximal Policy Optimization", ("Box", "Discrete"), "CartPole-v1"),
    "ddpg": Algorithm("Deep Deterministic Policy Gradient", ("bounded Box",), "Pendulum-v1"),
    "td3": Algorithm("Twin Delayed DDPG", ("bounded Box",), "Pendulum-v1"),
    "sac": Algorithm("Soft Actor-Critic", ("bounded Box",), "Pendulum-v1"),
}
