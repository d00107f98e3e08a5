import json
import os
import re
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import spinup.cli.main
from spinup import user_config
from spinup.cli.flags import RUN_FLAGS
from spinup.examples import bench_ppo_cartpole
from spinup.launch import processes as launch
from spinup.launch.grid import (
    ExperimentGrid,
    _print_commands,
    default_shorthand,
    valid_str,
)
from spinup.runs.folder import read_status
from tests.launch.grids import grid_of
from tests.thunks import fake, fragile, note


def names(grid):
    return [grid.variant_name(variant) for variant in grid.variants()]


# --- Folders --------------------------------------------------------------------------------------


# --- Names, as in Spinning Up's code --------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ((64, 64), "64-64"),
        ([32], "32"),
        (1e-3, "0-001"),
        (1e-5, "1e-05"),
        (-0.5, "-0-5"),
        (True, "true"),
        (None, "none"),
        ("CartPole-v1", "cartpole-v1"),
        ("a_b c/d", "a_b-c-d"),
        (torch.nn.Tanh, "tanh"),
        (torch.nn.LeakyReLU, "leakyrelu"),
        ((torch.nn.ReLU, 2), "relu-2"),
        (fake, "fake"),
        (lambda: 0, "-lambda-"),
        ({"a": 1}, "--a---1-"),
    ],
)
def test_valid_str(value, text):
    assert valid_str(value) == text


@pytest.mark.parametrize(
    ("key", "shorthand"),
    [
        ("ac_kwargs:hidden_sizes", "ac-hid"),
        ("ac_kwargs:activation", "ac-act"),
        ("pi_lr", "pi"),
        ("lr", "lr"),
        ("steps_per_epoch", "ste"),
        ("a:b_c:q1_x", "a-bc-q1"),
    ],
)
def test_default_shorthand(key, shorthand):
    assert default_shorthand(key) == shorthand


def test_names_of_several_parameters():
    grid = grid_of("bench", env_name=["CartPole-v1", "Pendulum-v1"], seed=[0, 10], epochs=10)
    grid.add("ac_kwargs:hidden_sizes", [(32,), (64, 64)], "hid")
    grid.add("ac_kwargs:activation", [torch.nn.Tanh, torch.nn.ReLU], "")
    assert names(grid)[:5] == [
        "bench_envcartpole-v1_hid32_tanh",
        "bench_envcartpole-v1_hid32_relu",
        "bench_envcartpole-v1_hid64-64_tanh",
        "bench_envcartpole-v1_hid64-64_relu",
        "bench_envcartpole-v1_hid32_tanh",  # the next seed
    ]
    assert len(names(grid)) == 16
    assert names(grid)[-1] == "bench_envpendulum-v1_hid64-64_relu"


def test_one_value_is_left_out_unless_asked_for():
    grid = grid_of("x", gamma=0.99)
    assert names(grid) == ["x"]
    grid.add("clip_ratio", 0.2, in_name=True)
    grid.add("seed", [1, 2], in_name=True)
    assert names(grid) == ["x_cli0-2", "x_cli0-2"]


def test_booleans_are_named_where_true():
    grid = grid_of("x", normalize=[True, False])
    grid.add("flag", [True], in_name=True)
    grid.add("mixed", [True, 3])
    assert names(grid) == ["x_nor_fla_mixtrue", "x_nor_fla_mix3", "x_fla_mixtrue", "x_fla_mix3"]


def test_names_without_a_name_for_the_grid_or_shorthands(monkeypatch):
    assert names(grid_of(gamma=[0.9, 1])) == ["gam0-9", "gam1"]
    monkeypatch.setattr(user_config, "DEFAULT_SHORTHAND", False)
    assert names(grid_of("x", a__b_c=[1, 2])) == ["x_a-b_c1", "x_a-b_c2"]


def test_variants_are_nested_and_the_last_varies_fastest():
    grid = ExperimentGrid()
    grid.add("test:a", [1, 2], "ta", True)
    grid.add("test:b:c", [3, 4])
    grid.add("why", 5)
    assert grid.variants() == [
        {"test": {"a": 1, "b": {"c": 3}}, "why": 5},
        {"test": {"a": 1, "b": {"c": 4}}, "why": 5},
        {"test": {"a": 2, "b": {"c": 3}}, "why": 5},
        {"test": {"a": 2, "b": {"c": 4}}, "why": 5},
    ]
    assert names(grid)[1] == "ta1_tes-b-c4"


