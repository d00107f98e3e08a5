"""Deep reinforcement learning you can read in one sitting and still run at full speed."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from spinup.algos import ALGORITHMS
from spinup.version import __version__

if TYPE_CHECKING:  # for editors
    from spinup.algos.ddpg import ddpg
    from spinup.algos.ddpg import ddpg as ddpg_pytorch
    from spinup.algos.ppo import ppo
    from spinup.algos.ppo import ppo as ppo_pytorch
    from spinup.algos.sac import sac
    from spinup.algos.sac import sac as sac_pytorch
    from spinup.algos.td3 import td3
    from spinup.algos.td3 import td3 as td3_pytorch
    from spinup.algos.trpo import trpo
    from spinup.algos.trpo import trpo as trpo_pytorch
    from spinup.algos.vpg import vpg
    from spinup.algos.vpg import vpg as vpg_pytorch
    from spinup.utils.evaluation import evaluate_policy
    from spinup.utils.logx import EpochLogger, Logger

__all__ = [
    "EpochLogger",
    "Logger",
    "__version__",
    "ddpg",
    "ddpg_pytorch",
    "evaluate_policy",
    "ppo",
    "ppo_pytorch",
    "sac",
    "sac_pytorch",
    "td3",
    "td3_pytorch",
    "trpo",
    "trpo_pytorch",
    "vpg",
    "vpg_pytorch",
]

_TOOLS = dict.fromkeys(("EpochLogger", "Logger"), "spinup.utils.logx")
_TOOLS["evaluate_policy"] = "spinup.utils.evaluation"


def __getattr__(name: str) -> Any:
    """Imports a public name on first use, so that the command line's help needs no torch."""
    algorithm = name.removesuffix("_pytorch")
    if name in _TOOLS:
        return getattr(import_module(_TOOLS[name]), name)
    if algorithm in ALGORITHMS:
        return getattr(import_module(f"spinup.algos.{algorithm}"), algorithm)
    raise AttributeError(f"module 'spinup' has no attribute {name!r}")


def __dir__() -> list[str]:
    algorithms = [name + end for name in ALGORITHMS for end in ("", "_pytorch")]
    return sorted({*globals(), *__all__, *algorithms})
