"""Actor-critics in plain PyTorch, as a user of Spinning Up would write them.

They start with the weights of the library's actor-critics, so that the results can be compared.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Categorical, Normal

from spinup.utils import nets


def _plain(mlp, index=None):
    """Returns a copy of an MLP, or of one MLP of a stack, as an ``nn.Sequential``."""
    layers = []
    for layer in mlp:
        if isinstance(layer, nets.StackedLinear):
            linear = nn.Linear(layer.weight.shape[2], layer.weight.shape[1])
            linear.weight.data.copy_(layer.weight[index])
            linear.bias.data.copy_(layer.bias[index].reshape(-1))
            layers.append(linear)
        else:
            layers.append(copy.deepcopy(layer))
    return nn.Sequential(*layers)


class _Value(nn.Module):
    def __init__(self, v_net):
        super().__init__()
        self.v_net = v_net

    def forward(self, obs):
        return self.v_net(obs).squeeze(-1)


class _Actor(nn.Module):
    def __init__(self, own):
        super().__init__()
        self.is_discrete = isinstance(own, nets.MLPCategoricalActor)
        if self.is_discrete:
            self.logits_net = _plain(own.logits_net)
        else:
            self.log_std = nn.Parameter(own.log_std.detach().clone())
            self.mu_net = _plain(own.mu_net)

    def forward(self, obs, act=None):
        if self.is_discrete:
            pi = Categorical(logits=self.logits_net(obs))
            return pi, None if act is None else pi.log_prob(act)
        pi = Normal(self.mu_net(obs), torch.exp(self.log_std))
        return pi, None if act is None else pi.log_prob(act).sum(-1)


class OnPolicy(nn.Module):
    """Meets the contract of VPG, TRPO and PPO: ``pi``, ``v``, ``step`` and ``act``."""

    original = nets.MLPActorCritic

    def __init__(self, observation_space, action_space, hidden_sizes=(8,)):
        super().__init__()
        self.copy_from(self.original(observation_space, action_space, hidden_sizes))

    def copy_from(self, own):
        self.pi, self.v = _Actor(own.pi), _Value(_plain(own.v.v_net))
        return self

    def step(self, obs):
        with torch.no_grad():
            pi, _ = self.pi(obs)
            act = pi.sample()
            logp = pi.log_prob(act)
            return act.numpy(), self.v(obs).numpy(), logp.numpy()

    def act(self, obs):
        return self.step(obs)[0]


def known_value(slope: float) -> type[nn.Module]:
    """Returns an actor-critic whose value is `slope` times the number of steps of the episode."""

    class KnownValue(nn.Module):
        def __init__(self):
            super().__init__()
            self.slope = nn.Parameter(torch.tensor([float(slope)]))

        def forward(self, obs):
            return self.slope * obs[:, 1]

    class Known(nets.MLPActorCritic):
        def __init__(self, observation_space, action_space):
            super().__init__(observation_space, action_space, hidden_sizes=(8,))
            self.v = KnownValue()

    return Known


def estimates(ac: nn.Module, data: dict, gamma: float, lam: float) -> tuple:
    """Computes GAE and returns-to-go by their definitions, from `fixed_data.trajectories`.

    Returns:
        Observations, actions, normalised advantages, returns-to-go and values.
    """
    obs = torch.as_tensor(data["obs"], dtype=torch.float32)
    act = torch.as_tensor(data["act"])
    with torch.no_grad():
        val = ac.v(obs).double().numpy()
    adv, ret = np.zeros(len(val)), np.zeros(len(val))
    start = 0
    for end, last_obs in data["paths"].items():
        last_val = 0.0
        if last_obs is not None:
            last_val = ac.v(torch.as_tensor(last_obs[None], dtype=torch.float32)).item()
        vals = np.append(val[start:end], last_val)
        rews = np.append(data["rew"][start:end], last_val)
        deltas = rews[:-1] + gamma * vals[1:] - vals[:-1]
        for t in range(end - start):
            discounts = gamma ** np.arange(end - start - t + 1)
            ret[start + t] = discounts @ rews[t:]
            adv[start + t] = (discounts * lam ** np.arange(len(discounts)))[:-1] @ deltas[t:]
        start = end
    adv = torch.as_tensor((adv - adv.mean()) / adv.std(), dtype=torch.float32)
    return obs, act, adv, torch.as_tensor(ret, dtype=torch.float32), val


class _Critic(nn.Module):
    def __init__(self, q_net):
        super().__init__()
        self.q_net = q_net

    def forward(self, obs, act):
        return self.q_net(torch.cat([obs, act], dim=-1)).squeeze(-1)


class _BoxActor(nn.Module):
    def __init__(self, own):
        super().__init__()
        self.mid, self.half_range = own.mid.clone(), own.half_range.clone()


class _SquashedActor(_BoxActor):
    def __init__(self, own):
        super().__init__(own)
        self.net = _plain(own.net)

    def forward(self, obs, deterministic=False):
        mu, log_std = self.net(obs).chunk(2, dim=-1)
        std = torch.exp(torch.clamp(log_std, -20, 2))
        u = mu if deterministic else mu + std * torch.randn_like(mu)
        logp = Normal(mu, std).log_prob(u).sum(-1)
        logp = logp - (2 * (math.log(2) - u - F.softplus(-2 * u))).sum(-1)
        return self.mid + self.half_range * torch.tanh(u), logp


class _DeterministicActor(_BoxActor):
    def __init__(self, own):
        super().__init__(own)
        self.net = _plain(own.pi_net)

    def forward(self, obs):
        return self.mid + self.half_range * self.net(obs)


class _OffPolicy(nn.Module):
    def __init__(self, observation_space, action_space, hidden_sizes=(8,)):
        super().__init__()
        self.copy_from(self.original(observation_space, action_space, hidden_sizes))

    def copy_from(self, own):
        self.pi = self.actor(own.pi)
        self.q1, self.q2 = (_Critic(_plain(own.q.q_net, index)) for index in (0, 1))
        return self


class Squashed(_OffPolicy):
    """Meets SAC's contract: ``pi``, ``q1``, ``q2`` and ``act``."""

    original, actor = nets.SquashedGaussianActorCritic, _SquashedActor

    def act(self, obs, deterministic=False):
        with torch.no_grad():
            return self.pi(obs, deterministic)[0].numpy()