def test_a_dict_gains_entries_and_is_not_changed():
    given = {"activation": torch.nn.ReLU}
    grid = grid_of("x", ac_kwargs=given, ac_kwargs__hidden_sizes=[(8,), (9,)])
    assert grid.variants()[1] == {"ac_kwargs": {"activation": torch.nn.ReLU, "hidden_sizes": (9,)}}
    assert given == {"activation": torch.nn.ReLU}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: grid_of("x", a=1).add("a", 2), "a was added twice"),
        (lambda: grid_of("x", a=[]), "a has no values"),
        (lambda: ExperimentGrid().add("a:", 1), "'a:' is not the name of a parameter"),
        (lambda: ExperimentGrid().add("a", 1, shorthand=3), "shorthand of a must be a string"),
        (lambda: ExperimentGrid("../x"), r"'\.\./x' can't be the name of a folder"),
        (lambda: grid_of("x", a=1, a__b=2).variants(), "a:b can't be set: a is given as 1"),
        (lambda: grid_of("x", a__b=1, a=2).variants(), "a is given twice"),
    ],
)
def test_what_a_grid_refuses(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_print_shows_parameters_and_counts(capsys):
    grid = grid_of("x", seed=[0, 10, 20], gamma=[0.9, 0.99])
    grid.add("ac_kwargs:activation", torch.nn.Tanh, "act")
    grid.print()
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "gamma gam 0.9 0.99" in lines
    assert "ac_kwargs:activation act torch.nn.modules.activation:Tanh" in lines
    assert "6 variants (2 without counting seeds)" in lines


# --- Refused before anything runs -----------------------------------------------------------------


def test_variants_that_would_share_a_folder_are_named():
    grid = grid_of("x", gamma=[0.5, "0-5"])
    message = r'would share the folder data/x_gam0-5/x_gam0-5_s0: gamma=0.5 and gamma="0-5"'
    with pytest.raises(ValueError, match=message):
        grid.run(fake)
    with pytest.raises(ValueError, match="Two variants are the same and would share"):
        grid_of("x", seed=[1, 2, 1]).run(fake)
    assert not Path("data").exists()


def test_a_grid_without_any_name_is_refused():
    with pytest.raises(ValueError, match="The grid needs a name"):
        grid_of(epochs=1).run(fake)


# --- One experiment -------------------------------------------------------------------------------


# --- Grids ----------------------------------------------------------------------------------------


def test_a_variant_that_fails_does_not_stop_the_others(here, capsys):
    grid = grid_of("g", ending=["finish", "raise", "exit", "kill"], epochs=2, seed=5)
    with pytest.raises(RuntimeError, match="3 of 4 experiments failed: g_endraise_s5: ValueError"):
        grid.run(fake, jobs=3)
    printed = capsys.readouterr().out
    table = printed[printed.index("1 of 4 runs finished") :]
    rows = [" ".join(line.split()) for line in table.splitlines()]
    assert re.search(
        r"^g_endfinish/g_endfinish_s5 finished 2/2 200 15\.0 0:\d\d$", "\n".join(rows), re.M
    )
    for ending, reason in [
        ("raise", "ValueError: the reward is NaN"),
        ("exit", "exit status 0 before the run had finished"),
        ("kill", "killed by signal 9 (SIGKILL)"),
    ]:
        assert f"g_end{ending}/g_end{ending}_s5 failed 1/2 100 5.0" in "\n".join(rows)
        assert f"g_end{ending}_s5: {reason}" in rows
        assert f"log: data/g_end{ending}/g_end{ending}_s5/log.txt" in rows
        status = read_status(f"data/g_end{ending}/g_end{ending}_s5")
        assert (status["state"], status["error"]) == ("failed", reason)
    assert rows[-2].endswith("python -m spinup.run plot data/g")
    assert rows[-1].endswith("python -m spinup.run test_policy data/g_endfinish/g_endfinish_s5")


def test_of_twenty_sixteen_finish_and_resume_runs_the_other_four(here, monkeypatch, capsys):
    monkeypatch.setattr(launch, "GRACE_SECONDS", 2)
    grid = grid_of("g", seed=list(range(20)))
    with pytest.raises(RuntimeError, match="4 of 20 experiments failed: g_s3: ValueError"):
        grid.run(fragile, jobs=2, timeout=45)
    printed = capsys.readouterr().out
    table = printed[printed.index("16 of 20 runs finished") :]
    rows = [" ".join(line.split()) for line in table.splitlines()]
    assert sum(" finished 2/2 200 " in row for row in rows) == 16
    for seed, reason in [
        (3, "ValueError: the reward is NaN"),
        (7, "exit status 0 before the run had finished"),
        (11, "killed by signal 9 (SIGKILL)"),
        (15, "it ran for longer than the timeout of 45 s"),
    ]:
        assert any(row.startswith(f"g/g_s{seed} failed 1/2 100 ") for row in rows)
        assert f"g_s{seed}: {reason}" in rows
    (here / "mended").touch()
    (here / "ran.txt").unlink()
    with pytest.raises(ValueError, match="give --resume"):
        grid.run(fragile)
    folders = grid.run(fragile, jobs="auto", resume=True)
    assert sorted((here / "ran.txt").read_text().split(), key=int) == ["3", "7", "11", "15"]
    printed = capsys.readouterr().out
    assert "16 of 20 have finished already" in printed and "4 of 4 runs finished" in printed
    assert [os.path.basename(folder) for folder in folders] == [f"g_s{seed}" for seed in range(20)]
    assert grid.run(fragile, resume=True) == folders
    assert "20 of 20 have finished already: there is nothing to run" in capsys.readouterr().out


def test_what_resume_excludes():
    for given, message in [
        (dict(overwrite=True), "resume and overwrite exclude each other"),
        (dict(datestamp=True), "datestamp makes a new one each time"),
    ]:
        with pytest.raises(ValueError, match=message):
            grid_of("g", seed=0).plan(fake, resume=True, **given)
    for bad in (0, -1, True, "long"):
        with pytest.raises(ValueError, match="timeout must be a number of seconds above 0"):
            grid_of("g", seed=0).plan(fake, timeout=bad)


def test_gpus_are_shared_evenly(here, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-5,6")

    def seen(seed, device, logger_kwargs):
        gpus = os.environ["CUDA_VISIBLE_DEVICES"]
        Path(logger_kwargs["output_dir"], "gpus").write_text(gpus)
        deadline = time.monotonic() + 200
        folders = Path(logger_kwargs["output_dir"]).parent
        while len(list(folders.glob("*/gpus"))) < 6 and time.monotonic() < deadline:
            time.sleep(0.05)  # all six run at once

    grid_of("g", seed=list(range(6)), device=["cuda"]).run(seen, jobs=6)
    used = sorted(path.read_text() for path in here.glob("data/g/*/gpus"))
    assert used == sorted(["4", "GPU-5", "6"] * 2)

    def three(seed, device, logger_kwargs):
        return Path(logger_kwargs["output_dir"], "gpus").write_text(
            os.environ["CUDA_VISIBLE_DEVICES"]
        )

    grid_of("h", seed=[0], device=["cpu"]).run(three)
    assert (here / "data/h/h_s0/gpus").read_text() == "4,GPU-5,6"


@pytest.mark.parametrize(
    ("names", "plotted"),
    [
        (["demo"], "data/demo/"),  # excludes demo2, which another command may have made
        (["demo_a1", "demo_a10"], "data/demo_a1"),
        (["demo_a1", "demo_b2"], "data/demo"),
        (["demo", "demo_flag"], "data/demo"),
    ],
)
def test_the_hint_plots_the_folders_of_the_grid(here, capsys, names, plotted):
    grid = ExperimentGrid()
    grid.add("note", names, "", in_name=True)
    plan = grid.plan(fake)
    plan.folders = [str(here / "data" / name / f"{name}_s0") for name in names]
    _print_commands(plan, plan.experiments[0])
    assert f"spinup.run plot {plotted}\n" in capsys.readouterr().out


def test_a_grid_over_functions_and_overwriting(here, capsys):
    grid = grid_of("g", algo=[note, fake], seed=1)
    grid.run("algo", jobs=2)
    folders = grid.run("algo", jobs=2, overwrite=True)
    assert [os.path.relpath(f, "data") for f in folders] == [
        "g_algnote/g_algnote_s1",
        "g_algfake/g_algfake_s1",
    ]
    assert read_status(folders[0])["state"] == "finished"  # although it makes no Logger
    assert [p.parent.name for p in here.glob("data/*/*/progress.txt")] == ["g_algfake_s1"]
    assert "Starting in" not in capsys.readouterr().out  # only a terminal counts down


def test_an_argument_that_no_process_can_be_given_fails_its_variant_alone(here):
    grid = ExperimentGrid("g")
    grid.add("value", [threading.Lock(), 1], "v")
    with pytest.raises(RuntimeError, match=r"1 of 2 .* failed: g_.*: it could not be started"):
        grid.run(note)
    assert read_status("data/g_v1/g_v1_s0")["state"] == "finished"


def test_a_folder_that_can_not_be_made_fails_its_variant_alone(here, monkeypatch, capsys):
    real = launch.Run

    def run(experiment, **kwargs):
        if experiment.kwargs["seed"] == 0:
            raise OSError(28, "No space left on device")
        return real(experiment, **kwargs)

    monkeypatch.setattr(launch, "Run", run)
    with pytest.raises(RuntimeError, match=r"1 of 2 .* g_s0: it could not be started: .*No space"):
        grid_of("g", seed=[0, 1]).run(note)
    assert read_status("data/g/g_s1")["state"] == "finished"


# --- In an MPI world of an outer mpiexec ----------------------------------------------------------


def test_a_world_runs_the_experiment_itself(run_on_ranks, here):
    code = """
        from spinup.utils.run_utils import ExperimentGrid, call_experiment
        from tests.thunks import fake, note

        call_experiment("one", note, data_dir="data", datestamp=True)
        for num_cpu in (3, 4):
            try:
                call_experiment("two", note, num_cpu=num_cpu, data_dir="data")
            except ValueError as error:
                message = str(error)
        assert message == (
            "num_cpu is 4, but this process belongs to an MPI world of 2 ranks: "
            "leave num_cpu out, or start 4 ranks"
        ), message
        grid = ExperimentGrid("g")
        grid.add("seed", [0, 1])
        try:
            grid.run(fake, jobs=2, data_dir="data")
        except ValueError as error:
            assert "in an MPI world (2 ranks) variants run one after another" in str(error)
        grid.run(fake, num_cpu=2, data_dir="data")
    """
    result = run_on_ranks(2, code, timeout=150)
    (folder,) = here.glob("data/*_one/*-one_s0")
    assert json.loads((folder / "rank1.json").read_text())["ranks"] == 2
    assert sorted(os.listdir("data/g")) == ["g_s0", "g_s1"]
    assert all(read_status(f"data/g/g_s{seed}")["state"] == "finished" for seed in (0, 1))
    assert result.stdout.count("g_s1 (2 of 2)") == 1
    assert result.stdout.count("python -m spinup.run plot") == 2


# --- The page and the example ---------------------------------------------------------------------

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "running_experiments.md"


def test_the_code_of_the_page_runs(monkeypatch):
    called = []
    monkeypatch.setattr(ExperimentGrid, "launch", lambda grid, plan: called.append(plan))
    call = "spinup.utils.run_utils.call_experiment"
    monkeypatch.setattr(call, lambda *args, **kwargs: called.append(kwargs))
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), {})  # noqa: S102
    plan, kwargs = called
    first = os.path.relpath(plan.experiments[0].folder)
    assert f"`{first}`" in PAGE.read_text(encoding="utf-8")
    assert (plan.root, plan.jobs, len(plan.experiments)) == (os.path.abspath("data"), 2, 12)
    assert kwargs["env_name"] == "CartPole-v1"


