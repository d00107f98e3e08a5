import functools
import inspect
import math
import re
import typing
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pytest
import torch

import spinup
from spinup.algos import ALGORITHMS
from spinup.utils import hyperparameters
from spinup.utils.hyperparameters import check_hyperparameters
from spinup.utils.training import training_run


def everything(
    seed: int = 0,
    epochs: int = 1,
    steps_per_epoch: int = 4000,
    replay_size: int = 10**6,
    gamma: float = 1,
    lam: float = 0.0,
    polyak: float = 0.995,
    pi_lr: float = 3e-4,
    vf_lr: float = 1e-3,
    q_lr: float = 1e-3,
    lr: float = 0,
    alpha: float | Literal["auto"] = 0.2,
    delta: float = 0.01,
    damping_coeff: float = 0,
    cg_iters: int = 1,
    backtrack_iters: int = 1,
    backtrack_coeff: float = 0.8,
    algo: Literal["trpo", "npg"] = "trpo",
    clip_ratio: float = 0.2,
    target_kl: float = math.inf,  # never stops early
    act_noise: float = 0,
    target_noise: float = 0,
    noise_clip: float = 0,
    train_pi_iters: int = 0,
    train_v_iters: int = 0,
    start_steps: int = 0,
    update_after: int = 0,
    update_every: int = 1,
    num_test_episodes: int = 0,
    policy_delay: int = 1,
    save_freq: int = 1,
    max_ep_len: int = 1,
    batch_size: int = 1,
    normalize: bool = False,
    new_limit: float = 0.01,
    new_iters: int = 10,
    new_width: int | None = None,
    new_sizes: Sequence[int] = (1, 2),
    new_names: dict[str, int] | None = None,
    device: str = "cpu",
):
    """Has all hyperparameters of the algorithms, and some with unknown names."""


def test_hyperparameters_that_can_be_used_pass():
    assert check_hyperparameters(everything, {}) == {}
    assert check_hyperparameters(everything, {"unknown": "ignored", "alpha": "auto"}) == {
        "alpha": "auto"
    }
    values = dict(delta=1e-9, backtrack_coeff=0.999, algo="npg")
    assert check_hyperparameters(everything, values) == values
    values = dict(seed=2**32 - 1, gamma=1, normalize=True, new_width=None, device="any")
    values |= dict(new_sizes=[3], new_names={"a": 1})  # of unknown types
    assert check_hyperparameters(everything, values) == values


SEED = r"a whole number in \[0, 4294967295\]"
COUNT, COUNT_OR_NONE = "a whole number of at least 1", "a whole number of at least 0"
FRACTION, POSITIVE = r"a number in \[0, 1\]", "a number of at least 0"
OPEN = r"a number in \(0, inf\)"
SHARE = r"a whole number of at least 1"


