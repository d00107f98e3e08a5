"""Spinning Up's path to what `spinup.cli.watch` holds."""

from spinup.cli.watch import load_policy_and_env, record_frames, run_policy

__all__ = ["load_policy_and_env", "record_frames", "run_policy"]
