"""The check, before training, that an actor-critic meets the contract of an algorithm."""

from __future__ import annotations

import random
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Discrete
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from spinup.utils.acting import acting_policy
from spinup.utils.envs import box_bounds

_BATCH = 5  # observations in the forward pass


class TwinCritic(nn.Module):
    """Two separate critics with the interface of `TwinMLPCritic`."""

    def __init__(self, q1: nn.Module, q2: nn.Module):
        super().__init__()
        self.q1, self.q2 = q1, q2

    def forward(self, obs: Tensor, act: Tensor) -> Tensor:
        """Returns both values, ``(2, batch)``."""
        return torch.stack([self.q1(obs, act), self.q2(obs, act)])

    def first(self, obs: Tensor, act: Tensor) -> Tensor:
        """Returns the first critic's values, ``(batch,)``."""
        return self.q1(obs, act)


def twin_critic(ac: Any) -> nn.Module:
    """Returns an actor-critic's two critics as one module: its ``q``, or its ``q1`` and ``q2``."""
    return ac.q if hasattr(ac, "q") else TwinCritic(ac.q1, ac.q2)


def check_actor_critic(ac: Any, env: gym.Env, device: torch.device, *outputs: str) -> Any:
    """Moves an actor-critic to its device and checks that an algorithm can train it.

    Global random generators and the actor-critic's buffers stay as they are.

    Args:
        ac: the actor-critic.
        env: the environment, an `AdaptedEnv`.
        device: device that will train the actor-critic.
        *outputs: the outputs that the algorithm uses. On-policy: ``v`` and ``logp``. Off-policy:
            ``act``, the actions from ``pi(obs)``; ``logp`` if their log-densities are returned,
            too; ``q`` for one critic, or ``twin_q`` for two; and ``first`` if ``q.first`` is
            used.

    Returns:
        The actor-critic.

    Raises:
        ValueError: the actor-critic doesn't meet the contract (``docs/actor_critics.md``).
        FloatingPointError: an output is NaN or infinite before training.
    """
    name, values = type(ac).__name__, "v" if "v" in outputs else "q"
    if not isinstance(ac, nn.Module):
        raise ValueError(f"actor_critic returned a {name}, which is not a torch.nn.Module")
    takes_pair = "twin_q" in outputs and hasattr(ac, "q1") and hasattr(ac, "q2")
    for part in ("pi", values, "act"):
        if not (hasattr(ac, part) or (part == "q" and takes_pair)):
            wanted = "q1 and q2 (nor q)" if part == "q" and "twin_q" in outputs else part
            raise ValueError(f"{name} has no {wanted}: see docs/actor_critics.md")
    ac.to(device)
    for part in ("pi", "v") if values == "v" else ("pi", "q", "q1", "q2"):
        module = getattr(ac, part, None)
        if isinstance(module, nn.Module):
            _check_module(f"{part} of {name}", part, module)
        elif module is not None and part in ("pi", "v", "q"):
            kind = type(module).__name__
            raise ValueError(f"{part} of {name} is a {kind}, which is not a torch.nn.Module")

    buffers = [(x, x.clone()) for x in ac.buffers()]
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            _check_outputs(ac, name, env, device, outputs)
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        for x, before in buffers:
            x.data.copy_(before)
    return ac


def _check_module(what, part, module):
    """Raises ValueError for a network that can't be trained, or that acts differently in tests."""
    params = list(module.parameters())
    if others := {str(p.dtype) for p in params} - {"torch.float32"}:
        raise ValueError(
            f"{what} has parameters of {', '.join(others)}, but observations are torch.float32: "
            "build it without .double() or .half()"
        )
    if params and not any(p.requires_grad for p in params):
        raise ValueError(f"all parameters of {what} are frozen: call requires_grad_(True)")
    for m in module.modules():
        if isinstance(m, _NormBase) and m.training and m.track_running_stats:
            raise ValueError(
                f"{what} has a {type(m).__name__}, whose statistics would differ in tests, between "
                "ranks and in target networks: use torch.nn.LayerNorm"
            )
        if isinstance(m, _DropoutNd) and m.training and m.p > 0 and part == "pi":
            raise ValueError(
                f"{what} has a {type(m).__name__}, which would drop units in tests, too, and make "
                "log-probabilities random: use it in value networks only"
            )


