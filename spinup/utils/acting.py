"""The policy that steps environments: on the CPU, one observation at a time, without autograd.

Stepping needs the action alone. For the library's own networks a NumPy copy of the policy acts in
about 10 microseconds, where a PyTorch module takes some hundred; it reads the weights where the
module has them, so that on a CPU it needs no refreshing. A module of a user's own acts itself.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from spinup.utils import nets


class ActingPolicy:
    """A policy for stepping an environment.

    Args:
        act: function of an observation ``(obs_dim,)`` and whether to be deterministic.
        refresh: function that fetches the module's present weights.
    """

    def __init__(self, act: Callable, refresh: Callable[[], None] = lambda: None):
        self._act, self.refresh = act, refresh

    def __call__(self, obs: np.ndarray, deterministic: bool = False) -> np.ndarray:
        """Returns an action: an array ``(act_dim,)``, or the index of a Discrete action."""
        return self._act(obs, deterministic)


def acting_policy(ac: Any, rng: np.random.Generator) -> ActingPolicy:
    """Makes the acting policy of an actor-critic.

    Args:
        ac: the actor-critic. One of a user's own needs a method ``act(obs)``, and ``act(obs,
            deterministic)`` if it is to be deterministic in tests.
        rng: generator of the actions' noise (a user's own module draws from torch's).
    """
    if getattr(type(ac), "act", None) not in _LIBRARY_ACTS:
        return _module_policy(ac)
    make = _NUMPY_POLICIES.get(type(ac.pi))
    net = next((m for m in ac.pi.children() if type(m) is nets.MLP), None)
    if make is None or net is None or not all(type(a) in _ACTIVATIONS for a in list(net)[1::2]):
        return _module_policy(ac)
    mirror = _NumpyMirror(ac.pi)
    return ActingPolicy(make(mirror, rng), mirror.refresh)


class _NumpyMirror:
    """A policy's tensors as NumPy arrays: the same memory on a CPU, else copies."""

    def __init__(self, pi):
        self.module = pi
        tensors = {**dict(pi.named_parameters()), **dict(pi.named_buffers())}
        self.arrays = {k: v.detach().cpu().numpy() for k, v in tensors.items()}
        self._copied = [(v, self.arrays[k]) for k, v in tensors.items() if v.device.type != "cpu"]

    def refresh(self):
        for tensor, array in self._copied:
            array[...] = tensor.detach().cpu().numpy()

    def net(self):
        """Returns the policy's MLP as a function of one observation."""
        name, mlp = next((k, m) for k, m in self.module.named_children() if type(m) is nets.MLP)
        layers = [
            (self.arrays[f"{name}.{i}.weight"], self.arrays[f"{name}.{i}.bias"])
            for i in range(0, len(mlp), 2)
        ]
        activations = [_ACTIVATIONS[type(a)] for a in list(mlp)[1::2]]
        layers = [(w, b, f) for (w, b), f in zip(layers, activations, strict=True)]

        def forward(obs):
            x = obs.astype(np.float32, copy=False)
            for weight, bias, activation in layers:
                x = activation(weight.dot(x) + bias)
            return x

        return forward


_ACTIVATIONS: dict[type[nn.Module], Callable] = {
    nn.Identity: lambda x: x,
    nn.Tanh: np.tanh,
    nn.ReLU: lambda x: np.maximum(x, 0, out=x),
}


def _categorical(mirror, rng):
    net = mirror.net()

    def act(obs, deterministic):
        logits = net(obs)
        if deterministic:
            return logits.argmax()
        # In double precision the draw stays below the last sum: in single it may round up to it,
        # and pick an action of no probability.
        chances = np.exp(logits - logits.max()).cumsum(dtype=np.float64)
        return chances.searchsorted(rng.random() * chances[-1], "right")

    return act


def _gaussian(mirror, rng):
    net, log_std = mirror.net(), mirror.arrays["log_std"]

    def act(obs, deterministic):
        mu = net(obs)
        if deterministic:
            return mu
        return mu + np.exp(log_std) * rng.standard_normal(len(mu), dtype=np.float32)

    return act


def _squashed_gaussian(mirror, rng):
    net, mid, half_range = mirror.net(), mirror.arrays["mid"], mirror.arrays["half_range"]

    def act(obs, deterministic):
        out = net(obs)
        u = out[: len(mid)]
        if not deterministic:
            log_std = np.minimum(np.maximum(out[len(mid) :], nets.LOG_STD_MIN), nets.LOG_STD_MAX)
            u = u + np.exp(log_std) * rng.standard_normal(len(mid), dtype=np.float32)
        return mid + half_range * np.tanh(u)

    return act


def _deterministic(mirror, rng):
    net, mid, half_range = mirror.net(), mirror.arrays["mid"], mirror.arrays["half_range"]
    return lambda obs, deterministic: mid + half_range * net(obs)


_NUMPY_POLICIES = {
    nets.MLPCategoricalActor: _categorical,
    nets.MLPGaussianActor: _gaussian,
    nets.SquashedGaussianActor: _squashed_gaussian,
    nets.DeterministicActor: _deterministic,
}


# A class that overrides one of these acts in a way of its own.
_LIBRARY_ACTS = {
    nets.MLPActorCritic.act,
    nets.DeterministicActorCritic.act,
    nets.SquashedGaussianActorCritic.act,
}


def _module_policy(ac):
    """Acts with the module itself, or with its copy on the CPU where it trains elsewhere."""
    on_cpu = all(p.device.type == "cpu" for p in ac.parameters())
    module = ac if on_cpu else copy.deepcopy(ac).cpu()
    takes_mode = takes_deterministic(module.act)

    def refresh():
        if not on_cpu:
            module.load_state_dict(ac.state_dict())

    def act(obs, deterministic):
        with torch.no_grad():
            obs = torch.as_tensor(obs, dtype=torch.float32)
            has_mode = deterministic and takes_mode
            action = module.act(obs, deterministic=True) if has_mode else module.act(obs)
        return np.asarray(action)

    return ActingPolicy(act, refresh)


def takes_deterministic(act: Any) -> bool:
    """Says whether a method ``act`` has a parameter ``deterministic``."""
    return "deterministic" in inspect.signature(act).parameters
