"""Loading from run folders: the same policy and environment as in training, or one clear error."""

from __future__ import annotations

import functools
import json
import pickle
import shutil
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import PendulumEnv
from safetensors.torch import save_file
from torch import nn

import spinup
from spinup.cli.policies import (
    MAKE_WRAPPED,
    CannotRebuildEnv,
    has_display,
    load_actor_critic,
    load_env,
    load_policy,
    load_policy_and_env,
)
from spinup.utils.nets import MLPActorCritic
from spinup.utils.wrapping import make_wrapped
from tests.algos.runs import saved_model, train

OBS = np.array([0.1, -0.5, 0.02, 0.9], dtype=np.float32)
MINUS_ONE = np.float32(-1)
PENDULUM_OBS = np.array([0.6, -0.8, 1.5], dtype=np.float32)


class OwnActorCritic(nn.Module):
    """A user's actor-critic, which chooses action 1 by one weight."""

    def __init__(self, observation_space, action_space, width=1, how="plainly"):
        super().__init__()
        self.pi, self.v = OwnActor(observation_space, width), OwnCritic(observation_space)

    def act(self, obs):
        return self.pi(obs[None])[0].sample()[0].numpy()


class OwnActor(nn.Module):
    def __init__(self, observation_space, width):
        super().__init__()
        self.net = nn.Linear(observation_space.shape[0], 2 * width)

    def forward(self, obs, act=None):
        pi = torch.distributions.Categorical(logits=self.net(obs)[:, :2])
        return pi, None if act is None else pi.log_prob(act)


class OwnCritic(nn.Module):
    def __init__(self, observation_space):
        super().__init__()
        self.net = nn.Linear(observation_space.shape[0], 1)

    def forward(self, obs):
        return self.net(obs).squeeze(-1)


def build_own(observation_space, action_space):
    return OwnActorCritic(observation_space, action_space)


def make_bare_env():
    """An environment without an id."""
    return gym.wrappers.TimeLimit(PendulumEnv(), 9)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Function that returns the folder of a run, trained at the first call; don't change it."""
    root = tmp_path_factory.mktemp("runs")

    @functools.cache
    def run_folder(algorithm, env_id="CartPole-v1"):
        folder = root / f"{algorithm}_{env_id}_s0"
        train(algorithm, env_id, folder)
        return folder

    return run_folder


@pytest.fixture
def run(runs, tmp_path):
    """A copy of a PPO run on CartPole, which tests may change."""
    return Path(shutil.copytree(runs("ppo"), tmp_path / "ppo_s0"))


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def dense(weights, name, x, stop, activation):
    """Evaluates an MLP with one hidden layer from its saved weights."""
    w0, w1 = (weights[f"{name}.{i}.weight"].numpy() for i in (0, 2))
    b0, b1 = (weights[f"{name}.{i}.bias"].numpy() for i in (0, 2))
    return (w1 @ activation(w0 @ x + b0) + b1)[:stop]


def relu(x):
    return np.maximum(x, 0)


# --- The policy -----------------------------------------------------------------------------------


def test_the_network_is_the_one_that_was_trained(tmp_path):
    trained = train("ppo", "CartPole-v1", tmp_path)
    loaded = load_actor_critic(tmp_path)
    assert type(loaded) is MLPActorCritic
    assert loaded.state_dict().keys() == trained.state_dict().keys()
    for name, weights in trained.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], weights, rtol=0, atol=0)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ELU])  # acting in NumPy, and by the module
def test_ppo_deterministic_is_the_likelier_action(tmp_path, activation):
    kwargs = dict(hidden_sizes=(8,), activation=activation)
    train("ppo", "CartPole-v1", tmp_path, ac_kwargs=kwargs)
    weights = saved_model(tmp_path)
    function = np.tanh if activation is nn.Tanh else lambda x: np.where(x > 0, x, np.expm1(x))
    get_action = load_policy(tmp_path, deterministic=True)
    for obs in np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32):
        logits = dense(weights, "pi.logits_net", obs, 2, function)
        assert get_action(obs) == logits.argmax()


def test_ppo_deterministic_is_the_mean_of_a_box(runs):
    folder = runs("ppo", "Pendulum-v1")
    weights = saved_model(folder)
    expected = dense(weights, "pi.mu_net", PENDULUM_OBS, 1, np.tanh)
    action = load_policy(folder, deterministic=True)(PENDULUM_OBS)
    np.testing.assert_allclose(action, expected, rtol=1e-5)
    assert action.shape == (1,)


