"""Compares what is learned with spinup's fast path and without it.

    python parity.py [--runs FILE] [--jobs N] [--hours H] [--algos A ...] [--envs E ...]
    python parity.py --table [--runs FILE] [--page FILE]

Each run trains in a separate process, on one thread. ``fast`` is what users get; ``plain`` has
``SPINUP_FAST=0``, so that PyTorch computes everything and no update is captured. A row goes into
FILE at each run's end, and a command that is given again does what is left.

A row holds the mean return of the last five epochs (training episodes for PPO, TRPO and VPG, test
episodes for the others), quantiles of the absolute pre-activations of the policy's output layer
over the observations of an episode, and the root mean square of that layer's weights: a policy that
has saturated shows there before it shows in the returns. ``--page`` puts the table into a page,
where the last one stands.
"""

import argparse
import collections
import concurrent.futures
import csv
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

RUNS = pathlib.Path(__file__).parents[2] / "data" / "benchmarks" / "parity.csv"
ENVS = ["Walker2d-v5", "Hopper-v5", "HalfCheetah-v5"]
NORMALIZED = "-normalized"  # after an algorithm's name: with normalize_obs
STEPS = {
    "td3": 100_000,
    "sac": 100_000,
    "ddpg": 100_000,
    "sac" + NORMALIZED: 100_000,
    "ppo": 300_000,
    "trpo": 300_000,
    "vpg": 300_000,
}
ON_POLICY = ("ppo", "trpo", "vpg")
SEEDS = [0, 10, 20, 30, 40]
SIDES = {"plain": {"SPINUP_FAST": "0"}, "fast": {}}
EPOCH = 4000
WIDTHS = dict.fromkeys(ON_POLICY, (64, 32))  # Spinning Up's benchmark; else each one's default
KEYS = ["algo", "env", "steps", "seed", "side"]
FIGURES = ["return", "pre50", "pre99", "pre_max", "weight_rms", "seconds"]


def train(algo, env_id, steps, seed):
    """Trains in this process, and prints a row's figures."""
    import gymnasium as gym
    import numpy as np
    import torch

    import spinup

    torch.set_num_threads(1)
    start = time.perf_counter()
    kwargs = {"ac_kwargs": {"hidden_sizes": WIDTHS[algo]}} if algo in WIDTHS else {}
    if algo.endswith(NORMALIZED):
        kwargs["normalize_obs"] = True
    with tempfile.TemporaryDirectory() as folder:
        ac = getattr(spinup, algo.removesuffix(NORMALIZED))(
            env_id,
            seed=seed,
            steps_per_epoch=EPOCH,
            epochs=steps // EPOCH,
            checkpoint_every=1e9,
            logger_kwargs={"output_dir": f"{folder}/run", "exp_name": "parity"},
            **kwargs,
        )
        rows = pathlib.Path(folder, "run", "progress.txt").read_text().splitlines()
    column = rows[0].split("\t").index("AverageEpRet" if algo in ON_POLICY else "AverageTestEpRet")
    last = [float(row.split("\t")[column]) for row in rows[-5:]]
    seconds = time.perf_counter() - start

    env, seen = gym.make(env_id), []
    obs, _ = env.reset(seed=12345)
    for _ in range(1000):
        seen.append(obs)
        act = ac.act(torch.as_tensor(obs, dtype=torch.float32))
        obs, _, terminated, truncated, _ = env.step(np.clip(act, -1, 1))
        if terminated or truncated:
            obs, _ = env.reset()
    x = torch.as_tensor(np.array(seen), dtype=torch.float32)
    net = next(module for module in ac.pi.children() if isinstance(module, torch.nn.Sequential))
    layers = list(net)[:-1]  # the last is the output's activation
    with torch.no_grad():
        if algo.endswith(NORMALIZED):
            x = ac.normalizer(x)
        for layer in layers:
            x = layer(x)
    size = x.abs().flatten()
    figures = [np.mean(last), size.quantile(0.5), size.quantile(0.99), size.max()]
    figures += [layers[-1].weight.square().mean().sqrt(), seconds]
    print("FIGURES " + json.dumps([float(f"{float(x):.5g}") for x in figures]))


def run(job):
    algo, env_id, steps, seed, side = job
    command = [sys.executable, __file__, "--train", algo, env_id, str(steps), str(seed)]
    env = os.environ | {"OMP_NUM_THREADS": "1"} | SIDES[side]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("FIGURES ")]
    if not lines:
        return [*job, *["failed"] * len(FIGURES)], done.stderr[-2000:]
    return [*job, *json.loads(lines[0].removeprefix("FIGURES "))], ""


