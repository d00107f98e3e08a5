"""The policy that steps environments: on the CPU, one observation at a time, without autograd.

Stepping an environment needs only the action. For the library's networks, a NumPy mirror of the
policy acts in about 10 microseconds, where a PyTorch module takes hundreds. On a CPU the mirror
shares the module's memory, so that training updates it. A user's actor-critic acts by its own
method ``act``.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributions import Categorical, Independent, Normal

from spinup.fast.nodes import is_changed
from spinup.utils import nets
from spinup.utils.groups import Group
from spinup.utils.normalization import CLIP, networks_of, normalizer_of


class ActingPolicy:
    """A policy for stepping an environment.

    Args:
        act: function ``act(obs, deterministic)`` of one observation ``(obs_dim,)``.
        refresh: function that fetches the module's current weights.
    """

    def __init__(self, act: Callable, refresh: Callable[[], None] = lambda: None):
        self._act, self.refresh = act, refresh

    def __call__(self, obs: np.ndarray, deterministic: bool = False) -> np.ndarray:
        """Returns an action: an array ``(act_dim,)``, or the index of a Discrete action.

        If the network's outputs are NaN, so is the action, which `AdaptedEnv.step` refuses.
        """
        return self._act(obs, deterministic)


def acting_policy(ac: Any, rng: np.random.Generator, group: Group | None = None) -> ActingPolicy:
    """Returns the acting policy of an actor-critic.

    Args:
        ac: the actor-critic. A user's actor-critic needs a method ``act(obs)``, or
            ``act(obs, deterministic)`` for deterministic actions in tests.
        rng: generator of the action noise. A user's actor-critic draws from torch's instead.
        group: ranks that call ``refresh`` together, which then fetches their learner's weights.
    """
    if _is_library_policy(networks_of(ac)):
        policy = _NumpyPolicy(ac.pi, rng, normalizer_of(ac))
        tensors = policy.tensors
    else:
        policy = _module_policy(ac)
        tensors = ac.state_dict
    return policy if group is None or group.size == 1 else _OfLearner(policy, tensors, group)


def _is_library_policy(ac):
    """Returns True if an actor-critic's policy is one of the library's, and is unmodified."""
    if getattr(type(ac), "act", None) not in _LIBRARY_ACTS or "act" in ac.__dict__:
        return False
    net = next((m for m in ac.pi.children() if type(m) is nets.MLP), None)
    if type(ac.pi) not in _NUMPY_POLICIES or net is None:
        return False
    return net.is_plain and not is_changed(net) and not is_changed(ac.pi)


class _OfLearner(ActingPolicy):
    """A policy whose weights a group's learner sends to its actors.

    Args:
        policy: this rank's policy.
        tensors: function that returns all tensors on which `policy` depends.
        group: the ranks.
    """

    def __init__(self, policy, tensors, group):
        def refresh():
            group.fetch(tensors().values())
            policy.refresh()

        super().__init__(policy, refresh)


class _NumpyPolicy(ActingPolicy):
    """A policy that reads its module's tensors as NumPy arrays.

    On a CPU the arrays share the tensors' memory; otherwise they are copies. After ``.to()``,
    ``.double()`` or ``load_state_dict(assign=True)``, the next `refresh` reads the new tensors.
    """

    def __init__(self, pi, rng, normalizer):
        self._pi, self._rng, self._normalizer = pi, rng, normalizer
        self._places, self._copied = None, []
        self.refresh()

    def tensors(self):
        tensors = {**dict(self._pi.named_parameters()), **dict(self._pi.named_buffers())}
        if self._normalizer is not None:
            tensors |= dict(shift=self._normalizer.shift, scale=self._normalizer.scale)
        return tensors

    def refresh(self):
        tensors = self.tensors()
        places = [(v.data_ptr(), v.dtype, v.device) for v in tensors.values()]
        if places != self._places:
            self._places = places
            arrays = {k: v.detach().cpu().numpy() for k, v in tensors.items()}
            self._copied = [(v, arrays[k]) for k, v in tensors.items() if not v.is_cpu]
            make = _NUMPY_POLICIES[type(self._pi)]
            net = _mlp(self._pi, arrays)
            if self._normalizer is not None:
                net = _normalized(net, arrays["shift"], arrays["scale"])
            self._act = make(net, arrays, self._rng)
        if self._copied:
            tensors, arrays = zip(*self._copied, strict=True)
            copies = torch.cat([x.detach().reshape(-1) for x in tensors]).cpu()  # one wait
            parts = copies.split([x.numel() for x in tensors])
            for array, part in zip(arrays, parts, strict=True):
                array[...] = part.numpy().reshape(array.shape)


def _mlp(pi, arrays):
    """Returns a policy's MLP as a function of one observation: `MLP.forward` in NumPy."""
    name, net = next((k, m) for k, m in pi.named_children() if type(m) is nets.MLP)
    layers = [
        (arrays[f"{name}.{i}.weight"], arrays[f"{name}.{i}.bias"], _ACTIVATIONS[type(net[i + 1])])
        for i in range(0, len(net), 2)
    ]

    def forward(obs):
        x = obs.astype(np.float32, copy=False)
        for weight, bias, activation in layers:
            x = activation(weight.dot(x) + bias)
        return x

    return forward


