"""Runs a grid of PPO experiments, written in the style of Spinning Up.

python -m spinup.examples.bench_ppo_cartpole --cpu 2 --num_runs 3
"""

import argparse

import torch

from spinup import ppo_pytorch
from spinup.utils.run_utils import ExperimentGrid


def main():
    parser = argparse.ArgumentParser(description="Compares networks for PPO on CartPole-v1.")
    parser.add_argument("--cpu", type=int, default=1, help="MPI ranks of each experiment")
    parser.add_argument("--num_runs", type=int, default=3, help="seeds of each variant")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=4000, help="environment steps per epoch")
    args = parser.parse_args()

    eg = ExperimentGrid(name="ppo-pyt-bench")
    eg.add("env_name", "CartPole-v1", "", True)
    eg.add("seed", [10 * i for i in range(args.num_runs)])
    eg.add("epochs", args.epochs)
    eg.add("steps_per_epoch", args.steps)
    eg.add("ac_kwargs:hidden_sizes", [(32,), (64, 64)], "hid")
    eg.add("ac_kwargs:activation", [torch.nn.Tanh, torch.nn.ReLU], "")
    eg.run(ppo_pytorch, num_cpu=args.cpu)


if __name__ == "__main__":
    main()
