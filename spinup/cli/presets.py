"""Commands that are known to work, by environment: ``python -m spinup.run presets``."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import NamedTuple

from spinup.cli.flags import UsageError
from spinup.utils.mpi_tools import proc_id


class Preset(NamedTuple):
    """A command for an environment, and the return that it reached.

    Attributes:
        env: id of the environment.
        command: the words after ``python -m spinup.run``, without ``--env``.
        steps: environment steps of the run.
        ep_return: average return of the test episodes (DDPG, TD3, SAC) or training episodes (VPG,
            TRPO, PPO) of the last five epochs with seed 0, from data/benchmarks/presets.csv.
        extra: the extra of spinup that installs the environment; empty if none is needed.
    """

    env: str
    command: str
    steps: int
    ep_return: float
    extra: str = ""


_MINIBATCHES = "--normalize_obs --minibatch_size 64 --train_pi_iters 10 --train_v_iters 10"
# CleanRL's hyperparameters, as far as they are keywords; no early stopping
_LINEAR = (
    f"{_MINIBATCHES} --lr_schedule linear --steps_per_epoch 2000 --epochs 500 --lam 0.95 "
    "--vf_lr 3e-4 --target_kl 1000"
)

PRESETS = (
    Preset("CartPole-v1", "ppo --pi_lr 1e-3 --epochs 30", 120_000, 475.0),
    Preset("Acrobot-v1", f"ppo {_MINIBATCHES} --ent_coef 0.01 --epochs 30", 120_000, -91.7),
    Preset(
        "LunarLander-v3",
        f"ppo {_MINIBATCHES} --gamma 0.999 --lam 0.98 --epochs 125",
        500_000,
        252.3,
        "box2d",
    ),
    Preset("LunarLanderContinuous-v3", "td3 --epochs 50", 200_000, 247.4, "box2d"),
    Preset("BipedalWalker-v3", "td3 --epochs 75", 300_000, 295.4, "box2d"),
    Preset(
        "Pendulum-v1", "sac --steps_per_epoch 1000 --start_steps 1000 --epochs 10", 10_000, -132.8
    ),
    Preset("InvertedPendulum-v5", "ppo --epochs 50", 200_000, 1000.0, "mujoco"),
    Preset("HalfCheetah-v5", "sac --epochs 25", 100_000, 6432.1, "mujoco"),
    Preset("Hopper-v5", f"ppo {_LINEAR}", 1_000_000, 2788.5, "mujoco"),
    Preset("Walker2d-v5", f"ppo {_LINEAR}", 1_000_000, 3425.6, "mujoco"),
    Preset("Ant-v5", "td3 --epochs 75", 300_000, 2337.7, "mujoco"),
    Preset(
        "Swimmer-v5",
        f"ppo {_MINIBATCHES} --lr_schedule linear --gamma 0.9999 --epochs 250",
        1_000_000,
        150.7,
        "mujoco",
    ),
)


def main(argv: Sequence[str]) -> int:
    """Prints all commands, or those for some environments.

    Args:
        argv: ids of environments, or parts of them; all if empty.

    Returns:
        The exit status.

    Raises:
        UsageError: there is no command for an environment, or a flag is unknown.
    """
    flags = [word for word in argv if word.startswith("-")]
    if flags and flags[0] not in ("-h", "--help"):
        raise UsageError(f"unknown flag {flags[0]}: the command is `presets [ENVIRONMENT ...]`")
    chosen = [preset for preset in PRESETS if not argv or flags or _is_asked_for(preset, argv)]
    for word in argv:
        if not flags and not any(_is_asked_for(preset, [word]) for preset in PRESETS):
            known = [preset.env for preset in PRESETS]
            near = difflib.get_close_matches(word, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise UsageError(f"there is no preset for {word}: {hint}")
    if proc_id() == 0:
        _show(chosen)
    return 0


def _is_asked_for(preset, words):
    return any(word.lower() in preset.env.lower() for word in words)


def _show(presets):
    print("  return      steps  command")
    for preset in presets:
        name, _, flags = preset.command.partition(" ")
        command = f"python -m spinup.run {name} --env {preset.env} {flags}"
        print(f"{preset.ep_return:>8,.0f}  {preset.steps:>9,}  {command}")
    print("\nreturn: average of the last five epochs with --seed 0; other seeds differ.")
    for extra in sorted({preset.extra for preset in presets} - {""}):
        envs = ", ".join(preset.env for preset in presets if preset.extra == extra)
        print(f'In the checkout, pip install ".[{extra}]" installs {envs}.')