def _check_outputs(ac, name, env, device, outputs):
    """Evaluates the networks as the algorithm will, and checks their outputs."""
    rng = np.random.default_rng(0)
    obs, act = (_sample(space, rng) for space in (env.observation_space, env.action_space))
    on_device = [torch.as_tensor(x, device=device) for x in (obs, act)]
    batch = (_BATCH,)
    if "v" in outputs:
        made = ac.pi(*on_device)
        parts = [("a distribution", None), ("log-probabilities", batch)]
        checks = [("v(obs)", ac.v(on_device[0]), batch)]
    else:
        made = ac.pi(on_device[0])
        parts = [("actions", act.shape), ("log-densities", batch)]
        made, parts = (made, parts) if "logp" in outputs else ([made], parts[:1])
        if not hasattr(ac, "q"):
            checks = [(f"{k}(obs, act)", getattr(ac, k)(*on_device), batch) for k in ("q1", "q2")]
        else:
            shape = (2, _BATCH) if "twin_q" in outputs else batch
            checks = [("q(obs, act)", ac.q(*on_device), shape)]
            if "first" in outputs and not hasattr(ac.q, "first"):
                raise ValueError(
                    f"q of {name} has no first(obs, act), which returns the first critic's values"
                )
            if "first" in outputs:
                checks.append(("q.first(obs, act)", ac.q.first(*on_device), batch))
    if not isinstance(made, (tuple, list)) or len(made) != len(parts):
        wanted = " and ".join(part for part, _ in parts)
        raise ValueError(f"pi of {name} returns a {type(made).__name__}; it must return {wanted}")
    checks += [(f"{part} from pi", x, shape) for (part, shape), x in zip(parts, made) if shape]
    for what, x, shape in checks:
        if not isinstance(x, Tensor) or x.shape != shape:
            raise ValueError(
                f"{name}: {what} must be a tensor of shape {tuple(shape)} for {_BATCH} "
                f"observations, not {_describe(x)}"
            )
        if not x.isfinite().all():
            raise FloatingPointError(
                f"{name}: {what} contains NaN or infinity before training: check how its "
                "parameters are initialised"
            )
    policy = acting_policy(ac, rng)
    for deterministic in (False, True):
        x = np.asarray(policy(obs[0], deterministic))
        is_right = x.shape == act[0].shape and x.dtype.kind in "fiu"
        wanted = f"numbers of shape {act[0].shape}"
        if isinstance(env.action_space, Discrete):
            is_right = is_right and x.dtype.kind in "iu" and 0 <= x < env.action_space.n
            wanted = f"a whole number from 0 to {env.action_space.n - 1}, of shape ()"
        if not is_right:
            raise ValueError(f"{name}: act(obs) must return {wanted}, not {_describe(x)}")


def _sample(space, rng):
    """Samples a batch of observations or actions without using the space's generator."""
    if isinstance(space, Discrete):
        return rng.integers(space.n, size=_BATCH)
    low, high = box_bounds(space)
    return rng.standard_normal((_BATCH, len(low)), dtype=np.float32).clip(low, high)


def _describe(x):
    if not isinstance(x, (Tensor, np.ndarray)):
        return repr(x)
    value = f"{x} " if x.ndim == 0 else ""
    squeeze = " (squeeze the last dimension)" if x.ndim and x.shape[-1] == 1 else ""
    return f"{value}of shape {tuple(x.shape)} and dtype {x.dtype}{squeeze}"
