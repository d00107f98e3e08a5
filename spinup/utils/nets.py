"""Policies and critics for off-policy algorithms, and all networks under one name.

DDPG needs ``ac.pi`` and a critic ``ac.q`` (`SingleCriticActorCritic`). SAC and TD3 need twin
critics, either as one stacked module ``ac.q`` or as ``ac.q1`` and ``ac.q2``
(`SquashedGaussianActorCritic` for SAC, `DeterministicActorCritic` for TD3). The on-policy networks
are in `on_policy_nets`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium.spaces import Space
from torch import Tensor, nn

from spinup.fast import nodes
from spinup.utils.envs import space_dim
from spinup.utils.mlp import MLP, StackedLinear, beside, mlp
from spinup.utils.on_policy_nets import (
    Actor,
    MLPActorCritic,
    MLPCategoricalActor,
    MLPCritic,
    MLPGaussianActor,
)

__all__ = [
    "MLP",
    "Actor",
    "DeterministicActor",
    "DeterministicActorCritic",
    "MLPActorCritic",
    "MLPCategoricalActor",
    "MLPCritic",
    "MLPGaussianActor",
    "MLPQFunction",
    "SingleCriticActorCritic",
    "SquashedGaussianActor",
    "SquashedGaussianActorCritic",
    "StackedLinear",
    "TwinMLPCritic",
    "mlp",
    "squashed_gaussian",
]

LOG_STD_MIN, LOG_STD_MAX = -20, 2


class _BoxActor(nn.Module):
    """A policy whose actions, squashed by tanh, fill a Box: ``mid + half_range * tanh(u)``."""

    mid: Tensor
    half_range: Tensor

    def __init__(self, action_space):
        super().__init__()
        bounds = action_space.low, action_space.high
        low, high = (torch.as_tensor(x.reshape(-1), dtype=torch.float32) for x in bounds)
        # Not saved, because they come from the environment and aren't learned
        self.register_buffer("mid", (high + low) / 2, persistent=False)
        self.register_buffer("half_range", (high - low) / 2, persistent=False)

    def to_box(self, squashed: Tensor) -> Tensor:
        """Maps ``[-1, 1]`` to the Box."""
        return torch.addcmul(self.mid, self.half_range, squashed)


class DeterministicActor(_BoxActor):
    """A policy that maps observations ``(batch, obs_dim)`` to actions ``(batch, act_dim)``."""

    def __init__(self, observation_space, action_space, hidden_sizes, activation):
        super().__init__(action_space)
        sizes = [space_dim(observation_space), *hidden_sizes, space_dim(action_space)]
        self.pi_net = mlp(sizes, activation, nn.Tanh)

    def forward(self, obs: Tensor) -> Tensor:
        return self.to_box(self.pi_net(obs))


def squashed_gaussian(out: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Samples ``tanh(u)`` for a Gaussian ``u = mu + std * eps``, and computes its log-density.

    ``log p(tanh(u)) = log N(u; mu, std) - log(1 - tanh(u)^2)``, summed over dimensions. Since
    ``(u - mu) / std = eps``, the Gaussian's exponent doesn't depend on the parameters. The last
    logarithm is computed as ``2 (log 2 - u - softplus(-2u))``, which doesn't overflow.

    Args:
        out: ``mu`` and the unclamped ``log(std)``, concatenated, ``(..., 2 * act_dim)``.
        eps: standard normal noise, ``(..., act_dim)``.

    Returns:
        Squashed actions ``(..., act_dim)``, their log-densities ``(...)``, and ``std * eps``.

    Source: appendix C of arXiv:1801.01290.
    """
    mu, log_std = out.chunk(2, dim=-1)
    log_std = log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)
    noise = log_std.exp() * eps
    u = mu + noise
    gaussian = torch.addcmul(log_std, eps, eps, value=0.5)  # constants are below
    squashing = 2 * (F.logsigmoid(2 * u) - u)  # -softplus(-2u) is logsigmoid(2u)
    constant = eps.shape[-1] * (0.5 * math.log(2 * math.pi) + 2 * math.log(2))
    return torch.tanh(u), -(gaussian + squashing).sum(-1) - constant, noise


