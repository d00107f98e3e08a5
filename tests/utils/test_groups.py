from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from spinup.utils.groups import Group, group_share, on_learners, this_group
from tests.algos.runs import read_progress, timeless_progress
from tests.utils import test_devices

gpus = test_devices.gpus

ONE_GROUP = {"SPINUP_RANKS_PER_LEARNER": "9"}


def results_of(ranks, run_on_ranks, tmp_path, code, env):
    """Runs code that writes ``facts`` for each rank, and returns them in the order of ranks."""
    code += """
import json
json.dump(facts, open(f"facts_{proc_id()}.json", "w"))
"""
    run_on_ranks(ranks, code, env=env)
    return [json.loads((tmp_path / f"facts_{rank}.json").read_text()) for rank in range(ranks)]


# --- A group of one -------------------------------------------------------------------------------


def test_alone_everything_is_ones_own():
    group = Group()
    assert (group.size, group.learns, group.has_actors) == (1, True, False)
    assert group.learner_of == [0]
    rows = np.arange(6).reshape(3, 2)
    assert group.gather(rows) is rows
    group.fetch([torch.ones(2)])
    group.report(ValueError("nobody is told"))
    assert group_share(7) == 7
    group.check_learns()


def test_an_update_of_all_ranks_is_not_wrapped():
    assert on_learners(len) is len


# --- Messages -------------------------------------------------------------------------------------

MESSAGES = """
import numpy as np
import torch
from spinup.utils.groups import group_share, ranks_grouped, this_group
from spinup.utils.mpi_tools import num_procs, proc_id

with ranks_grouped(""):
    group, rank = this_group(), proc_id()
    facts = dict(size=group.size, learns=group.learns, learners=group.learner_of)
    facts["shares"] = [group_share(7), group_share(1)]
    # Rank r has r rows; rows of several dimensions and types, and none at all
    arrays = [np.full((rank, 2, 3), rank, np.float32), np.full(rank, rank, np.int64)]
    arrays += [np.zeros((0, 4), np.float32), np.full((2, 1), rank, bool)]
    gathered = [group.gather(x) for x in arrays]
    facts["gathered"] = [[list(x.shape), str(x.dtype), x.ravel().tolist()] for x in gathered]
    tensors = [
        torch.full((2, 3), float(rank)).t(),
        torch.full((), rank + 0.5, dtype=torch.float64),
        torch.tensor([rank == 0]),
        torch.nn.Parameter(torch.full((1,), float(rank))),
        torch.empty(0),
        torch.full((3,), rank, dtype=torch.int64),
    ]
    group.fetch(tensors)
    facts["tensors"] = [x.tolist() for x in tensors]
    if group.learns:
        with group.only_learners():
            facts["inside"] = [num_procs(), proc_id()]
    facts["outside"] = [num_procs(), proc_id()]
assert not this_group().has_actors
"""


def test_a_group_gathers_on_its_learner_and_fetches_from_it(run_on_ranks, tmp_path):
    facts = results_of(3, run_on_ranks, tmp_path, MESSAGES, ONE_GROUP)
    assert [x["learns"] for x in facts] == [True, False, False]
    assert [x["size"] for x in facts] == [3, 3, 3]
    assert [x["learners"] for x in facts] == [[0, 0, 0]] * 3
    assert [x["shares"] for x in facts] == [[7, 1], [0, 0], [0, 0]]
    assert facts[0]["gathered"] == [
        [[3, 2, 3], "float32", [1.0] * 6 + [2.0] * 12],
        [[3], "int64", [1, 2, 2]],
        [[0, 4], "float32", []],
        [[6, 1], "bool", [False, False, True, True, True, True]],
    ]
    for of_actor in facts[1:]:
        assert [x[0] for x in of_actor["gathered"]] == [[0, 2, 3], [0], [0, 4], [0, 1]]
    expected = [[[0.0, 0.0]] * 3, 0.5, [True], [0.0], [], [0, 0, 0]]
    assert all(x["tensors"] == expected for x in facts)
    assert facts[0]["inside"] == [1, 0]
    assert [x["outside"] for x in facts] == [[3, rank] for rank in range(3)]


