"""Program for a short run that can be killed and resumed: ``resumable.py ALGO FOLDER EPOCHS``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

import spinup
from tests.algos.runs import ON_POLICY, timeless_progress

SETTINGS: dict[str, dict[str, Any]] = {
    "vpg": dict(train_v_iters=10, epochs=10),
    "trpo": dict(train_v_iters=10, epochs=10, normalize_obs=True),
    "ppo": dict(
        train_pi_iters=5,
        train_v_iters=5,
        epochs=10,
        normalize_obs=True,
        minibatch_size=50,
        lr_schedule="linear",
    ),
    "ddpg": dict(epochs=8),
    "td3": dict(epochs=10, normalize_obs=True),
    "sac": dict(alpha="auto", epochs=8),
}
OFF_POLICY = dict(start_steps=100, update_after=100, update_every=20, num_test_episodes=3)


def train(algorithm: str, folder: str | Path, **kwargs: Any):
    """Trains on Pendulum-v1, or resumes the run; episodes are longer than an epoch."""
    settings = dict(steps_per_epoch=161, max_ep_len=170, seed=3, checkpoint_every=0)
    settings |= SETTINGS[algorithm] | ({} if algorithm in ON_POLICY else OFF_POLICY)
    settings |= dict(ac_kwargs=dict(hidden_sizes=(32, 32)))
    settings |= dict(logger_kwargs=dict(output_dir=str(folder), resume=True))
    return getattr(spinup, algorithm)(**dict(env_fn="Pendulum-v1") | settings | kwargs)


def final_state(folder: Path) -> dict[str, Any]:
    """Returns a run's last checkpoint, its log without times, and its saved model."""
    steps = (folder / "checkpoint").glob("step-*")
    last = max(steps, key=lambda path: int(path.name.removeprefix("step-")))
    state: dict[str, Any] = {"step": last.name, "progress": timeless_progress(folder)}
    for path in sorted(last.glob("rank*.json")):
        content = json.loads(path.read_text())
        del content["seconds"]
        for name in ("seconds", "status", "writers"):
            del content["parts"]["logger"][name]
        state[path.name] = json.dumps(content, sort_keys=True)
    for path in sorted(last.glob("rank*.safetensors")):
        state |= {f"{path.stem}.{k}": v for k, v in load_file(path).items()}
    for path in sorted((folder / "pyt_save").glob("*.safetensors")):
        state |= {f"{path.stem}.{k}": v for k, v in load_file(path).items()}
    return state


def differences(state: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Returns the names of the entries that aren't bitwise equal."""
    same = {
        key
        for key in state.keys() & other.keys()
        if np.array_equal(state[key], other[key], equal_nan=isinstance(state[key], np.ndarray))
    }
    return sorted((state.keys() | other.keys()) - same)


if __name__ == "__main__":
    train(*sys.argv[1:3], epochs=int(sys.argv[3]))
