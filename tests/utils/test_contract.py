import random

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import nn

from spinup.utils import nets
from spinup.utils.contract import TwinCritic, check_actor_critic, twin_critic
from spinup.utils.envs import make_env
from tests.algos import plain
from tests.algos.envs import Clock
from tests.algos.runs import ALGORITHMS, ON_POLICY, timeless_progress, train

OUTPUTS = dict.fromkeys(ON_POLICY, ("v", "logp"))
OUTPUTS |= dict(ddpg=("act", "q"), td3=("act", "twin_q", "first"), sac=("act", "logp", "twin_q"))
LIBRARY = dict.fromkeys(ON_POLICY, nets.MLPActorCritic)
LIBRARY |= dict(
    ddpg=nets.SingleCriticActorCritic,
    td3=nets.DeterministicActorCritic,
    sac=nets.SquashedGaussianActorCritic,
)
BOX, DISCRETE = Box(np.float32([-1, 0]), np.float32([3, 0.5])), Discrete(4, start=7)
CPU = torch.device("cpu")


def environment(action_space):
    class Env(gym.Env):
        observation_space = Box(-np.inf, np.inf, (3,), np.float32)

    Env.action_space = action_space
    return make_env(Env)


def check(algorithm, change=None, action_space=BOX, own=True):
    """Checks an actor-critic, a user's or the library's, after applying a change."""
    env = environment(action_space)
    make = plain.ACTOR_CRITICS[algorithm] if own else LIBRARY[algorithm]
    ac = make(env.observation_space, env.action_space, (8,))
    ac = (change and change(ac)) or ac
    return check_actor_critic(ac, env, CPU, *OUTPUTS[algorithm])


def returning(part, convert):
    """Returns a change that converts the outputs of a network of an actor-critic."""

    def change(ac):
        ac.get_submodule(part).register_forward_hook(lambda m, args, out: convert(out))

    return change


def acting(convert):
    def change(ac):
        act = ac.act
        ac.act = lambda *args: convert(act(*args))

    return change


def without(name):
    def change(ac):
        class Less:
            pass

        less = type("Less", (nn.Module,), {})()
        for part in {"pi", "v", "q", "q1", "q2"} - {name}:
            if hasattr(ac, part):
                setattr(less, part, getattr(ac, part))
        if name != "act":
            less.act = ac.act
        return less

    return change


def frozen(part):
    return lambda ac: ac.get_submodule(part).requires_grad_(False) and None


def with_layer(part, layer):
    def change(ac):
        module = ac.get_submodule(part)
        module.append(layer)

    return change


def unsqueezed(x):
    return x[..., None]


@pytest.mark.parametrize("own", [True, False], ids=["own", "library"])
@pytest.mark.parametrize(
    "algorithm, action_space",
    [("ppo", BOX), ("ppo", DISCRETE), ("ddpg", BOX), ("td3", BOX), ("sac", BOX)],
)
def test_good_ones_pass_and_leave_no_trace(algorithm, action_space, own):
    random.seed(3)
    env = environment(action_space)
    torch.manual_seed(3)
    ac = (plain.ACTOR_CRITICS if own else LIBRARY)[algorithm](
        env.observation_space, env.action_space, (8,)
    )
    ac.register_buffer("calls", torch.zeros(()))
    ac.pi.register_forward_hook(lambda *_: ac.calls.add_(1) and None)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    spaces = [space.np_random.bit_generator.state for space in (env.action_space,)]
    params = [p.clone() for p in ac.parameters()]
    assert check_actor_critic(ac, env, CPU, *OUTPUTS[algorithm]) is ac
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()
    assert before[2] == random.getstate()
    assert spaces == [space.np_random.bit_generator.state for space in (env.action_space,)]
    assert ac.calls == 0
    assert all(torch.equal(p, q) and q.grad is None for p, q in zip(params, ac.parameters()))


