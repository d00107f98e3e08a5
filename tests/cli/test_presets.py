import csv
import shlex
from pathlib import Path

import pytest

import spinup
from spinup.cli.main import build_grid, main
from spinup.cli.presets import PRESETS

MEASURED = Path(__file__).parents[2] / "data" / "benchmarks" / "presets.csv"


def test_returns_are_those_that_were_measured():
    with MEASURED.open(newline="") as file:
        rows = [
            (row["env"], row["command"], int(row["steps"]), float(row["return"]))
            for row in csv.DictReader(file)
        ]
    assert [preset[:4] for preset in PRESETS] == rows


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.env)
def test_a_command_can_be_run_and_takes_the_steps_that_it_says(preset):
    name, *words = shlex.split(preset.command)
    grid, _ = build_grid(name, getattr(spinup, name), ["--env", preset.env, *words])
    (variant,) = grid.variants()
    steps = variant["epochs"] * variant.get("steps_per_epoch", 4000)
    assert variant["env_name"] == preset.env and steps == preset.steps


def test_all_are_listed_with_their_extras(capsys):
    assert main(["presets"]) == 0
    out = capsys.readouterr().out
    for preset in PRESETS:
        name, _, flags = preset.command.partition(" ")
        assert f"python -m spinup.run {name} --env {preset.env} {flags}" in out
        assert f"{preset.ep_return:,.0f}" in out
    assert 'pip install ".[box2d]" installs LunarLander-v3, LunarLanderContinuous-v3, ' in out


def test_environments_are_chosen_by_parts_of_their_ids(capsys):
    assert main(["presets", "bipedal", "CartPole-v1"]) == 0
    out = capsys.readouterr().out
    assert "--env BipedalWalker-v3 " in out and "--env CartPole-v1 " in out
    assert "--env Acrobot-v1 " not in out and "mujoco" not in out


@pytest.mark.parametrize(
    "words, message",
    [
        (["CartPole-v2"], "there is no preset for CartPole-v2: did you mean CartPole-v1?"),
        (["Go"], "there is no preset for Go: there are CartPole-v1, Acrobot-v1"),
        (
            ["--env", "CartPole-v1"],
            "unknown flag --env: the command is `presets [ENVIRONMENT ...]`",
        ),
    ],
)
def test_mistakes_get_one_line(words, message, capsys):
    assert main(["presets", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"spinup presets: {message}")