def test_each_group_has_its_learner(run_on_ranks, tmp_path):
    env = {"SPINUP_RANKS_PER_LEARNER": "2"}
    facts = results_of(3, run_on_ranks, tmp_path, MESSAGES, env)
    assert [x["learns"] for x in facts] == [True, False, True]
    assert [x["size"] for x in facts] == [2, 2, 1]
    assert [x["learners"] for x in facts] == [[0, 0, 2]] * 3
    # The ranks have 3, 2 and 2 of 7, and 1, 0 and 0 of 1
    assert [x["shares"] for x in facts] == [[5, 1], [0, 0], [2, 0]]
    assert facts[0]["gathered"][1][2] == [1]
    assert facts[2]["gathered"][1][2] == [2, 2]
    assert [x["tensors"][1] for x in facts] == [0.5, 0.5, 2.5]
    assert [facts[0]["inside"], facts[2]["inside"]] == [[2, 0], [2, 1]]


def test_without_a_gpu_every_rank_learns(run_on_ranks, tmp_path):
    facts = results_of(2, run_on_ranks, tmp_path, MESSAGES, {})
    assert [x["size"] for x in facts] == [1, 1]
    assert [x["learners"] for x in facts] == [[0, 1], [0, 1]]
    assert [x["shares"] for x in facts] == [[4, 1], [3, 0]]


def test_ranks_with_the_same_gpu_form_a_group(run_on_ranks, tmp_path):
    code = """
from spinup.utils.groups import ranks_grouped, this_group
from spinup.utils.mpi_tools import proc_id

facts = []
for names in [("a", "b", "a", ""), ("a", "b", "c", "d"), ("", "", "", ""), ("b", "b", "b", "b")]:
    with ranks_grouped(names[proc_id()]):
        facts.append([this_group().size, this_group().learns, this_group().learner_of])
"""
    facts = results_of(4, run_on_ranks, tmp_path, code, {})
    assert [x[0][:2] for x in facts] == [[2, True], [1, True], [2, False], [1, True]]
    assert all(x[0][2] == [0, 1, 0, 3] for x in facts)
    assert [x[1] for x in facts] == [x[2] for x in facts] == [[1, True, [0, 1, 2, 3]]] * 4
    assert [x[3] for x in facts] == [[4, True, [0] * 4], *[[4, False, [0] * 4]] * 3]


# --- Errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error, raised",
    [
        ("FloatingPointError('the loss is NaN')", ["FloatingPointError", "the loss is NaN"]),
        ("ValueError('größer als 1')", ["ValueError", "größer als 1"]),
        ("AssertionError()", ["AssertionError", ""]),
        ("Own('of a user')", ["RuntimeError", "The learner of this rank failed: Own: of a user"]),
        (
            "UnicodeDecodeError('utf8', b'x', 0, 1, 'bad')",
            ["RuntimeError", "The learner of this rank failed: UnicodeDecodeError: 'utf8' codec"],
        ),
    ],
)
def test_actors_raise_the_learners_error(error, raised, run_on_ranks, tmp_path):
    code = f"""
import torch
from spinup.utils.groups import on_learners, ranks_grouped, this_group
from spinup.utils.mpi_tools import num_procs, proc_id

class Own(Exception):
    pass

def update():
    raise {error}

with ranks_grouped(""):
    try:
        on_learners(update)()
        this_group().fetch([torch.ones(3)])
    except Exception as error:
        facts = [type(error).__name__, str(error), num_procs()]
    this_group().fetch([torch.ones(3)])  # the ranks are still in step
"""
    first, second = results_of(2, run_on_ranks, tmp_path, code, ONE_GROUP)
    assert first[0] == error.partition("(")[0]
    assert second[0] == raised[0] and second[1].startswith(raised[1]) and second[2] == 2
    assert first[2] == 2  # the block of learners was left