@pytest.mark.parametrize(
    ("algorithm", "net"), [("sac", "net"), ("td3", "pi_net"), ("ddpg", "pi_net")]
)
def test_off_policy_deterministic_is_the_squashed_mean(runs, algorithm, net):
    folder = runs(algorithm, "Pendulum-v1")
    weights = saved_model(folder)
    expected = 2 * np.tanh(dense(weights, f"pi.{net}", PENDULUM_OBS, 1, relu))
    action = load_policy(folder, deterministic=True)(PENDULUM_OBS)
    np.testing.assert_allclose(action, expected, rtol=1e-5)


def test_sampling_has_the_probabilities_of_the_softmax(runs):
    weights = saved_model(runs("ppo"))
    logits = dense(weights, "pi.logits_net", OBS, 2, np.tanh)
    chance = 1 / (1 + np.exp(logits[0] - logits[1]))
    get_action = load_policy(runs("ppo"), seed=0)
    frequency = np.mean([get_action(OBS) for _ in range(4000)])
    assert abs(frequency - chance) < 4 * np.sqrt(chance * (1 - chance) / 4000)


def test_a_seed_repeats_the_samples(runs):
    def samples(seed):
        get_action = load_policy(runs("sac", "Pendulum-v1"), seed=seed)
        return [float(get_action(PENDULUM_OBS)[0]) for _ in range(5)]

    assert samples(1) == samples(1) != samples(2)


def test_numbered_saves(run):
    saves = run / "pyt_save"
    weights = saved_model(run)
    for itr, value in ((9, 0.9), (10, 1.0)):
        constant = {name: torch.full_like(w, value) for name, w in weights.items()}
        save_file(constant, saves / f"model{itr}.safetensors")

    def first_weight(itr):
        return load_actor_critic(run, itr).state_dict()["v.v_net.0.weight"][0, 0].item()

    assert first_weight(9) == pytest.approx(0.9)
    assert first_weight("last") == weights["v.v_net.0.weight"][0, 0]
    (saves / "model.safetensors").unlink()
    assert first_weight("last") == 1.0  # save 10, although 9 comes last in alphabetical order
    for itr in (11, -1, True, "first", "../model", [9], None):
        with pytest.raises(ValueError, match=r"holds no save .*: it has 9, 10, best$"):
            load_policy(run, itr)


# --- A user's actor-critic ------------------------------------------------------------------------


def test_own_class_is_imported(tmp_path):
    kwargs = dict(how="so: it goes")
    train("ppo", "CartPole-v1", tmp_path, actor_critic=OwnActorCritic, ac_kwargs=kwargs)
    assert type(load_actor_critic(tmp_path)) is OwnActorCritic
    weights = saved_model(tmp_path)
    get_action = load_policy(
        tmp_path, deterministic=True
    )  # although its act() takes no second argument
    for obs in np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32):
        logits = weights["pi.net.weight"].numpy() @ obs + weights["pi.net.bias"].numpy()
        assert get_action(obs) == logits.argmax()
    actions = {int(load_policy(tmp_path, seed=s)(OBS)) for s in range(20)}
    assert actions == {0, 1}


def test_own_function_has_to_be_passed(tmp_path):
    train("ppo", "CartPole-v1", tmp_path, actor_critic=build_own)
    with pytest.raises(
        ValueError, match=r"build_own' is not a subclass of torch.nn.Module.*: pass actor_critic="
    ):
        load_policy(tmp_path)
    assert type(load_policy(tmp_path, actor_critic=build_own).ac) is OwnActorCritic


def test_own_class_within_a_function_has_to_be_passed(tmp_path):
    class Hidden(OwnActorCritic):
        pass

    train("ppo", "CartPole-v1", tmp_path, actor_critic=Hidden)
    with pytest.raises(
        ValueError, match=r"<locals>.Hidden' can't be imported: .*; pass actor_critic"
    ):
        load_policy(tmp_path)
    assert type(load_policy(tmp_path, actor_critic=Hidden).ac) is Hidden


