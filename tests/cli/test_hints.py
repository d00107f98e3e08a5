import inspect

import pytest

import spinup
from spinup.algos import ALGORITHMS
from spinup.cli.flags import RUN_FLAGS, SUBSTITUTIONS, parameters_of
from spinup.cli.hints import OTHER_NAMES, hint, nearest

NONE = "has no counterpart here"


@pytest.mark.parametrize(
    ("name", "ppo", "sac", "td3"),
    [
        ("learning_rate", "two flags: --pi_lr", "--lr, for", "two flags: --pi_lr"),
        ("lr", "two flags: --pi_lr", None, "two flags: --pi_lr"),
        ("total_timesteps", *["--epochs times --steps_per_epoch"] * 3),
        ("n_envs", *["--cpu"] * 3),
        ("num_envs", *["--cpu"] * 3),
        ("env_id", *["--env;"] * 3),
        ("ent_coef", None, "--alpha", NONE),
        ("batch_size", "is --minibatch_size;", None, None),
        ("num_minibatches", "divided by --minibatch_size", NONE, NONE),
        ("anneal_lr", "--lr_schedule linear", NONE, NONE),
        ("n_steps", "--steps_per_epoch", NONE, NONE),
        ("vf_coef", NONE, NONE, NONE),
        ("max_grad_norm", *[f"{NONE}: gradients aren't clipped"] * 3),
        ("clip_range", "--clip_ratio", NONE, NONE),
        ("gae_lambda", "--lam", NONE, NONE),
        ("tau", NONE, "--polyak, which is 1 - tau", "--polyak, which is 1 - tau"),
        ("buffer_size", NONE, "--replay_size", "--replay_size"),
        ("learning_starts", NONE, "--start_steps", "--update_after"),
        ("train_freq", NONE, "--update_every", "--update_every"),
        ("learning-rate", "--pi_lr", "--lr", "--q_lr"),
    ],
)
def test_names_of_other_libraries(name, ppo, sac, td3):
    for algorithm, told in (("ppo", ppo), ("sac", sac), ("td3", td3)):
        if told is not None:
            text = hint(name, parameters_of(getattr(spinup, algorithm)))
            assert text.startswith(f"--{name} ") and told in text, (algorithm, text)


@pytest.mark.parametrize(
    ("name", "vpg", "trpo", "ddpg"),
    [
        ("learning_rate", "two flags: --pi_lr", "--vf_lr", "two flags: --pi_lr"),
        ("n_steps", "--steps_per_epoch", "--steps_per_epoch", NONE),
        ("n_epochs", "--train_v_iters", "--train_v_iters", NONE),
        ("batch_size", "whole epoch's batch", "whole epoch's batch", None),
        ("ent_coef", *[f"{NONE}: the loss has no entropy bonus"] * 2, NONE),
        ("target_kl", NONE, "--delta;", NONE),
        ("cg_damping", NONE, "--damping_coeff;", NONE),
        ("line_search_max_iter", NONE, "--backtrack_iters;", NONE),
        ("exploration_noise", NONE, NONE, "--act_noise;"),
        ("policy_noise", *[NONE] * 3),
    ],
)
def test_names_of_other_libraries_in_their_relatives(name, vpg, trpo, ddpg):
    for algorithm, told in (("vpg", vpg), ("trpo", trpo), ("ddpg", ddpg)):
        if told is not None:
            text = hint(name, parameters_of(getattr(spinup, algorithm)))
            assert text.startswith(f"--{name} ") and told in text, (algorithm, text)


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_every_flag_that_a_hint_names_exists(algorithm):
    import re

    parameters = parameters_of(getattr(spinup, algorithm))
    for name in OTHER_NAMES.keys() - parameters.keys():
        text = hint(name, parameters).removeprefix(f"--{name} ").replace("--tau 0.005", "")
        flags = set(re.findall(r"--(\w+)", text))
        assert flags <= {*parameters, *RUN_FLAGS, *SUBSTITUTIONS}, (name, text)


def test_no_hint_stands_in_the_way_of_a_flag():
    names = {n for a in ALGORITHMS for n in inspect.signature(getattr(spinup, a)).parameters}
    # Flags of some algorithms, and hints for the others
    only_elsewhere = {"lr", "batch_size", "target_kl", "ent_coef"}
    assert OTHER_NAMES.keys() & names == only_elsewhere


def test_a_misspelt_flag_has_a_near_one_and_a_strange_one_has_none():
    parameters = parameters_of(spinup.ppo)
    assert hint("clip_ration", parameters) == "did you mean --clip_ratio?"
    assert hint("hidden", parameters) == "did you mean --ac_kwargs:hidden_sizes?"
    assert hint("target-kl", parameters) == "did you mean --target_kl?"
    assert hint("job", parameters, RUN_FLAGS) == "did you mean --jobs?"
    for name in ("verbose", "log_dir", "foo", "x", "environment_steps", "n_critics"):
        assert hint(name, parameters, [*RUN_FLAGS, *SUBSTITUTIONS]) == "", name


def test_nearest():
    valid = ["gamma", "clip_ratio", "ac_kwargs:hidden_sizes"]
    assert nearest("clip_ration", valid) == "clip_ratio"
    assert nearest("hidden_size", valid) == "ac_kwargs:hidden_sizes"
    assert nearest("GAMA", valid) == "gamma"
    assert nearest("alpha", valid) is None
    assert nearest("alpha", []) is None
