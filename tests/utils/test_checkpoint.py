"""Checkpoints: their files, damage to them, and how runs use them."""

from __future__ import annotations

import copy
import json
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import time

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from spinup import sac
from spinup.algos import ALGORITHMS
from spinup.runs.folder import read_status
from spinup.utils import acting, checkpoint
from spinup.utils.buffers import ReplayBuffer
from spinup.utils.envs import make_env, seed_everything
from spinup.utils.flat import flatten
from spinup.utils.logx import EpochLogger, Logger
from spinup.utils.optim import Adam
from tests.resumable import differences, final_state, train

STATE = {
    "counters": {"t": 7, "ep_ret": 0.1 + 0.2, "big": 2**100, "none": None},
    "arrays": [np.arange(6.0).reshape(2, 3), torch.tensor([1, 2]), np.zeros((0, 4), np.float32)],
    "nan": float("nan"),
    "text": "ü",
}


def write(folder, *steps, state=STATE):
    for step in steps:
        checkpoint.write(folder, step, state)


# --- Files ---


def test_what_is_written_is_read(tmp_path):
    write(tmp_path, 7)
    assert checkpoint.find(tmp_path) == 7
    state = checkpoint.read(tmp_path, 7)
    assert state["counters"] == STATE["counters"]
    assert (state["text"], np.isnan(state["nan"])) == ("ü", True)
    for ours, theirs in zip(state["arrays"], STATE["arrays"], strict=True):
        assert np.array_equal(ours, np.asarray(theirs))
        assert (ours.dtype, ours.shape) == (np.asarray(theirs).dtype, np.asarray(theirs).shape)


def test_the_last_two_are_kept_and_nothing_unfinished(tmp_path):
    (tmp_path / ".unfinished-3").mkdir()
    write(tmp_path, 1, 2, 10, 9, 100)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-10", "step-100"]


def test_the_same_step_again_replaces_it(tmp_path):
    write(tmp_path, 5)
    write(tmp_path, 5, state={"new": 1})
    assert checkpoint.read(tmp_path, 5) == {"new": 1}


def test_nothing_there(tmp_path):
    assert checkpoint.find(tmp_path / "none") is None
    (tmp_path / "step-x").mkdir()
    assert checkpoint.find(tmp_path) is None


def test_two_hundred_damages_are_all_found(tmp_path):
    write(tmp_path, 1)
    intact = tmp_path / "step-1"
    assert checkpoint.check(intact) is None
    rng = random.Random(0)
    for number in range(200):
        copy = tmp_path / f"copy{number}" / "step-1"
        shutil.copytree(intact, copy)
        path = rng.choice(sorted(copy.iterdir()))
        content = bytearray(path.read_bytes())
        if number % 2:
            place = rng.randrange(len(content))
            content[place] ^= 1 << rng.randrange(8)
        else:
            del content[rng.randrange(len(content)) :]
        path.write_bytes(content)
        damage = checkpoint.check(copy)
        # A flip in the manifest's white space doesn't change its meaning
        if damage is None:
            ours, theirs = (json.loads((p / "manifest.json").read_bytes()) for p in (copy, intact))
            assert path.name == "manifest.json" and ours == theirs, (number, path.name)
        shutil.rmtree(copy.parent)


@pytest.mark.parametrize("name", ["manifest.json", "rank0.json", "rank0.safetensors"])
def test_a_damaged_one_is_named_and_the_one_before_is_used(name, tmp_path):
    write(tmp_path, 1, 2)
    path = tmp_path / "step-2" / name
    path.write_bytes(path.read_bytes()[:-3])
    said = []
    assert checkpoint.find(tmp_path, said.append) == 1
    assert said[0].startswith("The checkpoint of step 2 can't be used: ")
    (tmp_path / "step-1" / name).unlink()
    assert checkpoint.find(tmp_path, said.append) is None


def test_one_of_another_step_or_number_of_ranks_is_not_taken(tmp_path, monkeypatch):
    write(tmp_path, 1)
    os.rename(tmp_path / "step-1", tmp_path / "step-2")
    assert "belongs to another checkpoint" in checkpoint.check(tmp_path / "step-2")
    write(tmp_path, 1)
    monkeypatch.setattr(checkpoint, "num_procs", lambda: 2)
    assert checkpoint.check(tmp_path / "step-1") == "it was saved on 1 ranks, but this run has 2"


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    write(tmp_path, 1)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.safetensors.numpy, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path, 2)
    assert checkpoint.find(tmp_path) == 1