MAIN = """
import sys
from spinup import ppo
from spinup.cli.watch import load_policy_and_env
from tests.cli.test_policies import OwnActorCritic

class Mine(OwnActorCritic):
    pass

if __name__ == "__main__":
    ppo("CartPole-v1", Mine, steps_per_epoch=20, epochs=1, logger_kwargs=dict(output_dir="run"))
    print("loaded", type(load_policy_and_env("run")[1].ac).__name__)
"""


def test_own_class_of_main(tmp_path, run_python):
    (tmp_path / "script.py").write_text(MAIN)
    result = run_python(["script.py"])
    assert "loaded Mine" in result.stdout, result.stderr
    with pytest.raises(ValueError, match=r"'__main__:Mine' can't be imported \(the script or "):
        load_policy(tmp_path / "run")
    assert load_policy(tmp_path / "run", actor_critic=OwnActorCritic)(OBS) in (0, 1)


def test_own_activation_has_to_be_passed(tmp_path):
    class Sine(nn.Module):
        def forward(self, x):
            return torch.sin(x)

    kwargs = dict(hidden_sizes=(8,), activation=Sine)
    train("ppo", "CartPole-v1", tmp_path, ac_kwargs=kwargs)
    with pytest.raises(
        ValueError, match=r"activation is '.*Sine', which is not a class of torch.nn"
    ):
        load_policy(tmp_path)
    get_action = load_policy(tmp_path, deterministic=True, ac_kwargs=kwargs)
    logits = dense(saved_model(tmp_path), "pi.logits_net", OBS, 2, np.sin)
    assert get_action(OBS) == logits.argmax()


def test_a_partial_of_a_torch_class_comes_back(tmp_path):
    kwargs = dict(hidden_sizes=(8,), activation=functools.partial(nn.LeakyReLU, 0.3))
    train("ppo", "CartPole-v1", tmp_path, ac_kwargs=kwargs)
    assert load_actor_critic(tmp_path).v.v_net[1].negative_slope == 0.3


# --- The environment ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "limit"),
    [({}, 200), (dict(max_episode_steps=7), 7), (dict(max_episode_steps=-1), None)],
)
def test_the_environment_has_its_arguments_and_time_limit(tmp_path, made, limit):
    train("ppo", functools.partial(gym.make, "Pendulum-v1", g=3.5, **made), tmp_path)
    env = load_env(tmp_path)
    assert env.unwrapped.g == 3.5
    env.reset()
    ends = [env.step(np.zeros(1))[3] for _ in range(limit or 300)]
    assert ends == [False] * (len(ends) - 1) + [limit is not None]


def test_the_environment_flattens_and_clips_as_in_training(tmp_path):
    make = functools.partial(gym.make, "FrozenLake-v1", desc=["SG"], is_slippery=False)
    train("ppo", make, tmp_path)
    env, get_action = load_policy_and_env(tmp_path)
    obs, _ = env.reset()
    assert obs.tolist() == [1, 0]
    assert 0 <= get_action(obs) < 4
    obs, rew, terminated, _, _ = env.step(2)
    assert (obs.tolist(), rew, terminated) == ([0, 1], 1, True)


def test_seeds_repeat_under_other_wrappers(runs):
    def first_obs(seed):
        return gym.wrappers.RecordEpisodeStatistics(load_env(runs("ppo"), seed=seed)).reset()[0]

    assert (first_obs(1) == first_obs(1)).all()
    assert (first_obs(1) != first_obs(2)).any()
    np.testing.assert_array_equal(first_obs(1), gym.make("CartPole-v1").reset(seed=1)[0])


def test_wrappers_that_belong_to_the_id(tmp_path):
    spec = gym.make("Pendulum-v1").spec
    wrapped = gym.wrappers.RescaleAction(gym.make("Pendulum-v1"), MINUS_ONE, -MINUS_ONE).spec
    gym.register(
        "Rescaled-v0", spec.entry_point, additional_wrappers=wrapped.additional_wrappers[-1:]
    )
    try:
        train("ppo", "Rescaled-v0", tmp_path)
        assert load_env(tmp_path).action_space.high == 1.0
    finally:
        gym.registry.pop("Rescaled-v0")
    with pytest.raises(CannotRebuildEnv, match=r"'Rescaled-v0' can't be made here .*env_fn="):
        load_env(tmp_path)


