"""Networks: MLPs, policies and critics, and the actor-critics made of them.

On-policy algorithms need ``ac.pi`` and ``ac.v`` (`MLPActorCritic`); off-policy ones ``ac.pi`` and
twin critics, as one stacked module ``ac.q`` or as two, ``ac.q1`` and ``ac.q2``
(`SquashedGaussianActorCritic` for SAC, `DeterministicActorCritic` for TD3).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium.spaces import Box, Discrete, Space
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal

LOG_STD_MIN, LOG_STD_MAX = -20, 2


# --- Multi-layer perceptrons ----------------------------------------------------------------------


class StackedLinear(nn.Module):
    """Several linear layers of one shape, evaluated as one batched matrix product.

    Args:
        num_stacked: number of layers.
        in_features, out_features: as of ``nn.Linear``, whose initial values each layer has.

    Input of shape ``(batch, in_features)``, seen by every layer, or
    ``(num_stacked, batch, in_features)``; output of shape ``(num_stacked, batch, out_features)``.
    """

    def __init__(self, num_stacked: int, in_features: int, out_features: int):
        super().__init__()
        layers = [nn.Linear(in_features, out_features) for _ in range(num_stacked)]
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))
        self.bias = nn.Parameter(torch.stack([layer.bias.detach()[None] for layer in layers]))

    def forward(self, x: Tensor) -> Tensor:
        return _affine(x, self.weight, self.bias)

    def first(self, x: Tensor) -> Tensor:
        """Evaluates the first layer: ``(batch, in_features)`` to ``(batch, out_features)``."""
        return torch.addmm(self.bias[0], x, self.weight[0].t())


class MLP(nn.Sequential):
    """Linear layers with activations between them.

    Where the activations are ReLU, Tanh or Identity the network is one node of the autograd graph,
    with its backward pass in closed form: the same numbers for a fraction of the overhead.
    """

    def forward(self, *inputs: Tensor) -> Tensor:
        """Evaluates the network.

        Args:
            *inputs: one or several ``(batch, features)``, which are concatenated; or one
                observation, ``(features,)``.
        """
        if inputs[0].dim() == 1:
            return self(*[x[None] for x in inputs]).squeeze(-2)
        layers = list(self._modules.values())
        activations = [type(a) for a in layers[1::2]]
        if not all(a in _ACTIVATIONS for a in activations):
            return super().forward(torch.cat(inputs, dim=-1))
        params = [p for linear in layers[::2] for p in linear._parameters.values()]
        if torch.is_grad_enabled():
            return _MLPFunction.apply(activations, len(inputs), *inputs, *params)
        return _evaluate(torch.cat(inputs, dim=-1), activations, params)


def mlp(
    sizes: Sequence[int],
    activation: type[nn.Module],
    output_activation: type[nn.Module] = nn.Identity,
    num_stacked: int | None = None,
) -> MLP:
    """Builds a multi-layer perceptron.

    Args:
        sizes: features of the input, of each hidden layer, and of the output.
        activation: class of the activation after each hidden layer, such as ``nn.Tanh``.
        output_activation: class of the activation after the last layer.
        num_stacked: build this many networks as one (`StackedLinear`); a plain network if None.
    """
    layers: list[nn.Module] = []
    for i, (n_in, n_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        if num_stacked is None:
            layers.append(nn.Linear(n_in, n_out))
        else:
            layers.append(StackedLinear(num_stacked, n_in, n_out))
        layers.append(activation() if i < len(sizes) - 2 else output_activation())
    return MLP(*layers)


def _affine(x, weight, bias):
    """Computes ``x @ weight.T + bias``, batched where the weight is a stack of matrices."""
    if weight.dim() == 2:
        return torch.addmm(bias, x, weight.t()) if x.dim() == 2 else F.linear(x, weight, bias)
    x = x.expand(len(weight), -1, -1) if x.dim() == 2 else x
    return torch.baddbmm(bias, x, weight.transpose(1, 2))


def _product(a, b):
    """Computes ``a @ b``, transposed where the result is then wide: up to three times as fast."""
    if b.shape[-1] < a.shape[-2]:
        return (b.transpose(-2, -1) @ a.transpose(-2, -1)).transpose(-2, -1)
    return a @ b


def _tanh_(x):
    """Overwrites `x` with its tanh; on a CPU by NumPy's, seven times as fast as PyTorch's."""
    if x.device.type != "cpu":
        return x.tanh_()
    array = x.numpy()
    np.tanh(array, out=array)
    return x


def _relu_backward_(grad, out):
    return torch.ops.aten.threshold_backward.grad_input(grad, out, 0, grad_input=grad)


def _tanh_backward_(grad, out):
    return torch.ops.aten.tanh_backward.grad_input(grad, out, grad_input=grad)


# Each activation, and the gradient through it from that of its output and the output: in place,
# since what fills the cache decides the speed.
_ACTIVATIONS = {
    nn.Identity: (lambda x: x, lambda grad, out: grad),
    nn.Tanh: (_tanh_, _tanh_backward_),
    nn.ReLU: (torch.relu_, _relu_backward_),
}


def _evaluate(x, activations, params, outputs=None):
    """Returns ``h[n]`` of ``h[i + 1] = f(h[i] @ W[i].T + b[i])``, ``h[0] = x``.

    Each ``h[i]`` is also appended to `outputs`, where a list is given.
    """
    for i, activation in enumerate(activations):
        if outputs is not None:
            outputs.append(x)
        x = _ACTIVATIONS[activation][0](_affine(x, params[2 * i], params[2 * i + 1]))
    if outputs is not None:
        outputs.append(x)
    return x


class _MLPFunction(torch.autograd.Function):
    """An MLP as one node of the autograd graph."""

    @staticmethod
    def forward(ctx, activations, num_inputs, *tensors):
        inputs, params = tensors[:num_inputs], tensors[num_inputs:]
        x = torch.cat(inputs, dim=-1) if num_inputs > 1 else inputs[0]
        outputs = []
        result = _evaluate(x, activations, params, outputs)
        ctx.activations, ctx.params = activations, params
        ctx.widths = [x.shape[-1] for x in inputs]
        ctx.save_for_backward(*outputs, *params[::2])
        return result

    @staticmethod
    def backward(ctx, grad):
        _refuse_second_derivatives()
        n, num_inputs = len(ctx.activations), len(ctx.widths)
        outputs, weights = ctx.saved_tensors[: n + 1], ctx.saved_tensors[n + 1 :]
        needs_input = ctx.needs_input_grad[2 : 2 + num_inputs]
        needs_param = ctx.needs_input_grad[2 + num_inputs :]
        input_grads, param_grads = [None] * num_inputs, [None] * (2 * n)
        grad = grad.clone(memory_format=torch.contiguous_format)  # autograd's own must not change
        for i in reversed(range(n)):
            grad = _ACTIVATIONS[ctx.activations[i]][1](grad, outputs[i + 1])
            weight, bias = ctx.params[2 * i : 2 * i + 2]
            if needs_param[2 * i]:
                param_grads[2 * i] = _weight_grad(grad, outputs[i], weight)
            if needs_param[2 * i + 1]:
                by_bias = grad.sum(-2, keepdim=grad.dim() == 3)
                param_grads[2 * i + 1] = _accumulated(by_bias, bias)
            if i > 0:
                grad = grad @ weights[i]
        seen_by_all = grad.dim() > outputs[0].dim()  # one input, seen by a stack of networks
        start = 0
        for j, width in enumerate(ctx.widths):
            if needs_input[j]:
                by_input = _product(grad, weights[0][..., start : start + width])
                input_grads[j] = by_input.sum(0) if seen_by_all else by_input
            start += width
        return None, None, *input_grads, *param_grads


_adds_in_place = False


@contextlib.contextmanager
def gradients_in_place() -> Iterator[None]:
    """Has closed-form backward passes add to gradients that are allocated, past autograd.

    The sums are the same, for one pass over the memory instead of three. In the block,
    ``torch.autograd.grad`` doesn't see the gradients of such parameters: ``backward()`` does.
    """
    global _adds_in_place
    before, _adds_in_place = _adds_in_place, True
    try:
        yield
    finally:
        _adds_in_place = before


def _weight_grad(grad, x, weight):
    """Returns ``grad.T @ x``; or adds it to the weight's gradient, and returns None."""
    in_place = _adds_in_place and weight.grad is not None
    if in_place and weight.dim() == x.dim() == 2:
        weight.grad.addmm_(grad.t(), x)
    elif in_place and weight.dim() == x.dim() == 3:
        weight.grad.baddbmm_(grad.transpose(1, 2), x)
    else:
        return _accumulated(_product(grad.transpose(-2, -1), x), weight)


