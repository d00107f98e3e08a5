"""Spinning Up's import path of `spinup.cli.policies` and `spinup.cli.watch`."""

from spinup.cli.policies import load_actor_critic, load_policy, load_policy_and_env
from spinup.cli.watch import record_frames, run_policy

__all__ = [
    "load_actor_critic",
    "load_policy",
    "load_policy_and_env",
    "record_frames",
    "run_policy",
]