def test_a_module_that_registers_the_id(tmp_path, monkeypatch):
    (tmp_path / "own_envs.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('Own-v0', 'gymnasium.envs.classic_control:PendulumEnv')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run = tmp_path / "runs" / "own_s0"
    try:
        train("ppo", "own_envs:Own-v0", run)
        gym.registry.pop("Own-v0")
        del sys.modules["own_envs"]
        assert load_env(run).unwrapped.spec.id == "Own-v0"
    finally:
        gym.registry.pop("Own-v0", None)
        sys.modules.pop("own_envs", None)


class Doubled(gym.RewardWrapper):
    def reward(self, reward):
        return 2 * reward


def plus_one(env):
    return gym.wrappers.TransformReward(env, lambda reward: reward + 1)


def test_wrappers_that_were_named_come_back(tmp_path):
    train("ppo", functools.partial(make_wrapped, "CartPole-v1", [Doubled, plus_one]), tmp_path)
    env = load_env(tmp_path)
    env.reset(seed=0)
    assert env.step(0)[1] == 3
    path = tmp_path / "config.json"
    text = path.read_text()
    assert f'"{__name__}:plus_one"' in text
    path.write_text(text.replace(f'"{__name__}:plus_one"', '"gymnasium.wrappers:Autoreset"'))
    names = [wrapper.name for wrapper in load_env(tmp_path).spec.additional_wrappers]
    assert "Autoreset" in names and "Doubled" in names
    path.write_text(text.replace(f"{__name__}:plus_one", f"{__name__}:minus_one"))
    with pytest.raises(CannotRebuildEnv, match=r"'CartPole-v1' can't be made here .*minus_one"):
        load_env(tmp_path)


@pytest.mark.parametrize(
    ("env_fn", "reason"),
    [
        (make_bare_env, "was made by a function and has no id"),
        (
            lambda: gym.wrappers.RescaleAction(gym.make("Pendulum-v1"), MINUS_ONE, -MINUS_ONE),
            "Pendulum-v1, was made by a function that wrapped it in RescaleAction",
        ),
    ],
    ids=["bare", "wrapped"],
)
def test_an_environment_of_a_function(tmp_path, env_fn, reason):
    train("ppo", env_fn, tmp_path)
    with pytest.raises(ValueError, match=f"{reason}.*: pass env_fn="):
        load_env(tmp_path)
    with pytest.warns(UserWarning, match=f"{reason}.*: pass env_fn="):
        env, get_action = load_policy_and_env(tmp_path)
    assert env is None
    assert get_action(PENDULUM_OBS).shape == (1,)
    env, get_action = load_policy_and_env(tmp_path, env_fn=env_fn)
    env.step(get_action(env.reset()[0]))
    assert load_env(tmp_path, env_fn="Pendulum-v1").unwrapped.spec.id == "Pendulum-v1"


def test_env_fn_of_other_spaces(runs):
    with pytest.raises(ValueError, match=r"Pendulum-v1 has Box.*but the policy was trained on Box"):
        load_env(runs("ppo"), env_fn="Pendulum-v1")


def test_render_mode(runs):
    assert load_env(runs("ppo")).render_mode is None
    env = load_env(runs("ppo"), render_mode="rgb_array")
    assert env.render_mode == "rgb_array"
    assert load_env(runs("ppo")).rendered("rgb_array").render_mode == "rgb_array"
    with pytest.raises(ValueError, match=r"render_mode None: pass render_mode='rgb_array'"):
        load_env(runs("ppo"), lambda: gym.make("CartPole-v1"), render_mode="rgb_array")


# --- Invalid folders ------------------------------------------------------------------------------


def test_no_such_folder_names_those_that_begin_so(runs):
    parent = runs("ppo").parent
    with pytest.raises(
        FileNotFoundError, match=r"no folder '.*ppo_C'; did you mean '.*ppo_C.*_s0'"
    ):
        load_policy(parent / "ppo_C")
    with pytest.raises(FileNotFoundError, match=r"no folder '.*nothing'$"):
        load_policy(parent / "far" / "nothing")


def test_an_experiments_folder_names_its_runs(runs):
    with pytest.raises(FileNotFoundError, match=r"no config.json; did you mean '.*ppo_.*_s0'"):
        load_policy(runs("ppo").parent)


@pytest.mark.parametrize("text", ["", "{", "\x00\xff", "[" * 100_000, '{"a": 1'])
def test_corrupt_config(run, text):
    (run / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"config.json' can't be read: "):
        load_policy(run)


@pytest.mark.parametrize("text", ["{}", "[]", "null", "3", '{"env": null}'])
def test_config_of_something_else(run, text):
    (run / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"not from a training run: it lacks \['actor"):
        load_policy(run)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(observation_space={"type": "Bag"}), "describes no Box or Discrete space"),
        (dict(action_space=None), "describes no Box or Discrete space"),
        (dict(ac_kwargs={"hidden_sizes": "many"}), "MLPActorCritic can't be built with ac_kwargs"),
        (dict(ac_kwargs={"hiden_sizes": [8]}), "unexpected keyword argument 'hiden_sizes'"),
        (dict(ac_kwargs=[1]), "MLPActorCritic can't be built with ac_kwargs"),
        (dict(actor_critic=None), "can't be imported .config.json describes it as None"),
        (
            dict(actor_critic="no_such_module:Net"),
            "no module named 'no_such_module' here",
        ),
        (dict(actor_critic="spinup.utils.nets:Net"), "no attribute 'Net'; pass actor_critic="),
        (dict(actor_critic="torch.nn:ReLU"), "ReLU can't be built with ac_kwargs"),
    ],
)
def test_config_that_describes_no_network(run, changes, message):
    with pytest.raises(ValueError, match=message):
        load_policy(edit_config(run, **changes))


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({}, "describes no environment"),
        ("CartPole-v1", "describes no environment"),
        (dict(id=3, kwargs={}, wrappers=[], max_episode_steps=9), "describes no environment"),
        (dict(id="CartPole-v1", kwargs={}, wrappers=[], max_episode_steps="x"), "no environment"),
        (dict(id="CartPole-v9", kwargs={}, wrappers=[], max_episode_steps=9), "can't be made here"),
        (
            dict(id="CartPole-v1", kwargs={"id": 1}, wrappers=[], max_episode_steps=9),
            "multiple values",
        ),
    ],
)
def test_config_that_describes_no_environment(run, env, message):
    edit_config(run, env=env)
    with pytest.raises(ValueError, match=message):
        load_env(run)
    assert load_policy(run)(OBS) in (0, 1)


