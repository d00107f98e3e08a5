import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import time

import pytest

import spinup.cli.main
from spinup import user_config
from spinup.algos import ALGORITHMS
from spinup.launch.grid import ExperimentGrid
from spinup.runs.folder import read_status
from spinup.version import __version__

QUICK = "ppo --env CartPole-v1 --steps_per_epoch 200 --epochs 2 --train_pi_iters 2"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPINUP_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(user_config, "DEFAULT_DATA_DIR", str(tmp_path / "data"))
    return tmp_path


def run(line, capsys):
    """Runs a command line in this process; returns its status, output and errors."""
    status = spinup.cli.main.main(shlex.split(line))
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def plan_of(line):
    """Returns the folders and arguments of a command line's variants, without running them."""
    command, *words = shlex.split(line)
    grid, options = spinup.cli.main.build_grid(command, spinup.ppo, words)
    plan = grid.plan(spinup.ppo, **options)
    return {os.path.relpath(e.folder, plan.root): e.kwargs for e in plan.experiments}, plan


# --- Grammar --------------------------------------------------------------------------------------


def test_the_example_of_the_design():
    line = (
        "ppo --env CartPole-v1 --clip_ratio 0.1 0.2 --hid[h] [32,32] [64,64] --act tanh relu "
        "--seed 0 10 20 --exp_name demo --cpu 2"
    )
    variants, plan = plan_of(line)
    assert len(variants) == 24
    # The order of names is Spinning Up's: short flags come last.
    first, kwargs = next(iter(variants.items()))
    assert first == "demo_cli0-1_h32-32_ac-acttanh/demo_cli0-1_h32-32_ac-acttanh_s0"
    assert list(variants)[-1] == "demo_cli0-2_h64-64_ac-actrelu/demo_cli0-2_h64-64_ac-actrelu_s20"
    assert kwargs["env_name"] == "CartPole-v1"
    assert kwargs["clip_ratio"] == 0.1
    assert kwargs["ac_kwargs"]["hidden_sizes"] == [32, 32]
    assert kwargs["ac_kwargs"]["activation"].__name__ == "Tanh"
    assert [e.num_cpu for e in plan.experiments] == [2] * 24


def test_flags_of_the_runner():
    variants, plan = plan_of(
        "ppo --env=CartPole-v1 --dt --data_dir=there --jobs 3 --overwrite true"
    )
    (folder,) = variants
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_cmd_ppo/\d{4}(-\d\d){2}_(\d\d-){3}cmd_ppo_s0", folder)
    assert (plan.root, plan.jobs) == (os.path.abspath("there"), 3)
    assert variants[folder]["logger_kwargs"]["overwrite"] is True


def test_values_take_the_type_of_their_parameter():
    line = "ppo --env CartPole-v1 --epochs 1e1 --gamma 1 --exp_name 123 --env_kwargs:a true [1] x"
    variants, _ = plan_of(line)
    kwargs = list(variants.values())
    assert (kwargs[0]["epochs"], type(kwargs[0]["epochs"])) == (10, int)
    assert [k["env_kwargs"]["a"] for k in kwargs] == [True, [1], "x"]
    assert next(iter(variants)) == "123_env-atrue/123_env-atrue_s0"


def test_num_cpu_auto(monkeypatch):
    monkeypatch.setattr("spinup.launch.experiment.usable_cores", lambda: 1)
    assert plan_of("ppo --env CartPole-v1 --cpu auto")[1].experiments[0].num_cpu == 1


# --- Pages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["", "help", "--help", "-h"])
def test_usage(line, capsys):
    status, out, err = run(line, capsys)
    assert (status, err) == (0, "")
    for word in (*ALGORITHMS, "plot", "test_policy", "--hid", "--ac_kwargs:hidden_sizes"):
        assert word in out