def read(path):
    """Returns the rows that there are, by what they are of."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {tuple(row[k] for k in KEYS): row for row in csv.DictReader(file)}


def measure(opt):
    jobs = [
        (algo, env_id, STEPS[algo], seed, side)
        for seed in opt.seeds
        for algo in opt.algos
        for env_id in opt.envs
        for side in opt.sides
    ]
    there = read(opt.runs)
    jobs = [job for job in jobs if tuple(map(str, job)) not in there]
    opt.runs.parent.mkdir(parents=True, exist_ok=True)
    end = time.time() + 3600 * opt.hours
    with concurrent.futures.ThreadPoolExecutor(opt.jobs) as pool:
        futures = [pool.submit(lambda j: run(j) if time.time() < end else None, j) for j in jobs]
        for future in concurrent.futures.as_completed(futures):
            if future.result() is None:
                continue
            row, error = future.result()
            if error:
                print(row, error, file=sys.stderr)
                continue
            is_new = not opt.runs.exists()
            with opt.runs.open("a", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerows([[*KEYS, *FIGURES]] if is_new else [])
                writer.writerow(row)
            print(*row, flush=True)


def table(path):
    """Returns the comparison, a row for each algorithm and environment."""
    import numpy as np

    groups = collections.defaultdict(list)
    for row in read(path).values():
        groups[row["algo"], row["env"], row["steps"], row["side"]].append(row)
    lines = ["| | steps | seeds | return: fast | return: plain | fast: 50%, 99%, most | plain |"]
    lines += ["|---|---|---|---|---|---|---|"]
    order = {name: i for i, name in enumerate([*STEPS, *ENVS])}
    kinds = sorted({key[:3] for key in groups}, key=lambda k: (order[k[0]], order.get(k[1], 99), k))
    for algo, env_id, steps in kinds:
        returns, sizes, seeds = {}, {}, {}
        for side in ("fast", "plain"):
            rows = groups[algo, env_id, steps, side]
            seeds[side] = len(rows)
            if not rows:
                returns[side] = sizes[side] = "-"
                continue
            got = [float(row["return"]) for row in rows]
            returns[side] = f"{np.mean(got):,.0f} ± {np.std(got):,.0f}"
            medians = [np.median([float(r[k]) for r in rows]) for k in ("pre50", "pre99")]
            most = max(float(row["pre_max"]) for row in rows)
            sizes[side] = ", ".join(f"{x:.2g}" for x in (*medians, most))
        count = (
            f"{seeds['fast']}"
            if len(set(seeds.values())) == 1
            else f"{seeds['fast']}, {seeds['plain']}"
        )
        name = algo.removesuffix(NORMALIZED)
        name = name.upper() + " with `normalize_obs`" * (name != algo)
        lines.append(
            f"| {name}, {env_id} | {int(steps):,} | {count} | {returns['fast']} | "
            f"{returns['plain']} | {sizes['fast']} | {sizes['plain']} |"
        )
    return "\n".join(lines) + "\n"


def put_into(page, text):
    """Replaces the table of a page, which begins with the same heading, by another."""
    heading = re.escape(text.splitlines()[0])
    content, count = re.subn(
        rf"^{heading}\n(\|.*\n)*", lambda _: text, page.read_text(), flags=re.M
    )
    if count != 1:
        sys.exit(f"{page} has {count} tables that begin with {text.splitlines()[0]}")
    page.write_text(content)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=pathlib.Path, default=RUNS, help="file of rows")
    parser.add_argument("--algos", nargs="+", default=list(STEPS), choices=STEPS)
    parser.add_argument("--envs", nargs="+", default=ENVS)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--hours", type=float, default=12, help="no run begins after that")
    parser.add_argument("--table", action="store_true", help="print the table of what there is")
    parser.add_argument("--page", type=pathlib.Path, help="put the table into this page")
    parser.add_argument("--train", nargs=4, help=argparse.SUPPRESS)
    opt = parser.parse_args()
    if opt.train:
        algo, env_id, steps, seed = opt.train
        train(algo, env_id, int(steps), int(seed))
    elif opt.page:
        put_into(opt.page, table(opt.runs))
    elif opt.table:
        print(table(opt.runs), end="")
    else:
        measure(opt)


if __name__ == "__main__":
    main()