def _accumulated(grad, param):
    """Returns a parameter's gradient; or adds it in place, and returns None."""
    if not _adds_in_place or param.grad is None or param.grad.shape != grad.shape:
        return grad
    param.grad.add_(grad)


def _refuse_second_derivatives():
    """Raises in a backward pass with ``create_graph=True``, which would leave terms out."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "The library's networks have first derivatives only; for second ones (a gradient "
            "penalty, say) build the network from nn.Sequential"
        )


def count_vars(module: nn.Module) -> int:
    """Counts a module's parameters."""
    return sum(p.numel() for p in module.parameters())


# --- On-policy ------------------------------------------------------------------------------------


class Actor(nn.Module):
    """A stochastic policy with a tractable density. Subclasses say which."""

    def distribution(self, obs: Tensor) -> Distribution:
        """Returns the distribution of actions for observations of shape ``(batch, obs_dim)``."""
        raise NotImplementedError

    def log_prob(self, pi: Distribution, act: Tensor) -> Tensor:
        """Returns the log-probabilities ``(batch,)`` of actions under such a distribution."""
        return pi.log_prob(act)

    def forward(self, obs: Tensor, act: Tensor | None = None) -> tuple[Distribution, Tensor | None]:
        """Returns the distribution and, where actions are given, their log-density ``(batch,)``."""
        pi = self.distribution(obs)
        return pi, None if act is None else self.log_prob(pi, act)