@pytest.mark.parametrize("line", ["ppo --help", "ppo_pytorch help", "ppo --env X -h"])
def test_help_of_an_algorithm(line, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")
    status, out, err = run(line, capsys)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "ppo: Trains a policy by Proximal Policy Optimization."
    assert any(re.match(r"  --gamma +0\.99 +discount factor, in \[0, 1\]$", line) for line in lines)
    assert any(
        re.match(r"  --hid +\[64,64\] +number of units in each hidden", line) for line in lines
    )
    assert any(re.match(r"  --act +tanh +", line) for line in lines)
    assert "--jobs" in out
    assert "--logger_kwargs" not in out and "`" not in out
    assert "  --actor_critic" in out and "--wrapper" in out
    assert max(map(len, lines)) <= 90


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_hyperparameter_is_explained(name, capsys):
    from spinup.cli.flags import parameters_of

    for key, parameter in parameters_of(getattr(spinup, name)).items():
        assert parameter.meaning or key.startswith("ac_kwargs"), key


def test_version(capsys):
    assert run("--version", capsys) == (0, f"spinup {__version__}\n", "")


@pytest.mark.parametrize("line", ["help", "plot data/demo --save x.png", "status data"])
def test_what_does_not_import_torch(line, run_python, here):
    (here / "data/demo").mkdir(parents=True)
    (here / "data/demo/status.json").write_text('{"state": "finished"}')
    row = "Epoch\tAverageEpRet\tTotalEnvInteracts\n0\t1.0\t10\n"
    (here / "data/demo/progress.txt").write_text(row)
    code = "import sys, spinup.run; assert spinup.run.main(sys.argv[1:]) == 0, 'failed'; "
    code += "assert 'torch' not in sys.modules"
    result = run_python(["-c", code, *line.split()])
    assert result.returncode == 0, result.stderr


def test_a_run_is_checked_and_planned_without_torch(run_python, here):
    code = """
        import sys, spinup.run
        from spinup.launch import processes

        def popen(*args, **kwargs):
            assert "torch" not in sys.modules
            raise SystemExit(77)

        processes.subprocess.Popen = popen
        spinup.run.main(sys.argv[1:])
        """
    words = "ppo --env CartPole-v1 --hid [8,8] --seed 0 10 --gamma 0.9 --data_dir data"
    result = run_python(["-c", textwrap.dedent(code), *words.split()])
    assert result.returncode == 77, result.stderr


def test_utilities_get_their_words(monkeypatch, capsys):
    got = []
    monkeypatch.setattr("spinup.cli.plot.main", lambda words: got.append(words) or 7)
    assert run("plot a -x b --count", capsys)[0] == 7
    assert got == [["a", "-x", "b", "--count"]]


def test_a_reader_that_stops_reading(run_python):
    code = f"{shlex.quote(sys.executable)} -m spinup.run ppo --help | head -n 1"
    result = subprocess.run(
        ["bash", "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.stdout.startswith("ppo: ")
    assert result.stderr == ""


# --- Mistakes -------------------------------------------------------------------------------------

MISTAKES = [
    ("pppo --env CartPole-v1", "unknown command 'pppo': did you mean ppo?"),
    ("__import__('os').system('touch PWNED')", "unknown command"),
    ("ppo", "no environment is given: add one, such as --env CartPole-v1"),
    ("ppo --env", "--env needs a value"),
    (
        "ppo --env CartPol-v1",
        "no environment 'CartPol-v1' is registered with Gymnasium: did you mean CartPole-v1?",
    ),
    ("ppo --env CartPole-v1 Cart-v1", "no environment 'Cart-v1' is registered"),
    ("ppo --env \"__import__('os').system('touch PWNED')\"", "Malformed environment ID"),
    ("ppo --env nothing_here:X-v0", "can't import 'nothing_here' (No module named 'nothing_here')"),
    ("ppo --env HalfCheetah-v2", "HalfCheetah-v2 is retired: use HalfCheetah-v"),
    ("sac --env CartPole-v1", "sac handles actions of a bounded Box"),
    ("sac --env Pendulum-v1 CartPole-v1 --seed 0 1", "not Discrete(2); use vpg, trpo or ppo"),
    (
        "sac --env Pendulum-v1 --alpha foo",
        "alpha must be a number of at least 0, or \"auto\", not 'foo'",
    ),
    ("sac --env Pendulum-v1 --alpha -1", 'alpha must be a number of at least 0, or "auto", not -1'),
    ("{} --env_kwargs:foo 1", "CartPole-v1 takes no argument 'foo'"),
    ("{} --n_envs 4", "unknown flag --n_envs: --n_envs is --cpu: each MPI rank steps one"),
    ("{} --verbose 1", "unknown flag --verbose. See: python -m spinup.run ppo --help"),
    ("{} --exp_name " + 300 * "x", "has 300 characters, but at most 200 are allowed"),
    ("{} --wrapper nothing_here:f", "--wrapper nothing_here:f: Cannot import"),
    ("{} --wrapper os", "'os' is not the name of a function: write it as 'module:function'"),
    ("{} --wrapper", "--wrapper needs a value"),
    ("{} --wrapper os:getcwd", "--env CartPole-v1 --wrapper os:getcwd: "),
    ("ppo CartPole-v1", "'CartPole-v1' follows no flag"),
    ("{} --clip_ration 0.1", "unknown flag --clip_ration: did you mean --clip_ratio?"),
    (
        "{} --hidden_sizes [8]",
        "unknown flag --hidden_sizes: did you mean --ac_kwargs:hidden_sizes?",
    ),
    ("{} --logger_kwargs:output_dir /tmp/x", "unknown flag --logger_kwargs:output_dir"),
    ("{} --actor_critic os.system", "--actor_critic os.system: 'os.system' is not the name of a"),
    ("{} --actor_critic os:system", "--actor_critic expects a subclass of torch.nn.Module"),
    ("{} --epochs ten", "--epochs expects a whole number, not 'ten'"),
    ("{} --epochs 1.5", "--epochs expects a whole number, not '1.5'"),
    ("{} --epochs 0", "epochs must be a whole number of at least 1, not 0"),
    ("{} --epochs", "--epochs needs a value: a whole number"),
    ("{} --gamma abc", "--gamma expects a number, not 'abc'"),
    ("{} --gamma 0.9 1.5", "gamma must be a number in [0, 1], not 1.5"),
    ("{} --seed x", "--seed expects a whole number, not 'x'"),
    ("{} --seed -1", "seed must be a whole number in [0, 4294967295], not -1"),
    ("{} --cpu 0", "num_cpu must be a positive integer or 'auto', not 0"),
    ("{} --cpu -1", "num_cpu must be a positive integer or 'auto', not -1"),
    ("{} --cpu 2.5", "num_cpu must be a positive integer or 'auto', not '2.5'"),
    ("{} --cpu 2 4", "--cpu takes one value, not 2: 2 4"),
    ("{} --jobs 0", "jobs must be a positive integer or 'auto', not 0"),
    ("{} --dt maybe", "--dt expects true or false, not 'maybe'"),
    ("{} --hid 32", "--hid expects a list of whole numbers such as [64,64], not '32'"),
    ("{} --hid [32, 32]", "not '[32,'; write it without spaces, or in quotes"),
    (
        "{} --hid \"__import__('os').system('touch PWNED')\"",
        "--hid expects a list of whole numbers",
    ),
    ("{} --act tnh", "--act expects an activation of torch.nn such as tanh, not 'tnh'"),
    ("{} --act \"__import__('os').system('touch PWNED')\"", "--act expects an activation"),
    ("{} --device tpu", "device 'tpu' is unknown: use cpu, cuda, cuda:N or auto"),
    ("{} --exp_name \"__import__('os').system('touch PWNED')\"", "can't be the name of a folder"),
    ("{} --exp_name ../../x", "exp_name '../../x' can't be the name of a folder"),
    ("{} --exp_name '$(touch PWNED)'", "can't be the name of a folder"),
    ("{} --exp_name a b", "--exp_name takes one value, not 2: a b"),
    ("{} --data_dir /dev/null", "/dev/null is not a folder"),
    ("{} --seed 1 --seed 2", "--seed is given twice: put all its values after one flag"),
    ("{} --seed 0 0", "Two variants are the same and would share the folder data/"),
    (
        "{} --ac_kwargs \"{{'hidden_sizes':[8]}}\" --hid [9]",
        "ac_kwargs:hidden_sizes is given twice",
    ),
]


@pytest.mark.parametrize(("line", "message"), MISTAKES)
def test_a_mistake_gets_one_line_and_leaves_nothing(line, message, capsys, here):
    line = line.format("ppo --env CartPole-v1")
    status, out, err = run(line, capsys)
    assert (status, out) == (2, "")
    assert message in err
    assert err.startswith("spinup") and err.count("\n") == 1 and err.endswith("\n")
    assert os.listdir(here) == []


def test_a_folder_with_results_is_named_with_the_remedy(here, capsys):
    folder = here / "data" / "demo" / "demo_s1"
    folder.mkdir(parents=True)
    (folder / "progress.txt").write_text("Epoch\n0\n")
    status, out, err = run(f"{QUICK} --exp_name demo --seed 0 1", capsys)
    assert (status, out) == (2, "")
    assert err.startswith("spinup ppo: data/demo/demo_s1 already holds results: give --resume ")
    assert os.listdir(here / "data" / "demo") == ["demo_s1"]


def test_tensorboard_that_is_not_installed(capsys, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda n: None if n == "tensorboard" else real(n)
    )
    status, _, err = run(f"{QUICK} --tensorboard", capsys)
    told = 'needs TensorBoard: in the checkout, pip install ".[tensorboard]"'
    assert (status, told in err) == (2, True)


def test_more_ranks_than_cores_are_refused_unless_asked_for(capsys, monkeypatch, here):
    started = []
    monkeypatch.setattr("spinup.cli.main.usable_cores", lambda: 2)
    monkeypatch.setattr(ExperimentGrid, "launch", lambda grid, plan: started.append(plan))
    status, out, err = run(f"{QUICK} --cpu 3", capsys)
    assert (status, out, started) == (2, "", [])
    assert err.startswith("spinup ppo: --cpu 3 asks for more ranks than the 2 usable cores of")
    assert "--oversubscribe" in err and err.count("\n") == 1
    assert run(f"{QUICK} --cpu 3 --oversubscribe", capsys)[0] == 0
    assert run(f"{QUICK} --cpu 2", capsys)[0] == 0
    assert [plan.experiments[0].num_cpu for plan in started] == [3, 2]
    # The nodes of a cluster may have more cores than the machine that submits the jobs
    assert "asks for more ranks" not in run(f"{QUICK} --cpu 3 --slurm mem=4G", capsys)[2]


# --- Real runs ------------------------------------------------------------------------------------


def test_a_grid_of_ppo(run_python, here):
    line = f"{QUICK} --hid[h] [8] [9,9] --exp_name demo --jobs 2"
    result = run_python(["-m", "spinup.run", *line.split()], timeout=200)
    assert (result.returncode, result.stderr) == (0, "")
    assert "2 of 2 runs finished, results below data/" in result.stdout
    for name in ("demo_h8", "demo_h9-9"):
        folder = here / "data" / name / f"{name}_s0"
        assert f"{name}_s0 finished after 0:" in result.stdout
        assert read_status(folder)["state"] == "finished"
        assert (folder / "progress.txt").read_text().count("\n") == 3
        assert "AverageEpRet" in (folder / "log.txt").read_text()
    assert result.stdout.splitlines()[-2].endswith("python -m spinup.run plot data/demo")


OWN_CODE = """
import gymnasium as gym
from torch import nn
from spinup.utils.nets import MLPActorCritic

class Small(MLPActorCritic):
    def __init__(self, observation_space, action_space, width: int = 8):
        super().__init__(observation_space, action_space, (width,), nn.Tanh)

class Half(gym.RewardWrapper):
    def reward(self, reward):
        return reward / 2

def plus_one(env):
    return gym.wrappers.TransformReward(env, lambda reward: reward + 1)

def breaks(env):
    env.step(0)

def fails(env):
    env.reset = lambda **_: 1 / 0
    return env
"""


def test_a_variant_that_fails_gives_status_1(capsys, here):
    (here / "own_failing.py").write_text(OWN_CODE)
    status, out, err = run(f"{QUICK} --wrapper own_failing:fails", capsys)
    assert (status, err) == (1, "")
    assert "0 of 1 run finished" in out
    assert re.search("cmd_ppo_s0: ZeroDivisionError", out)


# The script that an installation makes for `spinup`, whose folder isn't the current folder
CONSOLE_SCRIPT = "import sys\nfrom spinup.cli.main import main\nsys.exit(main())\n"


@pytest.mark.parametrize("how", ["script", "module"])
def test_wrappers_and_networks_of_the_current_folder(run_python, here, how):
    (here / "mine.py").write_text(OWN_CODE)
    (here / "bin").mkdir()
    (here / "bin" / "spinup").write_text(CONSOLE_SCRIPT)
    command = [str(here / "bin" / "spinup")] if how == "script" else ["-m", "spinup"]
    words = (
        "--wrapper mine:Half mine:plus_one --actor_critic mine:Small --ac_kwargs:width 4 "
        f"--exp_name own --cpu {1 if how == 'script' else 2} --oversubscribe"
    )
    result = run_python([*command, *QUICK.split(), *words.split()], timeout=250)
    assert (result.returncode, result.stderr) == (0, "")
    config = json.loads((here / "data/own/own_s0/config.json").read_text())
    assert config["actor_critic"] == "mine:Small" and config["ac_kwargs"] == {"width": 4}
    assert config["env_fn"] == {
        "partial": "spinup.utils.wrapping:make_wrapped",
        "args": ["CartPole-v1", ["mine:Half", "mine:plus_one"]],
        "kwargs": {},
    }
    result = run_python([*command, *"test_policy data/own/own_s0 -n 2 -nr".split()], timeout=100)
    assert (result.returncode, result.stderr) == (0, "")
    episodes = re.findall(r"EpRet ([\d.]+) \t EpLen (\d+)", result.stdout)
    # Each reward is halved first, and then increased by one
    assert len(episodes) == 2
    for ep_ret, length in episodes:
        assert float(ep_ret) == 1.5 * int(length)


def test_wrappers_are_tried_before_launch(capsys, here):
    (here / "own_wrappers.py").write_text(OWN_CODE)
    for wrapper, told in [
        ("breaks", "Cannot call env.step() before calling env.reset()"),
        ("Half own_wrappers:nope", "has no attribute 'nope'"),
    ]:
        status, out, err = run(f"{QUICK} --wrapper own_wrappers:{wrapper}", capsys)
        assert (status, out, told in err, err.count("\n")) == (2, "", True, 1), err
    assert not (here / "data").exists()


def test_ctrl_c_gives_status_130(here):
    line = f"{sys.executable} -m spinup.run ppo --env CartPole-v1 --epochs 100000"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(line.split(), env=env, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while not list(here.glob("data/*/*/progress.txt")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=100)[0]
    assert process.returncode == 130
    stopping, stopped, remedy = printed.splitlines()[-3:]
    assert "Stopping cmd_ppo_s0: waiting until the state is saved" in stopping
    assert re.search(r"cmd_ppo_s0 interrupted: stopped, and saved at step \d+000", stopped)
    assert remedy.endswith("Continue with the same command and --resume")


def test_under_an_outer_mpiexec(run_on_ranks, here):
    code = "import sys; from spinup.cli.main import main; sys.exit(main(sys.argv[1:]))"
    result = run_on_ranks(2, code, [*QUICK.split(), "--seed", "0", "1"], timeout=200)
    assert result.stdout.count("(1 of 2)") == result.stdout.count("(2 of 2)") == 1
    assert result.stdout.count("python -m spinup.run plot data/cmd_ppo") == 1
    assert all(
        read_status(here / f"data/cmd_ppo/cmd_ppo_s{s}")["state"] == "finished" for s in "01"
    )
    result = run_on_ranks(2, code, [*QUICK.split(), "--cpu", "3"], timeout=200, check=False)
    assert result.returncode == 2
    assert result.stderr.count("belongs to an MPI world of 2 ranks") == 1