@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("seed", -1, SEED),
        ("seed", 2**32, SEED),
        ("seed", None, SEED),
        ("epochs", 0, COUNT),
        ("epochs", 1.5, COUNT),
        ("epochs", math.inf, COUNT),
        ("epochs", math.nan, COUNT),
        ("epochs", "50", COUNT),
        ("epochs", True, COUNT),
        ("epochs", [50], COUNT),
        ("steps_per_epoch", 0, SHARE),
        ("batch_size", 0, SHARE),
        ("replay_size", 0, SHARE),
        ("replay_size", 10.5, SHARE),
        ("policy_delay", 0, COUNT),
        ("save_freq", 0, COUNT),
        ("max_ep_len", 0, COUNT),
        ("update_every", 0, COUNT),
        ("train_pi_iters", -1, COUNT_OR_NONE),
        ("train_v_iters", 0.5, COUNT_OR_NONE),
        ("start_steps", -1, COUNT_OR_NONE),
        ("update_after", -1, COUNT_OR_NONE),
        ("num_test_episodes", -1, COUNT_OR_NONE),
        ("gamma", 1.01, FRACTION),
        ("gamma", math.nan, FRACTION),
        ("lam", -0.1, FRACTION),
        ("polyak", 2, FRACTION),
        ("pi_lr", -1e-3, POSITIVE),
        ("vf_lr", math.nan, POSITIVE),
        ("q_lr", None, POSITIVE),
        ("lr", "fast", POSITIVE),
        ("clip_ratio", -0.2, POSITIVE),
        ("target_kl", -1, POSITIVE),
        ("act_noise", -1, POSITIVE),
        ("target_noise", -1, POSITIVE),
        ("noise_clip", -1, POSITIVE),
        ("alpha", "automatic", POSITIVE + ', or "auto"'),
        ("alpha", True, POSITIVE + ', or "auto"'),
        ("delta", 0, OPEN),
        ("delta", -0.01, OPEN),
        ("delta", math.inf, OPEN),
        ("damping_coeff", -0.1, POSITIVE),
        ("cg_iters", 0, COUNT),
        ("backtrack_iters", 0, COUNT),
        ("backtrack_coeff", 0, r"a number in \(0, 1\)"),
        ("backtrack_coeff", 1, r"a number in \(0, 1\)"),
        ("backtrack_coeff", math.nan, r"a number in \(0, 1\)"),
        ("algo", "ppo", '"trpo" or "npg"'),
        ("algo", None, '"trpo" or "npg"'),
        ("algo", True, '"trpo" or "npg"'),
        ("normalize", 1, "True or False"),
        ("normalize", "yes", "True or False"),
        ("new_limit", "small", POSITIVE),
        ("new_limit", -0.1, POSITIVE),
        ("new_iters", 2.5, COUNT_OR_NONE),
        ("new_iters", -1, COUNT_OR_NONE),
        ("new_width", "wide", COUNT_OR_NONE),
    ],
)
def test_hyperparameters_that_cannot_be_used_are_refused(name, value, expected):
    message = f"^{name} must be {expected}, not {re.escape(repr(value))}$"
    with pytest.raises(ValueError, match=message):
        check_hyperparameters(everything, {name: value})


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_number_of_every_algorithm_is_checked(name):
    """Annotations give the types, so that no rule needs an algorithm's keywords."""
    algorithm = getattr(spinup, name)
    hints = typing.get_type_hints(algorithm)
    defaults = {k: p.default for k, p in inspect.signature(algorithm).parameters.items()}
    numbers = [k for k, v in defaults.items() if isinstance(v, (bool, int, float))]
    assert len(numbers) >= 10 and set(defaults) - {"env_fn"} <= set(hints)
    for keyword in numbers:
        assert check_hyperparameters(algorithm, {keyword: defaults[keyword]})
        for bad in ("many", -1, math.nan, None, [1]):
            with pytest.raises(ValueError, match=f"^{keyword} must be "):
                check_hyperparameters(algorithm, {keyword: bad})


@pytest.mark.parametrize("value", [1e6, np.int64(10**6), np.float32(10**6)])
def test_whole_numbers_of_other_types_become_ints(value):
    @training_run
    def checked(replay_size: int, gamma: float = 0.99):
        return replay_size, gamma

    replay_size, gamma = checked(replay_size=value, gamma=1.0)
    assert (replay_size, type(replay_size)) == (10**6, int)
    assert type(gamma) is float
    with pytest.raises(ValueError, match="replay_size must be a whole number"):
        checked(replay_size=value + 0.5)
    with pytest.raises(ValueError, match="replay_size must be a whole number"):
        checked(replay_size=True)


def test_each_rank_needs_a_step_and_a_sample(monkeypatch):
    monkeypatch.setattr(hyperparameters, "num_procs", lambda: 4)

    def splits(steps_per_epoch: int = 4, batch_size: int = 4, replay_size: int = 4):
        pass

    check_hyperparameters(splits, {})
    for name in ("steps_per_epoch", "batch_size", "replay_size"):
        message = rf"{name} must be .* of at least 4 \(one per rank, with 4 ranks\), not 3"
        with pytest.raises(ValueError, match=message):
            check_hyperparameters(splits, {name: 3})
        # For a number of ranks that don't run yet
        check_hyperparameters(splits, dict.fromkeys(("steps_per_epoch", "batch_size"), 3), 3)
        with pytest.raises(ValueError, match="with 5 ranks"):  # defaults are checked, too
            check_hyperparameters(splits, {}, num_ranks=5)


# --- Keyword arguments of networks ---


def checked_kwargs(ac_kwargs, **kwargs):
    return check_hyperparameters(spinup.ppo, dict(ac_kwargs=ac_kwargs, **kwargs))["ac_kwargs"]


