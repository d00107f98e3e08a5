"""Observations normalised by their running mean and standard deviation.

The statistics belong to the actor-critic, so that a saved or resumed policy has them. They stay
fixed while data are collected between two updates of the policy. Test episodes don't change them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Space
from torch import Tensor, nn

from spinup.utils.envs import space_dim
from spinup.utils.mpi_tools import sum_in_place

CLIP = 10  # standard deviations


class ObsNormalizer(nn.Module):
    """Maps observations to ``(obs - mean) / std``, clipped to [-10, 10].

    The mean and standard deviation cover all observations that were passed to `update`, on all
    ranks. Before the first call of `update`, observations are only clipped.

    Args:
        obs_dim: number of features.
    """

    shift: Tensor
    scale: Tensor
    count: Tensor
    mean: Tensor
    deviations: Tensor

    def __init__(self, obs_dim: int):
        super().__init__()
        self.register_buffer("shift", torch.zeros(obs_dim))
        self.register_buffer("scale", torch.ones(obs_dim))
        # Number of observations, their mean, and the sum of their squared deviations from it
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(obs_dim, dtype=torch.float64))
        self.register_buffer("deviations", torch.zeros(obs_dim, dtype=torch.float64))

    def forward(self, obs: Tensor) -> Tensor:
        """Normalises observations ``(..., obs_dim)``."""
        obs = obs.to(self.shift.device)
        return ((obs - self.shift) * self.scale).clamp(-CLIP, CLIP)

    def update(self, obs: np.ndarray) -> None:
        """Adds observations ``(n, obs_dim)`` to the statistics. All ranks must call it together.

        Ranks may pass different numbers of observations, or none. The sums are merged as in Chan,
        Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
        Variances" (1979).
        """
        obs = np.asarray(obs, np.float64).reshape(-1, len(self.shift))
        n, sums = np.array([float(len(obs))]), obs.sum(0)
        sum_in_place(n)
        sum_in_place(sums)
        if n == 0:
            return
        mean = sums / n
        deviations = np.square(obs - mean).sum(0)
        sum_in_place(deviations)
        count, total = self.count.item(), self.count.item() + n
        delta = mean - self.mean.cpu().numpy()
        deviations += self.deviations.cpu().numpy() + delta**2 * count * n / total
        mean = self.mean.cpu().numpy() + delta * n / total
        self.count.fill_(total.item())
        self.mean.copy_(torch.from_numpy(mean))
        self.deviations.copy_(torch.from_numpy(deviations))
        self.shift.copy_(self.mean)
        self.scale.copy_(1 / (self.deviations / self.count + 1e-8).sqrt())  # 1e-8 as in Gymnasium


class NormalizedActorCritic(nn.Module):
    """An actor-critic that acts on normalised observations.

    Its networks ``pi``, ``v`` and ``q`` take normalised observations:
    ``ac.pi(ac.normalizer(obs))``. Its methods ``act`` and ``step`` take raw observations.

    Args:
        networks: the actor-critic.
        observation_space: the environment's observation space.
    """

    networks: Any
    normalizer: ObsNormalizer

    def __init__(self, networks: nn.Module, observation_space: Space):
        super().__init__()
        self.networks = networks
        device = next(networks.parameters()).device
        self.normalizer = ObsNormalizer(space_dim(observation_space)).to(device)
        for name in ("pi", "v", "q", "q1", "q2"):
            if hasattr(networks, name):  # not registered, as it is part of `networks`
                object.__setattr__(self, name, getattr(networks, name))

    @torch.no_grad()
    def act(self, obs: Tensor, *args: Any, **kwargs: Any) -> np.ndarray:
        """Normalises a raw observation, and calls the actor-critic's ``act``."""
        return self.networks.act(self.normalizer(obs), *args, **kwargs)

    @torch.no_grad()
    def step(self, obs: Tensor) -> Any:
        """Normalises a raw observation, and calls the actor-critic's ``step``."""
        return self.networks.step(self.normalizer(obs))


def networks_of(ac: Any) -> Any:
    """Returns the actor-critic without its normaliser."""
    return ac.networks if isinstance(ac, NormalizedActorCritic) else ac


def normalizer_of(ac: Any) -> ObsNormalizer | None:
    """Returns the normaliser of an actor-critic, or None if it has none."""
    return ac.normalizer if isinstance(ac, NormalizedActorCritic) else None
