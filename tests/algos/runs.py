"""Short runs of the algorithms, and readers of their run folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from spinup import ddpg, ppo, sac, td3, trpo, vpg

ON_POLICY = {"vpg": vpg, "trpo": trpo, "ppo": ppo}
OFF_POLICY = {"ddpg": ddpg, "td3": td3, "sac": sac}
ALGORITHMS = ON_POLICY | OFF_POLICY

_SHORT = dict(seed=3, steps_per_epoch=20, epochs=2, ac_kwargs=dict(hidden_sizes=(8,)))
_SHORT_ON_POLICY = dict(train_v_iters=3)
_SHORT_OFF_POLICY = dict(
    replay_size=100,
    batch_size=8,
    start_steps=5,
    update_after=5,
    update_every=5,
    num_test_episodes=1,
    max_ep_len=10,
)


def train(algorithm: str, env_fn, folder: Path, **kwargs) -> torch.nn.Module:
    """Runs an algorithm, by default for two epochs of 20 steps; `kwargs` override its settings."""
    special = _SHORT_ON_POLICY if algorithm in ON_POLICY else _SHORT_OFF_POLICY
    special = special | (dict(train_pi_iters=3) if algorithm == "ppo" else {})
    if "actor_critic" in kwargs:
        kwargs = dict(ac_kwargs={}) | kwargs
    kwargs = _SHORT | special | dict(logger_kwargs=dict(output_dir=folder)) | kwargs
    return ALGORITHMS[algorithm](env_fn, **kwargs)


def read_progress(folder: Path) -> dict[str, np.ndarray]:
    """Returns the columns of a run's ``progress.txt``, in their order in the file."""
    header, *rows = (Path(folder) / "progress.txt").read_text().splitlines()
    values = np.array([row.split("\t") for row in rows], dtype=np.float64)
    return dict(zip(header.split("\t"), values.T, strict=True))


def timeless_progress(folder: Path) -> str:
    """Returns the text of a run's ``progress.txt`` without the column ``Time``."""
    rows = [row.split("\t") for row in (Path(folder) / "progress.txt").read_text().splitlines()]
    keep = [i for i, name in enumerate(rows[0]) if name != "Time"]
    return "\n".join("\t".join(row[i] for i in keep) for row in rows)


def saved_model(folder: Path) -> dict[str, torch.Tensor]:
    """Returns the saved weights of a run."""
    return load_file(Path(folder) / "pyt_save" / "model.safetensors")