BAD = [
    ("ppo", returning("v", unsqueezed), r"v\(obs\) must be .* \(5,\) .* not of shape \(5, 1\)"),
    (
        "ppo",
        returning("pi", lambda out: (out[0], unsqueezed(out[1]))),
        r"log-probabilities from pi must be .*\(5,\).* not of shape \(5, 1\)",
    ),
    ("ppo", returning("pi", lambda out: out[0]), "pi of OnPolicy returns a Normal; it must return"),
    ("ppo", returning("v", lambda out: out / 0), r"v\(obs\) contains NaN or infinity before"),
    ("ppo", without("v"), "Less has no v: see docs/actor_critics.md"),
    ("ppo", without("pi"), "Less has no pi"),
    ("ppo", without("act"), "Less has no act"),
    ("ppo", frozen("pi"), "all parameters of pi of OnPolicy are frozen"),
    ("ppo", frozen("v"), "all parameters of v of OnPolicy are frozen"),
    ("ppo", lambda ac: ac.double(), "pi of OnPolicy has parameters of torch.float64"),
    ("ppo", with_layer("v.v_net", nn.BatchNorm1d(1)), "v of OnPolicy has a BatchNorm1d"),
    ("ppo", with_layer("pi.mu_net", nn.Dropout(0.1)), "pi of OnPolicy has a Dropout"),
    ("ppo", acting(unsqueezed), r"act\(obs\) must return .*\(2,\), not of shape \(2, 1\)"),
    ("ppo", acting(lambda x: x[0]), r"act\(obs\) must return numbers of shape \(2,\), not .*\(\)"),
    ("ppo", lambda ac: object(), "actor_critic returned a object, which is not a torch.nn.Module"),
    ("sac", returning("q1", unsqueezed), r"q1\(obs, act\) must be .*\(5,\).* not .*\(5, 1\)"),
    ("sac", returning("q2", unsqueezed), r"(q2\(obs, act\) must be .*\(5,\).* not .*\(5, 1\))"),
    ("sac", without("q2"), r"Less has no q1 and q2 \(nor q\)"),
    ("sac", frozen("q1"), "all parameters of q1 of Squashed are frozen"),
    ("sac", returning("pi", lambda out: out[0]), "pi of Squashed returns a Tensor; it must return"),
    (
        "sac",
        returning("pi", lambda out: (out[0], unsqueezed(out[1]))),
        r"log-densities from pi must be .*\(5, 1\)",
    ),
    (
        "sac",
        returning("pi", lambda out: (out[0][:, :1], out[1])),
        r"actions from pi must be a tensor of shape \(5, 2\) .* not of shape \(5, 1\)",
    ),
    ("ddpg", returning("q", unsqueezed), r"q\(obs, act\) must be .*\(5,\).* not .*\(5, 1\)"),
    ("ddpg", returning("q", lambda out: out / 0), r"q\(obs, act\) contains NaN or infinity"),
    ("ddpg", without("q"), "Less has no q: see docs/actor_critics.md"),
    ("ddpg", frozen("q"), "all parameters of q of Single are frozen"),
    ("ddpg", returning("pi", unsqueezed), r"actions from pi must .*\(5, 2\).* not .*\(5, 2, 1\)"),
    ("td3", returning("pi", unsqueezed), r"actions from pi must .*\(5, 2\).* not .*\(5, 2, 1\)"),
    ("td3", returning("q1", lambda out: out * float("nan")), "q1.* contains NaN or infinity"),
    ("td3", lambda ac: ac.q2.half() and None, "q2 of .* has parameters of torch.float16"),
]


@pytest.mark.parametrize("algorithm, change, message", BAD)
def test_bad_ones_are_refused_by_name(algorithm, change, message):
    with pytest.raises((ValueError, FloatingPointError), match=message):
        check(algorithm, change)


@pytest.mark.parametrize(
    "change, message",
    [
        (acting(unsqueezed), r"act\(obs\) must return a whole number from 0 to 3.*shape \(1,\)"),
        (acting(float), r"act\(obs\) must return a whole number .* float64"),
        (acting(lambda x: x * 0 + 4), r"act\(obs\) must return a whole number from 0 to 3.* not 4"),
    ],
)
def test_bad_discrete_actions_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        check("ppo", change, DISCRETE)


def test_dropout_in_critics_and_norms_that_stand_still_are_taken():
    check("sac", with_layer("q1.q_net", nn.Dropout(0.1)))
    check("sac", with_layer("q1.q_net", nn.BatchNorm1d(1).eval()))
    check("ppo", with_layer("pi.mu_net", nn.Dropout(0.1).eval()))


def test_a_stack_of_critics_needs_its_first_alone_for_td3():
    class Both(nn.Module):
        def __init__(self, q):
            super().__init__()
            self.q_net = q.q_net

        def forward(self, obs, act):
            return self.q_net(obs, act).squeeze(-1)

    def change(ac):
        ac.q = Both(ac.q)

    check("sac", change, own=False)
    with pytest.raises(ValueError, match=r"has no first\(obs, act\)"):
        check("td3", change, own=False)


@pytest.mark.parametrize("own", [True, False], ids=["own", "library"])
def test_ddpg_refuses_twin_critics_by_their_shape(own):
    def change(ac):
        if own:
            ac.q.register_forward_hook(lambda m, args, out: torch.stack([out, out]))
        else:
            ac.q = nets.DeterministicActorCritic(Box(-1, 1, (3,)), BOX, (8,)).q

    with pytest.raises(ValueError, match=r"q\(obs, act\) must be .*\(5,\) .*not of shape \(2, 5\)"):
        check("ddpg", change, own=own)


@pytest.mark.parametrize("own", [True, False], ids=["own", "library"])
def test_sac_refuses_a_single_critic_by_its_shape(own):
    def one_critic(ac):
        ac.q = plain.Single(Box(-1, 1, (3,)), BOX).q

    with pytest.raises(ValueError, match=r"q\(obs, act\) must be .*\(2, 5\) .*not of shape \(5,\)"):
        check("sac", one_critic, own=own)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_run_is_the_same_to_the_bit_without_the_check(algorithm, tmp_path, monkeypatch):
    train(algorithm, Clock, tmp_path / "with")
    monkeypatch.setattr(f"spinup.algos.{algorithm}.check_actor_critic", lambda ac, *args: ac)
    train(algorithm, Clock, tmp_path / "without")
    assert timeless_progress(tmp_path / "with") == timeless_progress(tmp_path / "without")


def test_critics_of_a_users_own_are_called_as_one():
    class Critic(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(scale))

        def forward(self, obs, act):
            return self.scale * (obs.sum(-1) + act.sum(-1))

    class ActorCritic(nn.Module):
        def __init__(self):
            super().__init__()
            self.q1, self.q2 = Critic(1.0), Critic(10.0)

    own = twin_critic(ActorCritic())
    assert isinstance(own, TwinCritic)
    obs, act = torch.ones(2, 3), torch.tensor([[1.0], [2.0]])
    assert own(obs, act).tolist() == [[4, 5], [40, 50]]
    assert own.first(obs, act).tolist() == [4, 5]
    assert len(list(own.parameters())) == 2
    ac = nets.DeterministicActorCritic(Box(-1, 1, (3,)), BOX, (4,))
    assert twin_critic(ac) is ac.q