class Deterministic(_OffPolicy):
    """Meets TD3's contract: ``pi``, ``q1``, ``q2`` and ``act``."""

    original, actor = nets.DeterministicActorCritic, _DeterministicActor

    def act(self, obs):
        with torch.no_grad():
            return self.pi(obs).numpy()


class Single(Deterministic):
    """Meets DDPG's contract: ``pi``, ``q`` and ``act``."""

    original = nets.SingleCriticActorCritic

    def copy_from(self, own):
        self.pi, self.q = self.actor(own.pi), _Critic(_plain(own.q.q_net))
        return self


def critic_gradients(ac: nn.Module) -> torch.Tensor:
    """Returns the gradients of both critics in the order of the library's stacked critic."""
    pairs = zip(*([p.grad for p in q.parameters()] for q in (ac.q1, ac.q2)))
    return torch.cat([torch.stack(pair).flatten() for pair in pairs])


ACTOR_CRITICS = dict.fromkeys(["vpg", "trpo", "ppo"], OnPolicy)
ACTOR_CRITICS |= {"ddpg": Single, "td3": Deterministic, "sac": Squashed}


def initial(algorithm: str, env, seed: int = 3) -> nn.Module:
    """Returns the actor-critic with which a run with this seed starts."""
    torch.manual_seed(seed)
    return ACTOR_CRITICS[algorithm](env.observation_space, env.action_space)


def as_plain(algorithm: str, ac: nn.Module) -> nn.Module:
    """Returns a plain actor-critic with the weights of the library's actor-critic `ac`."""
    made = ACTOR_CRITICS[algorithm].__new__(ACTOR_CRITICS[algorithm])
    nn.Module.__init__(made)
    return made.copy_from(ac)