def _normalized(net, shift, scale):
    """Returns a function that normalises an observation first: `ObsNormalizer.forward`."""
    least, greatest = np.float32(-CLIP), np.float32(CLIP)

    def forward(obs):
        x = (obs.astype(np.float32, copy=False) - shift) * scale
        return net(np.minimum(np.maximum(x, least, out=x), greatest, out=x))

    return forward


_ACTIVATIONS: dict[type[nn.Module], Callable] = {
    nn.Identity: lambda x: x,
    nn.Tanh: np.tanh,
    nn.ReLU: lambda x: np.maximum(x, 0, out=x),
}


def _categorical(net, arrays, rng):
    def act(obs, deterministic):
        logits = net(obs)
        greatest = logits.max()
        if not math.isfinite(greatest):  # not a distribution: argmax and a draw have no meaning
            return np.float32(math.nan)
        if deterministic:
            return logits.argmax()
        # In double precision, because in single precision the draw may round up to the last sum,
        # which selects an index out of range.
        chances = np.exp(logits - greatest).cumsum(dtype=np.float64)
        return chances.searchsorted(rng.random() * chances[-1], "right")

    return act


def _gaussian(net, arrays, rng):
    log_std = arrays["log_std"]

    def act(obs, deterministic):
        mu = net(obs)
        if deterministic:
            return mu
        return mu + np.exp(log_std) * rng.standard_normal(len(mu), dtype=np.float32)

    return act


def _squashed_gaussian(net, arrays, rng):
    """Samples as `nets.squashed_gaussian` does, without computing the density."""
    mid, half_range = arrays["mid"], arrays["half_range"]

    def act(obs, deterministic):
        out = net(obs)
        u = out[: len(mid)]
        if not deterministic:
            log_std = np.minimum(np.maximum(out[len(mid) :], nets.LOG_STD_MIN), nets.LOG_STD_MAX)
            u = u + np.exp(log_std) * rng.standard_normal(len(mid), dtype=np.float32)
        return mid + half_range * np.tanh(u)

    return act


def _deterministic(net, arrays, rng):
    mid, half_range = arrays["mid"], arrays["half_range"]
    return lambda obs, deterministic: mid + half_range * net(obs)


_NUMPY_POLICIES = {
    nets.MLPCategoricalActor: _categorical,
    nets.MLPGaussianActor: _gaussian,
    nets.SquashedGaussianActor: _squashed_gaussian,
    nets.DeterministicActor: _deterministic,
}


# A subclass that overrides `act` gets no NumPy mirror.
_LIBRARY_ACTS = {
    nets.MLPActorCritic.act,
    nets.SingleCriticActorCritic.act,
    nets.DeterministicActorCritic.act,
    nets.SquashedGaussianActorCritic.act,
}


def _module_policy(ac):
    """Returns a policy that calls the module, or a CPU copy if the module is on another device."""
    on_cpu = all(p.device.type == "cpu" for p in ac.parameters())
    module = ac if on_cpu else copy.deepcopy(ac).cpu()
    takes_mode = takes_deterministic(networks_of(module).act)

    def refresh():
        if not on_cpu:
            module.load_state_dict(ac.state_dict())

    def act(obs, deterministic):
        with torch.no_grad():
            obs = torch.as_tensor(obs, dtype=torch.float32)
            if not deterministic:
                return np.asarray(module.act(obs))
            if takes_mode:
                return np.asarray(module.act(obs, deterministic=True))
            mode = _mode(module, obs) if hasattr(module, "v") else None
            return np.asarray(module.act(obs) if mode is None else mode)

    return ActingPolicy(act, refresh)


def _mode(module, obs):
    """Returns the mode of an on-policy module's policy, or None if that may not be an action."""
    normalizer = normalizer_of(module)
    obs = obs[None] if normalizer is None else normalizer(obs[None])
    pi = module.pi(obs)[0]
    base = pi.base_dist if isinstance(pi, Independent) else pi
    return pi.mode[0] if isinstance(base, (Normal, Categorical)) else None


def takes_deterministic(act: Any) -> bool:
    """Returns True if a method ``act`` has a parameter ``deterministic``."""
    return "deterministic" in inspect.signature(act).parameters