def test_an_infinite_loss_stops_learner_and_actors(run_on_ranks, tmp_path):
    code = """
from spinup.utils.mpi_tools import proc_id
from tests.algos.envs import Made
from tests.algos.runs import ALGORITHMS, train

facts = {}
for algorithm in ALGORITHMS:
    # The actor's reward breaks the learner's update
    made = Made(length=5, rew=lambda t: 1e25 if proc_id() == 1 else 1.0)
    try:
        train(algorithm, made, algorithm)
    except FloatingPointError as error:
        facts[algorithm] = str(error)
"""
    for of_rank in results_of(2, run_on_ranks, tmp_path, code, ONE_GROUP):
        assert len(of_rank) == 6
        assert all("NaN or infinite" in message for message in of_rank.values()), of_rank
    status = json.loads((tmp_path / "sac" / "status.json").read_text())
    assert status["state"] == "failed"


# --- Training -------------------------------------------------------------------------------------

# Episodes of one step, whose observations and rewards depend on the number of the step over all
# ranks. So one rank and several have the same transitions, and must store them in the same order.
SAME_STEPS = """
import sys
import gymnasium as gym
import numpy as np
import spinup
from importlib import import_module
from spinup.utils.buffers import ReplayBuffer
from spinup.utils.mpi_tools import num_procs, proc_id

ddpg, td3 = (import_module(f"spinup.algos.{name}") for name in ("ddpg", "td3"))

class Numbered(gym.Env):
    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    steps = 0

    def observe(self, shift):
        t = self.steps * num_procs() + (proc_id() or num_procs()) + shift
        return np.sin([t, 2.0 * t, t / 7])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observe(0), {}

    def step(self, action):
        rew = float(self.observe(0.3)[:2] @ action)
        next_obs = self.observe(0.5)
        self.steps += 1
        return next_obs, rew, True, False, {}

class Buffer(ReplayBuffer):
    # Has its own generator, because each rank also draws action noise from the run's generator

    def __init__(self, *args):
        super().__init__(*args)
        self.rng = np.random.default_rng(0)

td3.ReplayBuffer = ddpg.ReplayBuffer = Buffer
facts = {}
for name, kwargs in [("td3", dict(target_noise=0)), ("ddpg", {})]:
    for normalize_obs in (False, True):
        ac = getattr(spinup, name)(
            Numbered, seed=5, epochs=2, steps_per_epoch=130, start_steps=0, act_noise=0,
            # 53 < 130: the buffer is overwritten. Before 37 steps, several cycles wait.
            replay_size=53, update_after=37, update_every=10, batch_size=8, num_test_episodes=0,
            normalize_obs=normalize_obs, ac_kwargs=dict(hidden_sizes=(16,)), **kwargs,
            logger_kwargs=dict(output_dir=f"{sys.argv[1]}/{name}-{normalize_obs}"),
        )
        facts[f"{name}-{normalize_obs}"] = [x.tolist() for x in ac.state_dict().values()]
"""


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_group_stores_and_draws_transitions_as_one_rank(ranks, run_on_ranks, tmp_path):
    run = """
import json
json.dump(facts, open(f"{sys.argv[1]}/{proc_id()}.json", "w"))
"""
    for n, name in [(1, "one"), (ranks, "several")]:
        (tmp_path / name).mkdir()
        run_on_ranks(n, SAME_STEPS + run, [name], env=ONE_GROUP)
    expected = json.loads((tmp_path / "one" / "0.json").read_text())
    assert len(expected) == 4
    for rank in range(ranks):
        assert json.loads((tmp_path / "several" / f"{rank}.json").read_text()) == expected
    for name in expected:
        of_one, of_several = (read_progress(tmp_path / x / name) for x in ("one", "several"))
        for key in ("LossQ", "LossPi"):
            assert of_several[key].tolist() == of_one[key].tolist(), (name, key)