def test_weights_that_do_not_fit(run):
    edit_config(run, ac_kwargs={"hidden_sizes": [16]})
    with pytest.raises(
        ValueError,
        match=r"don't fit MLPActorCritic: pi.logits_net.0.weight is \(8, 4\) in the file and "
        r"\(16, 4\) in the network, .* and 4 more",
    ):
        load_policy(run)
    with pytest.raises(ValueError, match=r"fit OwnActorCritic: the file has no pi.net.weight"):
        load_policy(run, actor_critic=OwnActorCritic, ac_kwargs={})
    assert load_policy(run, ac_kwargs={"hidden_sizes": [8]})(OBS) in (0, 1)


def test_no_weights(run):
    (run / "pyt_save" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no saved policy.*model.safetensors$"):
        load_policy(run)
    shutil.rmtree(run / "pyt_save")
    with pytest.raises(FileNotFoundError, match="holds no saved policy"):
        load_policy(run)


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_torn_weights(run, keep):
    path = run / "pyt_save" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model.safetensors' can't be read: "):
        load_policy(run)


# --- Malicious folders ----------------------------------------------------------------------------


class Touch:
    """An object whose unpickling makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def trap(run):
    """The path of a file that a malicious run folder tries to make, and must not exist."""
    trap = run.parent / "PWNED"
    yield trap
    assert not trap.exists()


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_pickles_are_not_read(run, trap, name):
    (run / "pyt_save" / "model.safetensors").unlink()
    (run / "pyt_save" / name).write_bytes(pickle.dumps(Touch(trap)))
    message = "model.pt is a pickle, and is not read" if name == "model.pt" else "can't be read"
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_policy(run)


@pytest.mark.parametrize(
    "name",
    [
        "os:system", "subprocess:Popen", "builtins:exec", "antigravity:geohash", "pip.__main__:x",
        "__main__:__builtins__", "spinup.utils.logx:Logger", "..os:system", ":system", "os:",
        "evil:Net", "__import__('os'):x",
    ],
)  # fmt: skip
def test_only_network_classes_are_called(run, trap, monkeypatch, name):
    (run / "evil.py").write_text(f"import pathlib; pathlib.Path({str(trap)!r}).touch()")
    monkeypatch.syspath_prepend(run)
    edit_config(run, actor_critic=name, ac_kwargs={"command": f"touch {trap}"})
    with pytest.raises(ValueError, match="actor_critic") as error:
        load_policy(run)
    assert "actor_critic=..." in str(error.value)
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("name", ["os:system", "builtins:eval", "torch.hub:load", "mine:Tanh"])
@pytest.mark.parametrize("is_partial", [False, True])
def test_only_torch_classes_are_activations(run, trap, name, is_partial):
    value = {"partial": name, "args": [f"touch {trap}"], "kwargs": {}} if is_partial else name
    edit_config(run, ac_kwargs={"hidden_sizes": [8], "activation": value})
    with pytest.raises(ValueError, match=f"activation is '{name}', which is not a class of"):
        load_policy(run)


@pytest.mark.parametrize("env_id", ["os:system", "evil:Env-v0", "../x", "a:b:c", ""])
def test_environment_ids_import_nothing_from_the_folder(run, trap, monkeypatch, env_id):
    (run / "evil.py").write_text(f"import pathlib; pathlib.Path({str(trap)!r}).touch()")
    monkeypatch.syspath_prepend(run)
    made = dict(id=env_id, kwargs={}, wrappers=[], max_episode_steps=None)
    for env_fn in (env_id, f"evil:{env_id}"):
        edit_config(run, env=made, env_fn=env_fn)
        with pytest.raises(CannotRebuildEnv, match="can't be made here"):
            load_env(run)


@pytest.mark.parametrize(
    "name",
    [
        "os:remove", "shutil:rmtree", "builtins:eval", "torch.hub:load", "evil:f", "numpy:save",
        f"{__name__}:shutil.rmtree", f"{__name__}:OwnCritic", "__main__:f", "evil",
        "spinup:run", "",
    ],
)  # fmt: skip
def test_only_wrappers_and_functions_of_the_users_own_are_called(run, trap, monkeypatch, name):
    (run / "evil.py").write_text(f"import pathlib; pathlib.Path({str(trap)!r}).touch()")
    monkeypatch.syspath_prepend(run)
    called = dict(partial=MAKE_WRAPPED, args=["CartPole-v1", [name]], kwargs={})
    edit_config(run, env_fn=called)
    with pytest.raises(CannotRebuildEnv, match="can't be made here"):
        load_env(run)


@pytest.mark.parametrize(
    "args", [[], ["CartPole-v1"], ["CartPole-v1", "a:b"], ["CartPole-v1", [1]]]
)
def test_wrappers_that_are_none(run, args):
    edit_config(run, env_fn=dict(partial=MAKE_WRAPPED, args=args, kwargs={}))
    with pytest.raises(ValueError, match="describes no environment"):
        load_env(run)


# --- Displays -------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="other systems always have a display")
def test_a_display_counts_if_it_answers(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    assert not has_display()
    monkeypatch.setenv("DISPLAY", ":4711")
    assert not has_display()
    monkeypatch.setenv("DISPLAY", "localhost:4711.0")
    assert not has_display()
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    assert has_display()
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    assert not has_display()


@pytest.mark.parametrize("field", ["actor_critic", "env_fn"])
def test_code_in_a_run_folder_that_the_path_reaches_is_not_run(tmp_path, monkeypatch, field):
    # A folder above the run folder is on sys.path, so Python could import data.demo.evil.
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    run, trap = tmp_path / "data" / "demo", tmp_path / "PWNED"
    spinup.ppo("CartPole-v1", steps_per_epoch=20, epochs=1, logger_kwargs=dict(output_dir=str(run)))
    (run / "evil.py").write_text(f"import pathlib; pathlib.Path({str(trap)!r}).touch()")
    config = json.loads((run / "config.json").read_text())
    config |= {"env": None, "actor_critic": "spinup.utils.nets:MLPActorCritic"}
    config[field] = "data.demo.evil:Net" if field == "actor_critic" else "data.demo.evil:Id-v0"
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"can't be|pass"):
        load_policy(str(run)) if field == "actor_critic" else load_env(str(run))
    assert not trap.exists()
