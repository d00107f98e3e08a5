"""Compares the training speed of spinup with its peers, or of several MPI ranks with one.

    python compare.py ppo|trpo|sac|td3|ranks|slow|startup [--rounds N] [--out FILE] [options]

Runs one process at a time, in turn (A B C A B C ...), so that changes of the machine's speed affect
all libraries. Ratios are computed within a round; the result is their median over the rounds.
Speeds are environment steps per second, and for `trpo` updates per second, without the steps. For
`startup` they are times in seconds. Other options are those of worker.py.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time

from spinup.version import __version__

WORKER = pathlib.Path(__file__).with_name("worker.py")
REQUIREMENTS = pathlib.Path(__file__).with_name("requirements.txt")

# Arguments of worker.py by name. The first entry is compared with the others. With SAC and TD3 the
# peers make one update after each step, or 50 after every 50 steps; the faster is the reference.
OFF_POLICY = {
    "spinup": ["spinup"],
    "sb3": ["sb3", "--train_freq", "1"],
    "sb3 by 50": ["sb3", "--train_freq", "50"],
    "sbx": ["sbx", "--train_freq", "1"],
    "sbx by 50": ["sbx", "--train_freq", "50"],
}
COMPARISONS = {
    "ppo": {"spinup": ["spinup"], "sb3": ["sb3"], "sbx": ["sbx"]},
    "trpo": {"spinup": ["spinup"], "sb3-contrib": ["sb3-contrib"]},
    "sac": OFF_POLICY,
    "td3": OFF_POLICY,
}
# Numbers of ranks, and what they train. The environment of "slow" takes 5 milliseconds per step.
RANKS = {
    "ranks": (("ppo", "sac", "td3"), (2,), []),
    "slow": (
        ("vpg", "trpo", "ppo", "ddpg", "td3", "sac"),
        (2, 4),
        ["--step_ms", "5", "--epoch", "1000", "--epochs", "2", "--updates", "200"],
    ),
}


def time_run(algo, args, ranks):
    """Returns the speed, over all ranks, of one run in a new process."""
    command = [sys.executable, str(WORKER), algo, *args]
    if ranks > 1:
        mpiexec = os.path.join(sysconfig.get_path("scripts"), "mpiexec")
        command[1:1] = ["-m", "mpi4py"]
        command[:0] = [mpiexec, "-n", str(ranks), "-launcher", "fork"]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    timings = [json.loads(found) for found in re.findall(r"TIMING (\{.*?\})", run.stdout)]
    if run.returncode or len(timings) != ranks:  # two ranks may write into one line
        sys.exit(f"\n{' '.join(command)}: exit status {run.returncode}\n{run.stdout[-3000:]}")
    if algo == "trpo" and "--step_ms" not in args:
        return len(timings[0]["pauses"]) / sum(timings[0]["pauses"])
    seconds = max(t["t1"] for t in timings) - min(t["t0"] for t in timings)
    return sum(t["steps"] for t in timings) / seconds


def time_start(command, awaited):
    """Returns the seconds from the start of a command to a line with a text, or to its end."""
    began, seconds = time.perf_counter(), None
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if seconds is None and awaited and awaited in line:
                seconds = time.perf_counter() - began
        if process.wait() or (awaited and seconds is None):
            sys.exit(f"\n{' '.join(command)}: exit status {process.returncode}")
    return seconds or time.perf_counter() - began


def describe_machine():
    cpu = platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        named = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
        cpu = named[1] if named else cpu
    versions = {"Python": platform.python_version(), "spinup": __version__}
    for name in re.findall(r"^(\S+)==", REQUIREMENTS.read_text(), re.MULTILINE):
        versions[name] = importlib.metadata.version(name)
    date, load = time.strftime("%Y-%m-%d %H:%M %Z"), round(os.getloadavg()[0], 2)
    return {"date": date, "cpu": cpu, "cores": os.cpu_count(), "load": load, "versions": versions}


def report(speeds, pairs):
    """Prints the medians, and the median per-round ratio of each pair. Returns both."""
    median = {name: statistics.median(rounds) for name, rounds in speeds.items()}
    print("\nmedian over rounds")
    for name in speeds:
        print(f"  {name:10} {median[name]:10.4g}")
    print("ratio, median over rounds")
    ratios = {}
    for ours, ways in pairs:
        reference = max(ways, key=median.get)
        rounds = [a / b for a, b in zip(speeds[ours], speeds[reference])]
        ratios[f"{ours} / {reference}"] = ratio = statistics.median(rounds)
        print(f"  {ours} / {reference:10} {ratio:5.2f}  of", *(f"{r:.2f}" for r in rounds))
    return {"median": median, "ratios": ratios}


def compare(measure, variants, pairs, rounds):
    """Measures variants in turn; `measure` is called with the arguments of each."""
    speeds = {name: [] for name in variants}
    for i in range(rounds):
        print(f"round {i + 1}:", end="", flush=True)
        for name, args in variants.items():
            speeds[name].append(measure(*args))
            print(f"  {name} {speeds[name][-1]:.4g}", end="", flush=True)
        print()
    return {"measured": speeds, **report(speeds, pairs)}


def compare_with_peers(name, options, rounds):
    variants = {k: (name, [*args, *options], 1) for k, args in COMPARISONS[name].items()}
    ours, *others = variants
    peers = dict.fromkeys(other.removesuffix(" by 50") for other in others)
    pairs = [(ours, [k for k in others if k.removesuffix(" by 50") == peer]) for peer in peers]
    return compare(time_run, variants, pairs, rounds)


def compare_ranks(name, options, rounds):
    algos, numbers, settings = RANKS[name]
    variants = {"1 rank": 1, **{f"{n} ranks": n for n in numbers}}
    args = ["spinup", *settings, *options]
    results = {}
    for algo in algos:
        print(f"\n{algo}")
        pairs = [(k, ["1 rank"]) for k in variants if k != "1 rank"]
        runs = {k: (algo, args, n) for k, n in variants.items()}
        results[algo] = compare(time_run, runs, pairs, rounds)
    return results


def compare_startup(name, options, rounds):
    """Times a run of one small epoch, from the command to the epoch's row, beside its imports."""
    with tempfile.TemporaryDirectory() as folder:
        run = ["-m", "spinup.run", "ppo", "--env", "CartPole-v1", "--epochs", "1", "--overwrite"]
        run += ["--steps_per_epoch", "100", "--data_dir", folder]
        variants = {
            "first epoch": ([sys.executable, *run], "epoch 1/1"),
            "imports": ([sys.executable, "-c", "import torch, gymnasium"], None),
        }
        return compare(time_start, variants, [("first epoch", ["imports"])], rounds)


def main():
    parser = argparse.ArgumentParser(usage=__doc__.splitlines()[2].strip())
    parser.add_argument("comparison", choices=[*COMPARISONS, *RANKS, "startup"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", metavar="FILE", help="write machine and results to FILE as JSON")
    opt, worker_options = parser.parse_known_args()

    machine = describe_machine()
    print(opt.comparison, *worker_options)
    print("{date}, {cpu}, {cores} cores, load {load}".format(**machine))
    print(", ".join(f"{name} {version}" for name, version in machine["versions"].items()))
    run = compare_ranks if opt.comparison in RANKS else compare_with_peers
    run = compare_startup if opt.comparison == "startup" else run
    results = run(opt.comparison, worker_options, opt.rounds)
    if opt.out:
        results |= {"comparison": opt.comparison, "options": worker_options, "machine": machine}
        pathlib.Path(opt.out).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