def test_a_users_module_acts_with_the_learners_weights(run_on_ranks, tmp_path):
    """Its policy is no NumPy mirror; it acts with all of the module, here also with its buffer."""
    code = """
import torch
import spinup
from spinup.utils import nets
from spinup.utils.groups import this_group
from spinup.utils.mpi_tools import proc_id

class Own(nets.MLPActorCritic):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer("bias", torch.zeros(1))

    def act(self, obs):
        assert len(obs) == 3
        return super().act(obs) + self.bias.numpy()

seen = []

def look(row, ac):
    if this_group().learns:
        ac.bias += 1  # only a learner's changes count
    seen.append([float(ac.bias), float(sum(p.double().sum() for p in ac.parameters()))])

spinup.ppo("Pendulum-v1", Own, dict(hidden_sizes=(8,)), steps_per_epoch=60, epochs=3,
           on_epoch=look, train_v_iters=3, logger_kwargs=dict(output_dir="run"))
facts = seen
"""
    first, second = results_of(2, run_on_ranks, tmp_path, code, ONE_GROUP)
    assert [x[0] for x in first] == [1, 2, 3]
    assert [x[0] for x in second] == [0, 1, 2]  # as they were at the end of each epoch
    assert [x[1] for x in first] == [x[1] for x in second]


def test_same_seed_and_group_same_progress(run_on_ranks, tmp_path):
    code = """
from tests.algos.runs import ALGORITHMS, train

for name, seed in [("first", 5), ("again", 5), ("other", 6)]:
    for algorithm in ALGORITHMS:
        kwargs = dict(seed=seed, steps_per_epoch=101, max_ep_len=25)
        train(algorithm, "Pendulum-v1", f"{algorithm}-{name}", **kwargs)
"""
    run_on_ranks(3, code, env=ONE_GROUP)
    for algorithm in ("vpg", "trpo", "ppo", "ddpg", "td3", "sac"):
        first, again, other = (
            timeless_progress(tmp_path / f"{algorithm}-{name}")
            for name in ("first", "again", "other")
        )
        assert first == again, algorithm
        assert first != other, algorithm


def test_a_run_is_resumed_with_as_many_learners(run_on_ranks, tmp_path):
    code = """
import sys
from tests.resumable import train

train("sac", "run", epochs=int(sys.argv[1]))
"""
    run_on_ranks(2, code, ["3"], env=ONE_GROUP)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["num_cpu"], config["learners"]) == (2, [0, 0])
    printed = run_on_ranks(2, code, ["4"], check=False).stderr
    assert "learners is [0, 1], but the run to resume has [0, 0]: share GPUs between" in printed
    assert re.search(r"Continuing at step \d+", run_on_ranks(2, code, ["4"], env=ONE_GROUP).stdout)


def test_a_long_update_does_not_look_like_a_hang(run_on_ranks, tmp_path):
    """An actor waits for longer than the watchdog allows, while its learner makes progress."""
    code = """
import time
from spinup.runs.watchdog import still_alive
from spinup.utils.groups import on_learners, ranks_grouped, this_group
import torch

def update():
    for _ in range(12):
        time.sleep(0.5)
        still_alive()

with ranks_grouped(""):
    on_learners(update)()
    this_group().fetch([torch.ones(3)])
print("THE END", flush=True)
"""
    env = ONE_GROUP | {"SPINUP_HANG_SECONDS": "3"}
    assert run_on_ranks(2, code, env=env).stdout.count("THE END") == 2


def test_a_buffer_too_large_for_the_learner_is_refused_on_all_ranks(run_on_ranks, tmp_path):
    code = """
from spinup.utils import buffers
from spinup.utils.mpi_tools import proc_id
from tests.algos.envs import Made
from tests.algos.runs import train

buffers.free_memory = lambda: 1e4  # 7 numbers of 4 bytes each
facts = []
for size in (357, 358):
    try:
        train("sac", Made(length=5), f"run{size}", replay_size=size)
    except ValueError as error:
        facts.append(str(error))
"""
    refused = results_of(2, run_on_ranks, tmp_path, code, ONE_GROUP)
    assert refused[0] == refused[1]
    assert len(refused[0]) == 1
    assert refused[0][0].startswith("replay_size=358 takes 10,024 bytes for the 2 ranks of this")