def test_on_windows_only_files_that_are_open_for_writing_are_flushed(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    flushed = []

    def fsync(descriptor):
        assert not stat.S_ISDIR(os.fstat(descriptor).st_mode)
        assert fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
        flushed.append(descriptor)

    monkeypatch.setattr("spinup.runs.files.ON_WINDOWS", True)
    monkeypatch.setattr(checkpoint.os, "fsync", fsync)
    write(tmp_path, 7)
    assert checkpoint.find(tmp_path) == 7
    assert len(flushed) == 3


# --- What is saved ---


def test_optimizers_buffers_and_generators_come_back():
    torch.manual_seed(0)
    params = flatten(torch.nn.Linear(3, 2))
    rng = np.random.default_rng(0)
    buf = ReplayBuffer(Box(-1, 1, (2,)), Box(-1, 1, (1,)), 5, rng)
    for i in range(7):
        buf.store([i, i], [i], i, [i, i], False)
    for threads in (1, 2):  # the library's own, and PyTorch's
        torch.set_num_threads(threads)
        adam = Adam(params, 0.1)
        for _ in range(3):
            params.grad.normal_()
            adam.step()
        state = checkpoint._without_arrays(
            {"adam": adam.state_dict(), "buf": buf.state_dict()}, "", {}
        )
        assert state["adam"]["steps"] == 3
        other = torch.nn.Parameter(params.detach().clone())
        other.grad = params.grad.clone()
        again = Adam(other, 0.1)
        again.load_state_dict(adam.state_dict())
        adam.step()
        again.step()
        assert torch.equal(params, other)
    torch.set_num_threads(1)
    new = ReplayBuffer(Box(-1, 1, (2,)), Box(-1, 1, (1,)), 5, np.random.default_rng(9))
    new.load_state_dict(buf.state_dict())
    checkpoint._load(new.rng, checkpoint._state(rng))
    assert (new.size, new.ptr) == (5, 2)
    assert torch.equal(new.sample_batch(20)["rew"], buf.sample_batch(20)["rew"])


def test_global_generators_come_back():
    seed_everything(4)
    generators = checkpoint._GlobalGenerators()
    arrays: dict = {}
    state = json.loads(json.dumps(checkpoint._without_arrays(generators.state_dict(), "", arrays)))
    draws = [random.random(), np.random.rand(), torch.rand(1).item(), np.random.normal()]
    seed_everything(5)
    generators.load_state_dict(checkpoint._with_arrays(state, arrays))
    assert draws == [random.random(), np.random.rand(), torch.rand(1).item(), np.random.normal()]


def test_the_generator_of_a_gpu_comes_back_if_the_run_uses_one(monkeypatch):
    states = [torch.tensor([1, 2], dtype=torch.uint8)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: states[-1])  # of the current device
    monkeypatch.setattr(torch.cuda, "set_rng_state", states.append)
    arrays: dict = {}
    generators = checkpoint._GlobalGenerators()
    state = json.loads(json.dumps(checkpoint._without_arrays(generators.state_dict(), "", arrays)))
    generators.load_state_dict(checkpoint._with_arrays(state, arrays))
    assert [x.tolist() for x in states] == [[1, 2], [1, 2]]


def test_a_checkpoint_of_a_run_on_the_cpu_leaves_the_gpus_alone(monkeypatch):
    """Reading a GPU's generator would open a context on it, which takes memory or fails."""

    def opens_a_context(*args):
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", opens_a_context)
    monkeypatch.setattr(torch.cuda, "set_rng_state", opens_a_context)
    generators = checkpoint._GlobalGenerators()
    state = {k: np.asarray(v) if k == "torch" else v for k, v in generators.state_dict().items()}
    generators.load_state_dict(state | {"cuda": np.zeros(2, np.uint8)})  # saved on a GPU


# --- Environments ---


def steps(env, number, rng):
    obs, ep_ret = None, 0.0
    for _ in range(number):
        obs, rew, *_ = env.step(env.random_action() if rng is None else rng.normal(size=1))
        ep_ret += rew
    return obs, ep_ret


@pytest.mark.parametrize("name", ["Pendulum-v1", "HalfCheetah-v5"])
@pytest.mark.parametrize("episodes", [1, 2])
def test_an_episode_is_played_again(name, episodes):
    env = make_env(name, 3)
    for _ in range(episodes):
        obs, _, length = env.continue_episode()
        obs, ep_ret = steps(env, 23, None)
    state = env.state_dict()
    again = make_env(name, 77)
    again.reset()
    again.load_state_dict(state)
    obs_again, ep_ret_again, length = again.continue_episode()
    assert (ep_ret_again, length, again.steps) == (ep_ret, 23, env.steps)
    assert np.array_equal(obs_again, obs)
    for _ in range(3):  # and continues the same, also in later episodes
        for ours, theirs in zip(steps(again, 10, None), steps(env, 10, None)):
            assert np.array_equal(ours, theirs)
        assert np.array_equal(again.reset()[0], env.reset()[0])


class Drifting(gym.Env):
    """An environment whose observations depend on the number of environments made before."""

    observation_space, action_space = Box(-9, 9, (1,)), Box(-1, 1, (1,))
    made = 0

    def __init__(self):
        Drifting.made += 1
        self.number = Drifting.made

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        if self.number > 2 and self.fails:
            raise RuntimeError("by test")
        return np.full(1, self.number, np.float32), 1.0, False, False, {}


@pytest.mark.parametrize(
    "fails, reason", [(False, "the replay ends"), (True, "RuntimeError: by test")]
)
def test_an_environment_that_is_not_deterministic_starts_anew(fails, reason, monkeypatch):
    monkeypatch.setattr(Drifting, "made", 0)
    monkeypatch.setattr(Drifting, "fails", fails, raising=False)
    env = make_env(Drifting, 0)
    env.reset()
    steps(env, 3, np.random.default_rng(0))
    again = make_env(Drifting, 0)
    again.unwrapped.number = 3
    again.load_state_dict(env.state_dict())
    before = torch.get_rng_state()
    with pytest.warns(UserWarning, match=rf"Drifting can't replay .*\({reason}"):
        obs, ep_ret, length = again.continue_episode()
    assert (obs.tolist(), ep_ret, length, again.steps) == ([0], 0, 0, 3)
    assert torch.equal(before, torch.get_rng_state())


# --- Runs ---


class Enough(Exception):
    """Raised to end a run from inside."""


def stop_after(monkeypatch, saves):
    """Makes a run fail after a number of checkpoints."""
    save, count = checkpoint.Checkpoint.save, []

    def counted(self, t, **counters):
        save(self, t, **counters)
        count.append(t)
        if len(count) == saves:
            raise Enough

    monkeypatch.setattr(checkpoint.Checkpoint, "save", counted)


def act_by_copies(monkeypatch):
    """Makes acting policies hold copies of the weights, as they do of a module on a GPU."""
    refresh = acting._NumpyPolicy.refresh

    def copying(self):
        shared = self._pi, self._normalizer
        self._pi, self._normalizer, self._places = *copy.deepcopy(shared), None
        refresh(self)
        self._pi, self._normalizer = shared

    monkeypatch.setattr(acting._NumpyPolicy, "refresh", copying)


@pytest.mark.parametrize("copies", [False, True], ids=["", "acting by copies"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_resumed_run_is_the_run_without_a_break(algorithm, copies, tmp_path, monkeypatch):
    ac = train(algorithm, tmp_path / "whole")
    if copies:
        act_by_copies(monkeypatch)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Enough):
            train(algorithm, tmp_path / "cut")
    seed_everything(99)
    resumed = train(algorithm, tmp_path / "cut")
    assert differences(final_state(tmp_path / "whole"), final_state(tmp_path / "cut")) == []
    for ours, theirs in zip(ac.parameters(), resumed.parameters()):
        assert torch.equal(ours, theirs)
    # Once more, when nothing is left to do: the trained networks
    finished = train(algorithm, tmp_path / "cut")
    assert torch.equal(next(finished.parameters()), next(ac.parameters()))
    assert read_status(tmp_path / "cut")["state"] == "finished"


def test_more_epochs_make_a_finished_run_longer(tmp_path):
    train("sac", tmp_path / "long", epochs=6)
    train("sac", tmp_path / "short", epochs=4)
    train("sac", tmp_path / "short", epochs=6)
    assert differences(final_state(tmp_path / "long"), final_state(tmp_path / "short")) == []


def test_a_damaged_checkpoint_costs_time_and_nothing_else(tmp_path, monkeypatch, capsys):
    train("td3", tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(Enough):
            train("td3", tmp_path / "cut")
    newest = max((tmp_path / "cut" / "checkpoint").iterdir(), key=lambda path: path.name)
    path = newest / "rank0.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    path.write_bytes(content)
    train("td3", tmp_path / "cut")
    assert "can't be used: rank0.safetensors is damaged" in capsys.readouterr().out
    assert differences(final_state(tmp_path / "whole"), final_state(tmp_path / "cut")) == []


def test_without_a_checkpoint_it_starts_anew(tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "progress.txt").write_text("Epoch\tTorn")
    train("ppo", folder)
    train("ppo", tmp_path / "other")
    assert differences(final_state(folder), final_state(tmp_path / "other")) == []
    printed = capsys.readouterr().out
    assert "Continuing" not in printed
    assert "There is no checkpoint yet: the run starts from the beginning" in printed


@pytest.mark.parametrize("epochs", [1, 3])
def test_results_without_a_checkpoint_are_not_replaced(epochs, tmp_path):
    folder = tmp_path / "run"
    train("ppo", folder, epochs=epochs)
    shutil.rmtree(folder / "checkpoint")
    kept = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    message = r"run holds results, but there is no checkpoint to continue from: --overwrite"
    with pytest.raises(ValueError, match=message):
        train("ppo", folder, epochs=4)
    assert kept == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_killed_before_its_first_checkpoint_starts_from_the_beginning(tmp_path, monkeypatch):
    def killed(*args):
        raise Enough

    train("ppo", tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Enough):
        patch.setattr(checkpoint, "write", killed)
        train("ppo", tmp_path / "cut")
    assert (tmp_path / "cut/progress.txt").read_text().count("\n") == 2  # the header and a row
    train("ppo", tmp_path / "cut")
    assert differences(final_state(tmp_path / "whole"), final_state(tmp_path / "cut")) == []


def test_checkpoints_none_of_which_can_be_used_lose_nothing(tmp_path):
    folder = tmp_path / "run"
    train("ppo", folder)
    for path in (folder / "checkpoint").glob("step-*/rank0.json"):
        path.write_text("{}")
    kept = {name: (folder / name).read_text() for name in ("progress.txt", "status.json")}
    kept["config.json"] = (folder / "config.json").read_text()
    with pytest.raises(ValueError, match=r"No checkpoint in .*run/checkpoint can be used"):
        train("ppo", folder, epochs=20)
    assert {name: (folder / name).read_text() for name in kept} == kept


def test_settings_are_compared_with_the_checkpoints_where_config_json_is_lost(tmp_path):
    folder = tmp_path / "run"
    train("ppo", folder)
    (folder / "config.json").unlink()
    status = read_status(folder)
    with pytest.raises(ValueError, match=r"gamma is 0.9, but the run to resume has 0.99"):
        train("ppo", folder, gamma=0.9)
    assert not (folder / "config.json").exists()
    assert read_status(folder) == status
    train("ppo", folder, epochs=11)
    assert (folder / "config.json").exists()


def test_the_first_epoch_has_a_checkpoint_however_short(tmp_path, monkeypatch):
    stop_after(monkeypatch, 1)
    with pytest.raises(Enough):
        train("ppo", tmp_path / "run", checkpoint_every=1e9)
    assert checkpoint.find(tmp_path / "run" / "checkpoint") == 161


@pytest.mark.parametrize(
    "changed, message",
    [
        (dict(gamma=0.9), r"gamma is 0.9, but the run to resume has 0.99: use that value, or"),
        (dict(seed=4), "seed is 4, but the run to resume has 3"),
        (dict(ac_kwargs=dict(hidden_sizes=(8, 8))), r"ac_kwargs is \{'hidden_sizes': \[8, 8\]\}"),
        (dict(env_fn="MountainCarContinuous-v0"), "env_fn is 'MountainCarContinuous-v0'"),
        (dict(epochs=2), "epochs is 2, but the run to resume has 10: more are allowed"),
    ],
)
def test_what_has_changed_is_refused_and_named(changed, message, tmp_path):
    train("ppo", tmp_path)
    before = final_state(tmp_path), (tmp_path / "config.json").read_text()
    with pytest.raises(ValueError, match=message):
        train("ppo", tmp_path, **changed)
    assert before[1] == (tmp_path / "config.json").read_text()
    assert differences(before[0], final_state(tmp_path)) == []


def test_checkpoints_come_by_the_clock_at_ends_of_epochs_and_at_the_end(tmp_path, monkeypatch):
    clock, taken = [0.0], []
    monkeypatch.setattr(checkpoint.time, "time", lambda: clock[0])
    logger = EpochLogger(output_dir=tmp_path)
    kept = checkpoint.Checkpoint(logger, 10, steps_per_epoch=5, total_steps=23, meet_every=2)
    kept.save = lambda t, is_last: (taken.append(t), setattr(kept, "_saved", clock[0]))
    for t in range(1, 24):
        clock[0] += 3
        kept.step(t)
    # Due after 10 seconds, which is after 15, 30, 45 and 60 seconds at the ends of epochs
    assert taken == [5, 10, 15, 20]
    kept.total_steps = 24
    kept.step(24)
    assert taken == [5, 10, 15, 20, 24]
    logger.close()


# --- Signals, and the lock ---

SCRIPT = """
import sys
from tests.resumable import train
train(sys.argv[1], sys.argv[2], epochs=100000)
"""


def started(run, folder, algorithm="sac"):
    process = run(["-c", SCRIPT, algorithm, str(folder)])
    deadline = time.monotonic() + 200
    while not (folder / "progress.txt").exists() or not (folder / "progress.txt").read_text():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    return process


@pytest.fixture
def start_python(tmp_path):
    from spinup.launch.mpiexec import launch_command
    from tests.conftest import _clean_environment

    processes = []

    def start(args):
        command, env = launch_command(1, args)
        streams = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        processes.append(subprocess.Popen(command, env=_clean_environment(env), **streams))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_a_signal_saves_and_ends(name, tmp_path, start_python):
    process = started(start_python, tmp_path / "run")
    process.send_signal(getattr(signal, name))
    printed = process.communicate(timeout=200)[0]
    step = int(re.search(r"Saved at step (\d+); continue with the same command", printed)[1])
    assert "Stopping at the next point" in printed
    status = read_status(tmp_path / "run")
    assert status["state"] == "interrupted"
    assert status["error"] == f"stopped, and saved at step {step}: continue with --resume"
    assert "Traceback" not in printed
    assert checkpoint.find(tmp_path / "run" / "checkpoint") == step
    assert process.returncode == 128 + getattr(signal, name)
    assert (tmp_path / "run/pyt_save/model.safetensors").exists()


def test_two_runs_in_one_folder(tmp_path, start_python):
    process = started(start_python, tmp_path / "run")
    for settings in (dict(resume=True), dict(overwrite=True)):
        with pytest.raises(BlockingIOError, match="run is in use by a run that is under way"):
            Logger(output_dir=tmp_path / "run", **settings)
    process.kill()
    process.wait()
    assert (tmp_path / "run" / "progress.txt").read_text()
    Logger(output_dir=tmp_path / "run", resume=True).close()  # the dead don't block


@pytest.mark.parametrize("name", [".lock", "progress.txt"])
@pytest.mark.parametrize("resume", [False, True])
def test_a_link_in_place_of_a_file_is_not_followed(name, resume, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "precious").write_text("")
    (tmp_path / "run" / name).symlink_to(tmp_path / "precious")
    with pytest.raises(OSError):
        logger = Logger(output_dir=tmp_path / "run", resume=resume)
        logger.log_tabular("Epoch", 1)
        logger.dump_tabular()
    assert (tmp_path / "precious").read_text() == ""


def test_a_hostile_folder_runs_nothing_and_reaches_nothing_outside(tmp_path, monkeypatch):
    train("sac", tmp_path / "run", epochs=2)
    outside = tmp_path / "outside"
    shutil.copytree(tmp_path / "run" / "checkpoint", outside)
    before = {path: path.read_bytes() for path in outside.rglob("*") if path.is_file()}
    steps = sorted((tmp_path / "run" / "checkpoint").iterdir())
    # A pickle in place of the arrays, with a matching manifest
    bomb = b"cos\nsystem\n(S'touch " + str(tmp_path / "PWNED").encode() + b"'\ntR."
    for step in steps:
        (step / "rank0.safetensors").write_bytes(bomb)
        manifest = json.loads((step / "manifest.json").read_text())
        manifest["files"]["rank0.safetensors"] = checkpoint._describe(step / "rank0.safetensors")
        del manifest["sha256"]
        manifest["sha256"] = checkpoint._digest(manifest)
        (step / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(Exception, match=r"(?i)header"):
        train("sac", tmp_path / "run", epochs=3)
    # Names of files in another folder
    manifest["files"]["../../outside/x"] = manifest["files"].pop("rank0.safetensors")
    del manifest["sha256"]
    manifest["sha256"] = checkpoint._digest(manifest)
    (steps[-1] / "manifest.json").write_text(json.dumps(manifest))
    assert checkpoint.check(steps[-1]) == "manifest.json lists other files"
    (steps[-1] / "manifest.json").write_text("[" * 100_000)
    assert "RecursionError" in checkpoint.check(steps[-1])
    # A link out of the folder
    shutil.rmtree(tmp_path / "run" / "checkpoint")
    (tmp_path / "run" / "checkpoint").symlink_to(outside)
    with pytest.raises(OSError, match="is a link, through which nothing is written"):
        train("sac", tmp_path / "run", epochs=3)
    assert before == {path: path.read_bytes() for path in outside.rglob("*") if path.is_file()}
    assert not (tmp_path / "PWNED").exists()


def test_users_networks_with_buffers_come_back(tmp_path, monkeypatch):
    from tests.algos.plain import OnPolicy

    class Normalised(OnPolicy):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.pi.register_buffer("seen", torch.zeros(1))

        def act(self, obs):
            self.pi.seen += 1
            return super().act(obs)

    kwargs = dict(actor_critic=Normalised, ac_kwargs={}, epochs=4)
    whole = train("ppo", tmp_path / "whole", **kwargs)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Enough):
            train("ppo", tmp_path / "cut", **kwargs)
    cut = train("ppo", tmp_path / "cut", **kwargs)
    assert cut.pi.seen == whole.pi.seen == 4 * 161
    assert differences(final_state(tmp_path / "whole"), final_state(tmp_path / "cut")) == []


def test_sac_with_a_fixed_temperature(tmp_path):
    kwargs = dict(steps_per_epoch=60, start_steps=20, update_after=20, num_test_episodes=1)
    kwargs |= dict(alpha=0.1, max_ep_len=50, ac_kwargs=dict(hidden_sizes=(8,)))
    for epochs in (2, 4):
        sac(
            "Pendulum-v1",
            epochs=epochs,
            logger_kwargs=dict(output_dir=tmp_path / "a", resume=True),
            **kwargs,
        )
    sac("Pendulum-v1", epochs=4, logger_kwargs=dict(output_dir=tmp_path / "b"), **kwargs)
    assert differences(final_state(tmp_path / "a"), final_state(tmp_path / "b")) == []


# --- A full disk ---

# The disk becomes full at step `since` of the environments, and has room again at step `until`
LIMITED = """
import resource
from gymnasium.envs.classic_control import PendulumEnv
from tests.resumable import train

steps, step = 0, PendulumEnv.step

def limited_step(self, action):
    global steps
    steps += 1
    if steps in ({since}, {until}):
        size = {size} if steps == {since} else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    return step(self, action)

PendulumEnv.step = limited_step
train({algorithm!r}, {folder!r}, {settings})
print("THE END")
"""
no_limit = pytest.mark.skipif(not hasattr(os, "fork"), reason="no such limit on Windows")


@no_limit
@pytest.mark.parametrize("size", [0, 1500, 20_000])
def test_a_disk_that_is_full_for_a_while_costs_nothing(size, tmp_path, run_python):
    """In the third to seventh of 10 epochs, each of 161 steps, all or some files find no room."""
    folder = tmp_path / "run"
    settings = dict(algorithm="ppo", folder=str(folder), settings="save_freq=1")
    result = run_python(["-c", LIMITED.format(size=size, since=330, until=1200, **settings)])
    assert result.returncode == 0, result.stderr
    assert "THE END" in result.stdout
    for name in ["the checkpoint"] + ["progress.txt", "the policy", "the status"] * (size == 0):
        assert result.stdout.count(f"Warning: {name} can't be written to {folder}: File too") == 1
        assert result.stdout.count(f"There is room for {name} again") == 1
    train("ppo", tmp_path / "whole", save_freq=1)
    assert differences(final_state(tmp_path / "whole"), final_state(folder)) == []
    assert read_status(folder)["state"] == "finished"
    assert not list(folder.rglob("*.tmp")) and not list(folder.rglob(".unfinished*"))


@no_limit
@pytest.mark.parametrize(
    "size, settings, message",
    [
        (60_000, "", r"the checkpoint of step \d+ can't be written to .*/checkpoint; earlier"),
        (0, "epochs=3, checkpoint_every=1e9", "the checkpoint of step 483 can't be written to"),
    ],
)
def test_a_disk_that_stays_full_ends_the_run_loudly_and_it_can_be_continued(
    size, settings, message, tmp_path, run_python
):
    folder = tmp_path / "run"
    made = LIMITED.format(
        algorithm="td3", folder=str(folder), settings=settings, size=size, since=1400, until=-1
    )
    result = run_python(["-c", made])
    assert result.returncode == 1
    last_line = result.stderr.strip().splitlines()[-1]
    assert re.match(rf"OSError: \[Errno 27\] File too large: {message}", last_line)
    assert last_line.endswith("Free disk space, and continue with --resume")
    rows = (folder / "progress.txt").read_text().splitlines()
    assert {line.count("\t") for line in rows} == {rows[0].count("\t")}  # no partial rows
    assert checkpoint.find(folder / "checkpoint") >= 161
    train("td3", folder, epochs=10)
    train("td3", tmp_path / "whole", epochs=10)
    assert differences(final_state(tmp_path / "whole"), final_state(folder)) == []


@no_limit
def test_a_disk_that_is_full_from_the_start_on_leaves_nothing_to_resume(tmp_path, run_python):
    folder = tmp_path / "run"
    made = LIMITED.format(
        algorithm="ppo", folder=str(folder), settings="epochs=3", size=20_000, since=1, until=-1
    )
    result = run_python(["-c", made])
    assert result.returncode == 1
    last_line = result.stderr.strip().splitlines()[-1]
    assert "the checkpoint of step 483 can't be written to" in last_line
    assert last_line.endswith(
        "; no other exists. Free disk space, and start again with --overwrite"
    )
    progress = (folder / "progress.txt").read_text()
    assert progress.count("\n") == 4
    with pytest.raises(ValueError, match="--overwrite"):
        train("ppo", folder)
    assert (folder / "progress.txt").read_text() == progress


@no_limit
def test_the_last_policy_and_rows_are_written_or_the_run_fails(tmp_path, run_python):
    code = f"""
import resource
import torch
from spinup.utils.logx import EpochLogger

logger = EpochLogger(output_dir={str(tmp_path / "run")!r})
logger.setup_pytorch_saver(torch.nn.Linear(1, 1))
logger.begin()
resource.setrlimit(resource.RLIMIT_FSIZE, ({{size}}, resource.RLIM_INFINITY))
logger.save_state()
logger.log_tabular("Epoch", 1)
logger.dump_tabular()
if {{lasts}}:
    logger.close()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
logger.close()
"""
    for size, name in ((0, "progress.txt"), (100, "the policy")):
        result = run_python(["-c", code.format(size=size, lasts=True)])
        assert result.returncode == 1
        assert f"File too large: {name} can't be written to {tmp_path}" in result.stderr
        shutil.rmtree(tmp_path / "run")
    assert run_python(["-c", code.format(size=0, lasts=False)]).returncode == 0
    assert (tmp_path / "run/progress.txt").read_text() == "Epoch\n1\n"
    assert (tmp_path / "run/pyt_save/model.safetensors").exists()


@no_limit
def test_a_disk_that_is_full_for_one_rank_holds_up_no_other(tmp_path, run_on_ranks):
    code = LIMITED.format(
        algorithm="ppo", folder=str(tmp_path / "run"), settings="", size=0, since=200, until=500
    )
    only_one = "from spinup.utils.mpi_tools import proc_id\nif proc_id() == 1:\n    "
    code = code.replace("PendulumEnv.step = ", only_one + "PendulumEnv.step = ")
    printed = run_on_ranks(2, code).stdout
    assert printed.count("Warning: the checkpoint can't be written to") == 1
    assert printed.count("There is room for the checkpoint again") == 1
    assert printed.count("THE END") == 2
    run_on_ranks(2, code.replace("/run'", "/whole'").replace("(200, 500)", "()"))
    whole, cut = final_state(tmp_path / "whole"), final_state(tmp_path / "run")
    assert differences(whole, cut) == []