def test_the_commands_of_the_page_are_understood():
    page = PAGE.read_text(encoding="utf-8")
    commands = re.findall(r"^python -m spinup\.run ppo (.*)$", page, re.MULTILINE)
    commands = [command for command in commands if "mine:" not in command]  # a user's own module
    assert len(commands) == 2
    for command in commands:
        grid, options = spinup.cli.main.build_grid("ppo", spinup.ppo, command.split())
        assert grid.plan(spinup.ppo, **options).experiments
    assert set(RUN_FLAGS) <= set(re.findall(r"--(\w+)", page))


def test_the_grid_of_the_example(monkeypatch):
    planned = []
    monkeypatch.setattr(ExperimentGrid, "launch", lambda grid, plan: planned.append(plan))
    monkeypatch.setattr(sys, "argv", ["bench", "--num_runs", "2", "--cpu", "2"])
    bench_ppo_cartpole.main()
    assert [e.label for e in planned[0].experiments][:3] == [
        "ppo-pyt-bench_cartpole-v1_hid32_tanh_s0",
        "ppo-pyt-bench_cartpole-v1_hid32_relu_s0",
        "ppo-pyt-bench_cartpole-v1_hid64-64_tanh_s0",
    ]
    assert len(planned[0].experiments) == 8
    assert {e.num_cpu for e in planned[0].experiments} == {2}


@pytest.mark.slow
def test_the_example_runs(run_python, here):
    words = "-m spinup.examples.bench_ppo_cartpole --num_runs 1 --epochs 1 --steps 100".split()
    result = run_python(words, env={"SPINUP_DATA_DIR": str(here / "data")}, timeout=250)
    assert result.returncode == 0, result.stderr
    assert len(list(here.glob("data/*/*/progress.txt"))) == 4