def test_groups_of_unequal_size_have_unequal_parts_of_a_minibatch(run_on_ranks, tmp_path):
    code = """
import pytest
from spinup.utils.buffers import ReplayBuffer
from spinup.utils.mpi_tools import proc_id
from tests.algos.envs import Made
from tests.algos.runs import train

facts = []

class Recorder(ReplayBuffer):
    def _draw(self, out):
        facts.append([self.size, len(out), self.max_size])
        super()._draw(out)

with pytest.MonkeyPatch.context() as patch:
    patch.setattr("spinup.algos.td3.ReplayBuffer", Recorder)
    train("td3", Made(length=5), "run", steps_per_epoch=30, epochs=1, batch_size=9,
          replay_size=300, update_after=30, update_every=30)
"""
    env = {"SPINUP_RANKS_PER_LEARNER": "2"}
    first, second, third = results_of(3, run_on_ranks, tmp_path, code, env)
    # Every transition has the same chance to be drawn, and is kept as long
    assert first == [[20, 6, 200]] * 30
    assert second == []
    assert third == [[10, 3, 100]] * 30


def test_an_update_that_is_not_wrapped_is_refused_on_an_actor(run_on_ranks, tmp_path):
    code = """
from contextlib import nullcontext
from gymnasium.spaces import Box
import numpy as np
from spinup.utils.buffers import ReplayBuffer
from spinup.utils.groups import ranks_grouped, this_group
from spinup.utils.mpi_tools import proc_id
from spinup.utils.trajectories import TrajectoryBuffer

box, facts = Box(-1, 1, (2,)), []
with ranks_grouped(""):
    replay = ReplayBuffer(box, box, 10 * (proc_id() == 0), np.random.default_rng(0))
    epoch = TrajectoryBuffer(box, box, 1, 0.9, 0.9)
    replay.store(np.ones(2), np.ones(2), 1, np.ones(2), False)
    epoch.store(np.ones(2), np.ones(2), 1)
    epoch.finish_path(None)
    replay.gather()
    epoch.gather()
    for read in (lambda: replay.sample_batch(2), lambda: epoch.get(lambda obs: obs.sum(1))):
        try:
            with this_group().only_learners() if this_group().learns else nullcontext():
                facts.append(len(read()["obs"]))
        except RuntimeError as error:
            facts.append(str(error))
"""
    first, second = results_of(2, run_on_ranks, tmp_path, code, ONE_GROUP)
    assert first == [2, 2]
    assert all("wrap the update in on_learners" in x for x in second)


def test_an_algorithms_default_device_counts(monkeypatch):
    from spinup.utils import training

    asked = []
    monkeypatch.setattr(training, "gpu_name", lambda device: asked.append(device) or "")

    @training.training_run
    def own(env_fn, device="auto"):
        pass

    @training.training_run
    def without(env_fn):
        pass

    own("CartPole-v1"), own("CartPole-v1", device="cpu"), without("CartPole-v1")
    assert asked == ["auto", "cpu", "cpu"]


# --- Devices --------------------------------------------------------------------------------------


class _Actor(Group):
    def __init__(self):
        super().__init__()
        self.size, self.learns = 2, False


def test_actors_of_a_gpu_are_on_the_cpu(gpus, monkeypatch):
    gpus(1)
    assert test_devices.choose_device("cuda") == torch.device("cuda:0")
    monkeypatch.setattr("spinup.utils.groups._group", _Actor())
    assert not this_group().learns
    gpus.current.clear()
    assert test_devices.choose_device("cuda") == torch.device("cpu")
    assert gpus.current == []  # no context is opened
    with pytest.raises(ValueError, match="there are 1 GPUs"):
        test_devices.choose_device("cuda:3")