class MLPCategoricalActor(Actor):
    """Discrete actions: a softmax over the network's outputs."""

    def __init__(self, obs_dim, act_dim, hidden_sizes, activation):
        super().__init__()
        self.logits_net = mlp([obs_dim, *hidden_sizes, act_dim], activation)

    def distribution(self, obs: Tensor) -> Distribution:
        return Categorical(logits=self.logits_net(obs), validate_args=False)


class MLPGaussianActor(Actor):
    """Continuous actions: a diagonal Gaussian whose deviation doesn't depend on the state."""

    def __init__(self, obs_dim, act_dim, hidden_sizes, activation):
        super().__init__()
        self.log_std = nn.Parameter(torch.full((act_dim,), -0.5))
        self.mu_net = mlp([obs_dim, *hidden_sizes, act_dim], activation)

    def distribution(self, obs: Tensor) -> Distribution:
        mu = self.mu_net(obs)
        normal = Normal(mu, self.log_std.exp().expand_as(mu), validate_args=False)
        return Independent(normal, 1, validate_args=False)

    def log_prob(self, pi: Distribution, act: Tensor) -> Tensor:
        # As pi.log_prob, but the logarithm is not taken of a deviation whose logarithm is known.
        exponent = ((act - pi.mean) * (-self.log_std).exp()).square().sum(-1)
        return -0.5 * exponent - self.log_std.sum() - 0.5 * act.shape[-1] * math.log(2 * math.pi)


class MLPCritic(nn.Module):
    """A state-value function: observations ``(batch, obs_dim)`` to values ``(batch,)``."""

    def __init__(self, obs_dim, hidden_sizes, activation):
        super().__init__()
        self.v_net = mlp([obs_dim, *hidden_sizes, 1], activation)

    def forward(self, obs: Tensor) -> Tensor:
        return self.v_net(obs).squeeze(-1)


