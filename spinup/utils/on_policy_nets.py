"""Policies and state-value functions for on-policy algorithms: ``ac.pi`` and ``ac.v``."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from gymnasium.spaces import Discrete, Space
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal

from spinup.utils.envs import space_dim
from spinup.utils.mlp import beside, mlp


class Actor(nn.Module):
    """Base class of stochastic policies with a tractable density, given by `distribution`."""

    def distribution(self, obs: Tensor) -> Distribution:
        """Returns the distribution of actions for observations of shape ``(batch, obs_dim)``."""
        raise NotImplementedError

    def log_prob(self, pi: Distribution, act: Tensor) -> Tensor:
        """Returns the log-probabilities ``(batch,)`` of actions under the distribution `pi`."""
        return pi.log_prob(act)

    def forward(self, obs: Tensor, act: Tensor | None = None) -> tuple[Distribution, Tensor | None]:
        """Returns the distribution, and the log-probabilities ``(batch,)`` of `act` if given."""
        pi = self.distribution(obs)
        return pi, None if act is None else self.log_prob(pi, act)


class MLPCategoricalActor(Actor):
    """A policy over discrete actions: a softmax over the network's outputs."""

    def __init__(self, obs_dim, act_dim, hidden_sizes, activation):
        super().__init__()
        self.logits_net = mlp([obs_dim, *hidden_sizes, act_dim], activation)

    def distribution(self, obs: Tensor) -> Distribution:
        return Categorical(logits=self.logits_net(obs), validate_args=False)


class MLPGaussianActor(Actor):
    """A diagonal Gaussian policy with state-independent standard deviation."""

    def __init__(self, obs_dim, act_dim, hidden_sizes, activation):
        super().__init__()
        self.log_std = nn.Parameter(torch.full((act_dim,), -0.5))
        self.mu_net = mlp([obs_dim, *hidden_sizes, act_dim], activation)

    def distribution(self, obs: Tensor) -> Distribution:
        mu = self.mu_net(obs)
        normal = Normal(mu, self.log_std.exp().expand_as(mu), validate_args=False)
        return Independent(normal, 1, validate_args=False)

    def log_prob(self, pi: Distribution, act: Tensor) -> Tensor:
        # Equal to pi.log_prob(act), but uses log_std, of which pi only has the exponential.
        exponent = ((act - pi.mean) * (-self.log_std).exp()).square().sum(-1)
        return -0.5 * exponent - self.log_std.sum() - 0.5 * act.shape[-1] * math.log(2 * math.pi)


class MLPCritic(nn.Module):
    """A state-value function: maps observations ``(batch, obs_dim)`` to values ``(batch,)``."""

    def __init__(self, obs_dim, hidden_sizes, activation):
        super().__init__()
        self.v_net = mlp([obs_dim, *hidden_sizes, 1], activation)

    def forward(self, obs: Tensor) -> Tensor:
        return self.v_net(obs).squeeze(-1)


class MLPActorCritic(nn.Module):
    """Policy and state-value function for on-policy algorithms.

    Args:
        observation_space: a one-dimensional Box.
        action_space: a Box or Discrete.
        hidden_sizes: number of units in each hidden layer of both networks.
        activation: class of the activation.
    """

    def __init__(
        self,
        observation_space: Space,
        action_space: Space,
        hidden_sizes: Sequence[int] = (64, 64),
        activation: type[nn.Module] = nn.Tanh,
    ):
        super().__init__()
        obs_dim = space_dim(observation_space)
        actor = MLPCategoricalActor if isinstance(action_space, Discrete) else MLPGaussianActor
        self.pi = actor(obs_dim, space_dim(action_space), hidden_sizes, activation)
        self.v = MLPCritic(obs_dim, hidden_sizes, activation)

    @torch.no_grad()
    def step(self, obs: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Samples actions; returns the actions, the values of `obs`, and the log-probabilities."""
        obs = beside(self, obs)
        pi = self.pi.distribution(obs)
        act = pi.sample()
        return act.cpu().numpy(), self.v(obs).cpu().numpy(), pi.log_prob(act).cpu().numpy()

    @torch.no_grad()
    def act(self, obs: Tensor, deterministic: bool = False) -> np.ndarray:
        """Samples actions, or returns the most likely ones."""
        pi = self.pi.distribution(beside(self, obs))
        return (pi.mode if deterministic else pi.sample()).cpu().numpy()