@pytest.mark.parametrize(
    "sizes, expected",
    [
        ((64, 32), (64, 32)),
        ([64], [64]),
        ((), ()),
        (np.array([8, 4]), [8, 4]),
        ((np.int64(8),), (8,)),
    ],
)
def test_sizes_of_layers_pass(sizes, expected):
    checked = checked_kwargs({"hidden_sizes": sizes})["hidden_sizes"]
    assert checked == expected and type(checked) is type(expected)
    assert all(type(size) is int for size in checked)


@pytest.mark.parametrize("sizes", [64, (64.0,), (-3,), (0,), "64", ("64",), (True,), None, {64}])
def test_other_sizes_are_refused(sizes):
    message = (
        r"^hidden_sizes \(of ac_kwargs\) must be a list of whole numbers of at least 1, such as "
        rf"\(64, 64\), not {re.escape(repr(sizes))}$"
    )
    with pytest.raises(ValueError, match=message):
        checked_kwargs({"hidden_sizes": sizes})


leaky = functools.partial(torch.nn.LeakyReLU, 0.2)


@pytest.mark.parametrize(
    "activation, expected",
    [
        (torch.nn.Tanh, torch.nn.Tanh),
        ("relu", torch.nn.ReLU),
        ("nn.SiLU", torch.nn.SiLU),
        ("torch.nn.ELU", torch.nn.ELU),
        (leaky, leaky),
    ],
)
def test_activations_pass_by_class_and_by_name(activation, expected):
    assert checked_kwargs({"activation": activation}) == {"activation": expected}


@pytest.mark.parametrize(
    "activation, message",
    [
        (
            torch.nn.ReLU(),
            r"a class, not ReLU\(\), an instance of it: give nn.ReLU, or with arguments "
            r"functools.partial\(nn.ReLU, ...\)$",
        ),
        ("rel", "such as nn.Tanh, or its name, not 'rel'; did you mean relu"),
        ("os.system", "not 'os.system'$"),
        ("linear", "not 'linear'"),
        (torch.nn.Linear, "not <class 'torch.nn.modules.linear.Linear'>$"),
        (torch.relu, "not <built-in method relu"),
        (None, "not None"),
        (dict, "not <class 'dict'>"),
    ],
)
def test_other_activations_are_refused(activation, message):
    with pytest.raises(ValueError, match=rf"^activation \(of ac_kwargs\) must be .*{message}"):
        checked_kwargs({"activation": activation})


class Own(torch.nn.Module):
    """A user's networks, whose arguments may have any meaning."""

    def __init__(self, observation_space, action_space, width, hidden_sizes=64):
        super().__init__()


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (
            dict(ac_kwargs={"hidden_size": (8,)}),
            r"MLPActorCritic can't be built with ac_kwargs \{'hidden_size': \(8,\)\}: got an "
            "unexpected keyword argument 'hidden_size'; did you mean hidden_sizes",
        ),
        (dict(ac_kwargs={"n": 1}), r"argument 'n' \(it takes hidden_sizes, activation\)"),
        (dict(ac_kwargs={"action_space": 1}), "multiple values for argument 'action_space'"),
        (dict(ac_kwargs=[1]), r"ac_kwargs must be a dict such as .*, not \[1\]"),
        (
            dict(actor_critic=Own),
            r"Own can't be built with ac_kwargs \{\}: missing a required argument: 'width'",
        ),
        (
            dict(actor_critic=Own, ac_kwargs={"width": 1, "hiden_sizes": 2}),
            "'hiden_sizes'; did you mean hidden_sizes",
        ),
        (dict(actor_critic=3), "actor_critic must be a class or a function, not 3"),
        (dict(actor_critic="nothing:Here"), "Cannot import 'nothing:Here'"),
    ],
)
def test_arguments_that_networks_do_not_take_are_refused(kwargs, message, tmp_path):
    kwargs["logger_kwargs"] = dict(output_dir=tmp_path / "run")
    with pytest.raises(ValueError, match=message):
        spinup.ppo("CartPole-v1", **kwargs)
    assert not (tmp_path / "run").exists()


def test_arguments_of_a_users_own_networks_are_theirs():
    kwargs = {"width": 3, "hidden_sizes": 64}
    assert checked_kwargs(kwargs, actor_critic=Own) == kwargs
    by_name = dict(actor_critic=f"{__name__}:Own", ac_kwargs=kwargs)
    assert check_hyperparameters(spinup.sac, by_name) == dict(actor_critic=Own, ac_kwargs=kwargs)
    assert checked_kwargs(None) is None