class MLPActorCritic(nn.Module):
    """Policy and state-value function of the on-policy algorithms.

    Args:
        observation_space: a one-dimensional Box.
        action_space: a Box, or Discrete.
        hidden_sizes: units of each hidden layer, of both networks.
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
        """Samples actions; returns them with the observations' values and the log-densities."""
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
        # Not saved: they belong to the environment, not to what is learned.
        self.register_buffer("mid", (high + low) / 2, persistent=False)
        self.register_buffer("half_range", (high - low) / 2, persistent=False)

    def to_box(self, squashed: Tensor) -> Tensor:
        """Maps ``[-1, 1]`` to the Box."""
        return torch.addcmul(self.mid, self.half_range, squashed)


class DeterministicActor(_BoxActor):
    """Observations ``(batch, obs_dim)`` to actions ``(batch, act_dim)``."""

    def __init__(self, observation_space, action_space, hidden_sizes, activation):
        super().__init__(action_space)
        sizes = [space_dim(observation_space), *hidden_sizes, space_dim(action_space)]
        self.pi_net = mlp(sizes, activation, nn.Tanh)

    def forward(self, obs: Tensor) -> Tensor:
        return self.to_box(self.pi_net(obs))


class SquashedGaussianActor(_BoxActor):
    """A Gaussian, its deviation dependent on the state, squashed by tanh to the Box."""

    def __init__(self, observation_space, action_space, hidden_sizes, activation):
        super().__init__(action_space)
        sizes = [space_dim(observation_space), *hidden_sizes, 2 * space_dim(action_space)]
        self.net = mlp(sizes, activation)

    def forward(
        self, obs: Tensor, deterministic: bool = False, with_logprob: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Samples actions by reparameterisation, so that gradients flow into them.

        Args:
            obs: observations, ``(batch, obs_dim)``.
            deterministic: take the mean before squashing instead of a sample.
            with_logprob: also compute the log-densities.

        Returns:
            Actions ``(batch, act_dim)``, and their log-densities ``(batch,)`` or None. The density
            is that of the action scaled to [-1, 1], so that the entropy doesn't depend on the
            units of the Box.
        """
        out = self.net(obs)
        draw = torch.zeros_like if deterministic else torch.randn_like
        squashed, logp = _SquashedGaussian.apply(out, draw(out[..., : len(self.mid)]))
        return self.to_box(squashed), logp if with_logprob else None


class _SquashedGaussian(torch.autograd.Function):
    """Samples ``tanh(u)``, ``u = mu + std * eps``, with its log-density, as one autograd node.

    Appendix C of arXiv:1801.01290. As ``eps = (u - mu) / std``, the Gaussian's exponent depends on
    no parameter; and ``log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u))`` doesn't overflow. Its
    derivative by u is ``-2 tanh(u)``.
    """

    @staticmethod
    def forward(ctx, out, eps):
        mu, log_std = out.chunk(2, dim=-1)
        clamped = log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)
        noise = clamped.exp() * eps
        u = mu + noise
        squashed = torch.tanh(u)
        gaussian = torch.addcmul(clamped, eps, eps, value=0.5)  # less a constant, as is the next
        squashing = 2 * (F.logsigmoid(2 * u) - u)  # -softplus(-2u) is logsigmoid(2u)
        constant = eps.shape[-1] * (0.5 * math.log(2 * math.pi) + 2 * math.log(2))
        logp = -(gaussian + squashing).sum(-1) - constant
        ctx.save_for_backward(squashed, noise, log_std == clamped)
        return squashed, logp

    @staticmethod
    def backward(ctx, grad_squashed, grad_logp):
        _refuse_second_derivatives()
        squashed, noise, inside = ctx.saved_tensors
        grad_logp = grad_logp.unsqueeze(-1)
        grad_mu = grad_squashed * (1 - squashed.square()) + 2 * grad_logp * squashed
        grad_log_std = (grad_mu * noise - grad_logp) * inside
        return torch.cat([grad_mu, grad_log_std], dim=-1), None


class TwinMLPCritic(nn.Module):
    """Two action-value functions as one stacked network."""

    def __init__(self, obs_dim, act_dim, hidden_sizes, activation):
        super().__init__()
        self.q_net = mlp([obs_dim + act_dim, *hidden_sizes, 1], activation, num_stacked=2)

    def forward(self, obs: Tensor, act: Tensor) -> Tensor:
        """Returns both values, ``(2, batch)``."""
        return self.q_net(obs, act).squeeze(-1)

    def first(self, obs: Tensor, act: Tensor) -> Tensor:
        """Returns the value of the first critic alone, ``(batch,)``."""
        x = torch.cat([obs, act], dim=-1)
        for layer in self.q_net:
            x = layer.first(x) if isinstance(layer, StackedLinear) else layer(x)
        return x.squeeze(-1)


class TwinCritic(nn.Module):
    """Two critics of a user's own, called as one: see `TwinMLPCritic`."""

    def __init__(self, q1: nn.Module, q2: nn.Module):
        super().__init__()
        self.q1, self.q2 = q1, q2

    def forward(self, obs: Tensor, act: Tensor) -> Tensor:
        """Returns both values, ``(2, batch)``."""
        return torch.stack([self.q1(obs, act), self.q2(obs, act)])

    def first(self, obs: Tensor, act: Tensor) -> Tensor:
        """Returns the value of the first critic alone, ``(batch,)``."""
        return self.q1(obs, act)


