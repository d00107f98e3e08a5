"""Trains on fixed data, which doesn't depend on the number of ranks.

The algorithms run unchanged, but their buffers return fixed data: each rank gets its part of the
same data, on any number of ranks. The noise of sampled actions is fixed and split in the same way.

The program ``fixed_data.py FOLDER`` runs on any number of ranks. It trains with each algorithm on
each data size. Each rank writes its final parameters to ``FOLDER/<algorithm>-<size>-<rank>.npz``;
the log is in ``FOLDER/<algorithm>-<size>``. The logs of PPO with each of `TARGET_KLS` are in
``FOLDER/stops-*``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from spinup.fast import capture
from spinup.utils.buffers import ReplayBuffer
from spinup.utils.mpi_tools import num_procs, proc_id
from spinup.utils.trajectories import TrajectoryBuffer
from tests.algos.envs import Made
from tests.algos.runs import ON_POLICY, train

OBS_DIM = 2
BOX = Box(np.array([-1, -3], np.float32), np.array([2, 0.5], np.float32))

# Sizes that are divisible by both 2 and 3, and sizes that are divisible by neither.
SIZES = {"vpg": (61,), "trpo": (60, 61), "trpo-discrete": (61,), "ppo": (60, 61)}
SIZES |= {"ppo-discrete": (61,), "ddpg": (31,), "td3": (30, 31), "sac": (30, 31)}

KWARGS = {
    "vpg": dict(epochs=5, train_v_iters=15, pi_lr=5e-2, vf_lr=1e-2),
    # Conjugate gradient amplifies rounding, the more iterations it takes without converging.
    "trpo": dict(epochs=3, train_v_iters=15, vf_lr=1e-2, cg_iters=5),
    "ppo": dict(epochs=3, train_pi_iters=15, train_v_iters=15, pi_lr=5e-3, vf_lr=1e-2),
    "ddpg": dict(polyak=0.8, pi_lr=3e-3, q_lr=1e-2),
    "sac": dict(polyak=0.8, lr=3e-3, alpha="auto"),
    "td3": dict(polyak=0.8, pi_lr=3e-3, q_lr=1e-2, target_noise=0.4),
}
# 25 updates, each on its own fixed minibatch; the transitions of the random steps aren't used.
OFF_POLICY_KWARGS = dict(
    steps_per_epoch=25,
    epochs=1,
    start_steps=25,
    update_after=1,
    update_every=5,
    num_test_episodes=0,
)


# Limits of the divergence at which PPO's policy steps stop sooner or later. With as few steps as
# these the ranks' shares differ much.
TARGET_KLS = np.geomspace(1e-3, 5e-2, 8)
FEW_STEPS = 3


def my_part(total: int) -> np.ndarray:
    """Returns the indices of this rank's part of `total` items."""
    return np.array_split(np.arange(total), num_procs())[proc_id()]


def trajectories(size: int, discrete: bool = False) -> dict:
    """Returns an epoch's steps, and its paths as ``{end: last observation or None}``."""
    rng = np.random.default_rng(0)
    # A path ends wherever a rank's part may end, so that no path is split between ranks.
    ends = sorted({int(p[-1]) + 1 for n in (1, 2, 3) for p in np.array_split(np.arange(size), n)})
    return dict(
        obs=rng.normal(size=(size, OBS_DIM)),
        act=rng.integers(3, size=size) if discrete else rng.normal(size=(size, 2)),
        rew=rng.normal(size=size),
        paths={end: None if end % 2 else rng.normal(size=OBS_DIM) for end in ends},
    )


def minibatch(size: int, number: int) -> dict[str, torch.Tensor]:
    """Returns the minibatch of update `number`."""
    rng = np.random.default_rng(number)
    batch = dict(
        obs=rng.normal(size=(size, OBS_DIM)),
        next_obs=rng.normal(size=(size, OBS_DIM)),
        act=rng.uniform(BOX.low, BOX.high, size=(size, 2)),
        rew=3 * rng.normal(size=size),
        terminated=rng.random(size) < 0.3,
    )
    return {k: torch.as_tensor(v, dtype=torch.float32) for k, v in batch.items()}


class Noise:
    """Replaces ``torch.randn_like``: draws the noise of all ranks, returns this learner's rows."""

    def __init__(self, size: int):
        self.size, self.rng = size, np.random.default_rng(1)
        self.part = my_part(size)

    def __call__(self, like: torch.Tensor) -> torch.Tensor:
        if len(like) != len(self.part):  # no minibatch: the check of the networks
            return torch.zeros_like(like)
        noise = torch.empty_like(like)
        capture.run(self._fill, capture.array(noise))
        return noise

    def _fill(self, noise):
        noise[:] = self.rng.normal(size=(self.size, noise.shape[1]))[self.part]


def train_on_fixed_data(name: str, size: int, folder: Path, **kwargs) -> torch.nn.Module:
    """Trains with an algorithm of `SIZES` on fixed data of the given size."""
    algorithm, _, discrete = name.partition("-")
    env_fn = Made(action_space=Discrete(3) if discrete else BOX)
    kwargs = KWARGS[algorithm] | dict(logger_kwargs=dict(output_dir=folder)) | kwargs
    with pytest.MonkeyPatch.context() as patch:
        if algorithm in ON_POLICY:
            fixed = _fixed_trajectories(trajectories(size, bool(discrete)))
            patch.setattr(f"spinup.algos.{algorithm}.TrajectoryBuffer", fixed)
            return train(algorithm, env_fn, folder, steps_per_epoch=size, **kwargs)
        noise = Noise(size)
        patch.setattr(f"spinup.algos.{algorithm}.ReplayBuffer", _fixed_replay(size, noise))
        patch.setattr("torch.randn_like", noise)
        return train(algorithm, env_fn, folder, batch_size=size, **OFF_POLICY_KWARGS, **kwargs)


def _fixed_trajectories(data):
    class FixedTrajectories(TrajectoryBuffer):
        def gather(self):
            part = my_part(len(data["rew"]))
            for key in ("obs", "act", "rew"):
                getattr(self, key)[:] = data[key][part]
            first, last = part[0], part[-1] + 1
            self.path_ends = [
                (end - first, last_obs)
                for end, last_obs in data["paths"].items()
                if first < end <= last
            ]
            super().gather()

    return FixedTrajectories


def _fixed_replay(size, noise):
    class FixedReplay(ReplayBuffer):
        draws = 0

        def __init__(self, *args):
            super().__init__(*args)
            noise.part = self.part = self.group.gather(my_part(size))

        def _draw(self, out):
            part = self.part
            assert len(part) == len(out)
            batch = minibatch(size, self.draws)
            columns = (batch[k].reshape(size, -1) for k in ReplayBuffer.order)
            out[:] = torch.cat(list(columns), dim=1)[part]
            self.draws += 1

    return FixedReplay


if __name__ == "__main__":
    for name, sizes in SIZES.items():
        for size in sizes:
            folder = Path(sys.argv[1], f"{name}-{size}")
            ac = train_on_fixed_data(name, size, folder)
            params = {k: v.numpy() for k, v in ac.state_dict().items()}
            np.savez(f"{folder}-{proc_id()}.npz", **params)
    settings = dict(epochs=1, train_pi_iters=60, pi_lr=2e-4)
    for number, target_kl in enumerate(TARGET_KLS):
        folder = Path(sys.argv[1], f"stops-{number}")
        train_on_fixed_data("ppo", FEW_STEPS, folder, target_kl=target_kl, **settings)
