"""Trains PPO on CartPole-v1 on two MPI ranks and draws the learning curve.

    python -m spinup.examples.train_cartpole

`make train` runs this script.
"""

import os
import sys
from pathlib import Path

import pandas as pd

from spinup import ppo, user_config
from spinup.launch.display import print_commands, quoted
from spinup.utils.plot import make_plots
from spinup.utils.run_utils import ExperimentGrid

SOLVED, MOST = 475, 500  # returns; each step gives a reward of 1
RANKS = 2
EPOCHS = 30


def main():
    user_config.WAIT_BEFORE_LAUNCH = 0
    grid = ExperimentGrid("cartpole")
    grid.add("env_name", "CartPole-v1")
    grid.add("epochs", EPOCHS)
    grid.add("seed", 0)
    (run,) = grid.run(ppo, num_cpu=RANKS, overwrite=True)

    experiment = Path(run).parent
    curve = experiment.with_suffix(".png")
    draw(experiment, curve)

    last = pd.read_table(Path(run, "progress.txt")).tail(5)
    average = last["AverageEpRet"].mean()
    verdict = "Solved" if average >= SOLVED else "Not solved"
    print(f"\n{verdict}: an average return of {average:.0f} over the last {len(last)} epochs;")
    print(f"CartPole-v1 counts as solved from {SOLVED} on; the maximum is {MOST}.\n")
    print(f"Run:    {quoted(run)}")
    print(f"Curve:  {quoted(str(curve))}")
    print_commands(str(experiment), str(run))
    return 0 if average >= SOLVED else 1


def draw(experiment, file):
    """Saves the learning curve of an experiment, with a line at the return `SOLVED`."""
    (figure,) = make_plots([f"{experiment}{os.sep}"], save=file)
    axes = figure.axes[0]
    axes.axhline(SOLVED, color="gray", linestyle="--")
    axes.text(0, SOLVED, "solved ", ha="left", va="top", color="gray", fontsize=16)
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