def twin_critic(ac: Any) -> nn.Module:
    """Returns an actor-critic's two critics as one module: its ``q``, or its ``q1`` and ``q2``."""
    return ac.q if hasattr(ac, "q") else TwinCritic(ac.q1, ac.q2)


class _OffPolicyActorCritic(nn.Module):
    """Policy and twin critics over a bounded Box.

    Args:
        observation_space: a one-dimensional Box.
        action_space: a bounded Box; bounds may differ by dimension and be asymmetric.
        hidden_sizes: units of each hidden layer, of all networks.
        activation: class of the activation.
    """

    actor_class: type[nn.Module]

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
        self.q = TwinMLPCritic(obs_dim, act_dim, hidden_sizes, activation)

    def q1(self, obs: Tensor, act: Tensor) -> Tensor:
        """Returns the first critic's values, ``(batch,)``."""
        return self.q(obs, act)[0]

    def q2(self, obs: Tensor, act: Tensor) -> Tensor:
        """Returns the second critic's values, ``(batch,)``."""
        return self.q(obs, act)[1]


class DeterministicActorCritic(_OffPolicyActorCritic):
    """Deterministic policy and twin critics, of TD3."""

    actor_class = DeterministicActor

    @torch.no_grad()
    def act(self, obs: Tensor) -> np.ndarray:
        """Returns the actions for observations."""
        return self.pi(_beside(self, obs)).cpu().numpy()


class SquashedGaussianActorCritic(_OffPolicyActorCritic):
    """Squashed Gaussian policy and twin critics, of SAC."""

    actor_class = SquashedGaussianActor

    @torch.no_grad()
    def act(self, obs: Tensor, deterministic: bool = False) -> np.ndarray:
        """Returns actions for observations: samples, or the policy's mode before squashing."""
        obs = _beside(self, obs)
        return self.pi(obs, deterministic, with_logprob=False)[0].cpu().numpy()


def _beside(module, x):
    """Returns `x` on the device that a module's parameters are on."""
    return x.to(next(module.parameters()).device)


def space_dim(space: Space) -> int:
    """Returns the number of features of a Box, or of choices of a Discrete space."""
    if isinstance(space, Discrete):
        return int(space.n)
    assert isinstance(space, Box), space
    return math.prod(space.shape)
