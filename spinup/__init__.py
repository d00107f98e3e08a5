"""Deep reinforcement learning you can read in one sitting and still run at full speed."""

from spinup.algos.ppo import ppo
from spinup.algos.sac import sac
from spinup.algos.td3 import td3
from spinup.utils.logx import EpochLogger, Logger
from spinup.version import __version__

ppo_pytorch, sac_pytorch, td3_pytorch = ppo, sac, td3

__all__ = [
    "EpochLogger",
    "Logger",
    "__version__",
    "ppo",
    "ppo_pytorch",
    "sac",
    "sac_pytorch",
    "td3",
    "td3_pytorch",
]