class SquashedGaussianActor(_BoxActor):
    """A Gaussian policy with state-dependent standard deviation, squashed by tanh to the Box."""

    def __init__(self, observation_space, action_space, hidden_sizes, activation):
        super().__init__(action_space)
        sizes = [space_dim(observation_space), *hidden_sizes, 2 * space_dim(action_space)]
        self.net = mlp(sizes, activation)

    def forward(
        self, obs: Tensor, deterministic: bool = False, with_logprob: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Samples differentiable actions by the reparameterization trick.

        Args:
            obs: observations, ``(batch, obs_dim)``.
            deterministic: return the squashed mean instead of a sample.
            with_logprob: also return the log-densities.

        Returns:
            Actions ``(batch, act_dim)``, and their log-densities ``(batch,)`` or None. The density
            is that of the action scaled to [-1, 1], so that the entropy doesn't depend on the
            units of the Box.
        """
        out = self.net(obs)
        draw = torch.zeros_like if deterministic else torch.randn_like
        eps = draw(out[..., : len(self.mid)])
        if nodes.ENABLED:
            bounds = LOG_STD_MIN, LOG_STD_MAX
            box = self.mid, self.half_range
            act, logp = nodes.squashed_gaussian(squashed_gaussian, bounds, out, eps, *box)
        else:
            squashed, logp, _ = squashed_gaussian(out, eps)
            act = self.to_box(squashed)
        return act, logp if with_logprob else None


class MLPQFunction(nn.Module):
    """An action-value function."""

    def __init__(self, obs_dim, act_dim, hidden_sizes, activation):
        super().__init__()
        self.q_net = mlp([obs_dim + act_dim, *hidden_sizes, 1], activation)

    def forward(self, obs: Tensor, act: Tensor) -> Tensor:
        """Returns the values, ``(batch,)``."""
        return self.q_net(obs, act).squeeze(-1)


class TwinMLPCritic(nn.Module):
    """Two action-value functions as one stacked network."""

    def __init__(self, obs_dim, act_dim, hidden_sizes, activation):
        super().__init__()
        self.q_net = mlp([obs_dim + act_dim, *hidden_sizes, 1], activation, num_stacked=2)

    def forward(self, obs: Tensor, act: Tensor) -> Tensor:
        """Returns both values, ``(2, batch)``."""
        return self.q_net(obs, act).squeeze(-1)

    def first(self, obs: Tensor, act: Tensor) -> Tensor:
        """Returns the first critic's values, ``(batch,)``, without evaluating the second."""
        return self.q_net.first(obs, act).squeeze(-1)


class _OffPolicyActorCritic(nn.Module):
    """Policy and critic over a bounded Box.

    Args:
        observation_space: a one-dimensional Box.
        action_space: a bounded Box; bounds may differ by dimension and be asymmetric.
        hidden_sizes: number of units in each hidden layer of all networks.
        activation: class of the activation.
    """

    actor_class: type[nn.Module]
    critic_class: type[nn.Module]

    def __init__(
        self,
        observation_space: Space,
        action_space: Space,
        hidden_sizes: Sequence[int] = (256, 256),
        activation: type[nn.Module] = nn.ReLU,
    ):
        super().__init__()
        self.pi = self.actor_class(observation_space, action_space, hidden_sizes, activation)
        obs_dim, act_dim = space_dim(observation_space), space_dim(action_space)
        self.q = self.critic_class(obs_dim, act_dim, hidden_sizes, activation)


class SingleCriticActorCritic(_OffPolicyActorCritic):
    """Deterministic policy and one critic, for DDPG."""

    actor_class, critic_class = DeterministicActor, MLPQFunction

    @torch.no_grad()
    def act(self, obs: Tensor) -> np.ndarray:
        """Returns the actions for observations."""
        return self.pi(beside(self, obs)).cpu().numpy()


class _TwinCriticActorCritic(_OffPolicyActorCritic):
    critic_class = TwinMLPCritic

    def q1(self, obs: Tensor, act: Tensor) -> Tensor:
        """Returns the first critic's values, ``(batch,)``."""
        return self.q(obs, act)[0]

    def q2(self, obs: Tensor, act: Tensor) -> Tensor:
        """Returns the second critic's values, ``(batch,)``."""
        return self.q(obs, act)[1]


class DeterministicActorCritic(_TwinCriticActorCritic):
    """Deterministic policy and twin critics, for TD3."""

    actor_class = DeterministicActor

    act = SingleCriticActorCritic.act


class SquashedGaussianActorCritic(_TwinCriticActorCritic):
    """Squashed Gaussian policy and twin critics, for SAC."""

    actor_class = SquashedGaussianActor

    @torch.no_grad()
    def act(self, obs: Tensor, deterministic: bool = False) -> np.ndarray:
        """Returns actions for observations: samples, or the squashed means."""
        obs = beside(self, obs)
        return self.pi(obs, deterministic, with_logprob=False)[0].cpu().numpy()
