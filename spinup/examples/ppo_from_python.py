"""Trains PPO from a script for Spinning Up, in which only ``gym`` became ``gymnasium``.

python -m spinup.examples.ppo_from_python --epochs 10 --cpu 2
"""

import argparse

import gymnasium as gym
import torch

from spinup import ppo_pytorch as ppo
from spinup.utils.mpi_tools import mpi_fork


def main():
    parser = argparse.ArgumentParser(description="Trains PPO on CartPole-v1 from Python.")
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=4000, help="environment steps per epoch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpu", type=int, default=1, help="MPI ranks")
    parser.add_argument("--output_dir", default="data/ppo_from_python")
    args = parser.parse_args()

    mpi_fork(args.cpu)  # the code below runs on every rank

    ac_kwargs = dict(hidden_sizes=[64, 64], activation=torch.nn.ReLU)
    logger_kwargs = dict(output_dir=args.output_dir, exp_name="ppo_from_python")

    ppo(
        env_fn=lambda: gym.make(args.env),
        ac_kwargs=ac_kwargs,
        seed=args.seed,
        steps_per_epoch=args.steps,
        epochs=args.epochs,
        logger_kwargs=logger_kwargs,
    )


if __name__ == "__main__":
    main()
