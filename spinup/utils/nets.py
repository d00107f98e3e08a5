"""Networks: MLPs, policies and critics, and the actor-critics made of them.

On-policy algorithms need ``ac.pi`` and ``ac.v`` (`MLPActorCritic`). DDPG needs ``ac.pi`` and a
critic ``ac.q`` (`SingleCriticActorCritic`). SAC and TD3 need twin critics, either as one stacked
module ``ac.q`` or as ``ac.q1`` and ``ac.q2`` (`SquashedGaussianActorCritic` for SAC,
`DeterministicActorCritic` for TD3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium.spaces import Discrete, Space
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal

from spinup.fast import nodes
from spinup.utils.envs import space_dim

LOG_STD_MIN, LOG_STD_MAX = -20, 2


# --- Multi-layer perceptrons ----------------------------------------------------------------------


class StackedLinear(nn.Module):
    """Several linear layers of one shape, evaluated as one batched matrix product.

    The input has shape ``(batch, in_features)``, shared by all layers, or
    ``(num_stacked, batch, in_features)``. The output has shape
    ``(num_stacked, batch, out_features)``. Each layer is initialised as an ``nn.Linear``.

    Args:
        num_stacked: number of layers.
        in_features, out_features: features of the input and the output of each layer.
    """

    def __init__(self, num_stacked: int, in_features: int, out_features: int):
        super().__init__()
        layers = [nn.Linear(in_features, out_features) for _ in range(num_stacked)]
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))
        self.bias = nn.Parameter(torch.stack([layer.bias.detach()[None] for layer in layers]))

    def forward(self, x: Tensor) -> Tensor:
        x = x.expand(len(self.weight), -1, -1) if x.dim() == 2 else x
        return torch.baddbmm(self.bias, x, self.weight.transpose(1, 2))


class MLP(nn.Sequential):
    """Linear layers with activations between them.

    If all activations are ReLU, Tanh or Identity and no layer is modified (by a hook, for example),
    the network is one node of the autograd graph: the same results with less overhead.
    """

    def forward(self, *inputs: Tensor) -> Tensor:
        """Evaluates the network.

        Args:
            *inputs: one or several tensors ``(batch, features)``, which are concatenated;
                ``(features,)`` for a single observation.
        """
        if inputs[0].dim() == 1:
            return MLP.forward(self, *[x[None] for x in inputs]).squeeze(-2)
        if nodes.ENABLED and self.is_plain:
            return nodes.mlp(inputs, list(self))
        return super().forward(torch.cat(inputs, dim=-1))

    def first(self, *inputs: Tensor) -> Tensor:
        """Evaluates only the first network of a stack, with outputs ``(batch, features)``."""
        if nodes.ENABLED and self.is_plain and not nodes.is_changed(self):
            return nodes.mlp(inputs, list(self), first=True)
        return self(*inputs)[0]

    @property
    def is_plain(self) -> bool:
        """True if linear layers and known activations alternate, and none is modified."""
        return nodes.are_plain(list(self), (nn.Linear, StackedLinear))


def mlp(
    sizes: Sequence[int],
    activation: type[nn.Module],
    output_activation: type[nn.Module] = nn.Identity,
    num_stacked: int | None = None,
) -> MLP:
    """Builds a multi-layer perceptron.

    Args:
        sizes: number of features of the input, each hidden layer, and the output.
        activation: class of the activation after each hidden layer, such as ``nn.Tanh``.
        output_activation: class of the activation after the last layer.
        num_stacked: number of networks to build as one stack (`StackedLinear`). If None, build a
            single network.
    """
    layers: list[nn.Module] = []
    for i, (n_in, n_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        if num_stacked is None:
            layers.append(nn.Linear(n_in, n_out))
        else:
            layers.append(StackedLinear(num_stacked, n_in, n_out))
        layers.append(activation() if i < len(sizes) - 2 else output_activation())
    return MLP(*layers)


# --- On-policy ------------------------------------------------------------------------------------


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
        obs = _beside(self, obs)
        pi = self.pi.distribution(obs)
        act = pi.sample()
        return act.cpu().numpy(), self.v(obs).cpu().numpy(), pi.log_prob(act).cpu().numpy()

    @torch.no_grad()
    def act(self, obs: Tensor, deterministic: bool = False) -> np.ndarray:
        """Samples actions, or returns the most likely ones."""
        pi = self.pi.distribution(_beside(self, obs))
        return (pi.mode if deterministic else pi.sample()).cpu().numpy()


# --- Off-policy -----------------------------------------------------------------------------------


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
        return self.pi(_beside(self, obs)).cpu().numpy()


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
        obs = _beside(self, obs)
        return self.pi(obs, deterministic, with_logprob=False)[0].cpu().numpy()


def _beside(module, x):
    """Returns `x` on the device of a module's parameters."""
    return x.to(next(module.parameters()).device)
