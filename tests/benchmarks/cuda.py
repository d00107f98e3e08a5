"""Checks and measures spinup on a CUDA GPU, in one command of under nine minutes.

    python tests/benchmarks/cuda.py [--wheels DIR] [--out FILE] [--dry] [--only STAGE ...]

It needs torch, mpi4py, NumPy and pytest. Other packages are installed from the wheels in a folder,
into a folder of their own, if they aren't there. ``--dry`` goes through all stages on the CPU, at
small sizes, to find mistakes before a GPU is at hand. A stage that fails or takes too long doesn't
stop the others. Results are printed at once, and written to FILE as JSON after each stage.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ALGORITHMS = ("vpg", "trpo", "ppo", "ddpg", "td3", "sac")
SECONDS = 530  # of all stages together

# What a package is imported as. The first ones are needed, the others used if they are there.
NEEDED = ("gymnasium", "mujoco", "safetensors", "threadpoolctl", "rich", "cloudpickle", "pandas")
PEER = "stable_baselines3"

# Largest difference of a parameter after 100 updates, relative to the largest change of any.
# Rounding grows with each update: compiled networks and PyTorch's, both on a CPU, differ by up to
# 2.5e-3 (DDPG).
TOLERANCE = 1e-2


class Bench:
    """The options, the results so far, and the time that is left.

    Attributes:
        device: device that is measured.
        results: results by stage.
    """

    def __init__(self, opt):
        self.opt, self.device = opt, "cpu" if opt.dry else "cuda"
        self.results, self.ends = {}, time.monotonic() + SECONDS

    def run(self, words, seconds, env=None):
        """Runs a Python command; returns its output, and raises RuntimeError if it fails."""
        seconds = max(5, min(seconds, self.ends - time.monotonic()))
        done = subprocess.run(
            [sys.executable, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            cwd=ROOT,
            env=os.environ | (env or {}),
        )
        if done.returncode:
            raise RuntimeError(f"exit status {done.returncode}\n{done.stdout[-3000:]}")
        return done.stdout

    def part(self, name, *words, seconds=60, env=None):
        """Runs a part of this file in a new process, and returns its result."""
        script = str(pathlib.Path(__file__).resolve())
        out = self.run([script, "--part", name, *map(str, words)], seconds, env)
        return json.loads(re.findall(r"^RESULT (.*)$", out, re.MULTILINE)[-1])

    def worker(self, algo, package="spinup", ranks=1, limit=70, **options):
        """Runs worker.py and returns the ranks' timings."""
        words = [str(HERE / "worker.py"), algo, package]
        words += [x for key, value in options.items() for x in (f"--{key}", str(value))]
        if ranks > 1:
            from spinup.launch.mpiexec import launch_command

            command, env = launch_command(ranks, words)
            done = subprocess.run(
                command, env=env, capture_output=True, text=True, timeout=limit, cwd=ROOT
            )
            out = done.stdout
            if done.returncode:
                raise RuntimeError(f"exit status {done.returncode}\n{(out + done.stderr)[-3000:]}")
        else:
            out = self.run(words, limit)
        return [json.loads(x) for x in re.findall(r"TIMING (\{.*?\})", out)]


# --- Stages ---------------------------------------------------------------------------------------


def machine(bench):
    """Describes the machine."""
    import torch

    result = {"python": sys.version.split()[0], "torch": torch.__version__, "cores": os.cpu_count()}
    if torch.cuda.is_available():
        result["gpu"] = torch.cuda.get_device_name()
        result["gpu_bytes"] = torch.cuda.get_device_properties(0).total_memory
        smi = shutil.which("nvidia-smi")
        query = ["--query-gpu=driver_version,clocks.max.sm", "--format=csv,noheader"]
        result["nvidia_smi"] = smi and subprocess.check_output([smi, *query], text=True).strip()
    from spinup.fast import kernels

    result["compiled"] = kernels.compiled()
    return result


def equality(bench):
    """100 updates of each algorithm: captured against as written, and the device against the CPU.

    Rows: the largest difference of a parameter, relative to the largest change of any parameter.
    The first two ways draw minibatches and noise on the GPU, the other two on the CPU.
    """
    rows = {}
    for algo in ALGORITHMS:
        folder = tempfile.mkdtemp()
        ways = {
            "captured": (bench.device, {"SPINUP_CUDA_GRAPHS": "1"}),
            "written": (bench.device, {"SPINUP_CUDA_GRAPHS": "1"}),
            "device": (bench.device, {"SPINUP_FAST": "0"}),
            "cpu": ("cpu", {"SPINUP_FAST": "0"}),
        }
        replays = {}
        for way, (device, env) in ways.items():
            words = "train", algo, device, way, f"{folder}/{way}.npz"
            replays[way] = bench.part(*words, seconds=40, env=env)
        rows[algo] = {
            f"{one} - {other}": _difference(folder, one, other)
            for one, other in (("captured", "written"), ("device", "cpu"))
        }
        bad = [k for k, x in rows[algo].items() if not x < TOLERANCE]
        rows[algo]["replays"] = replays["captured"]
        rows[algo]["passed"] = not bad and replays["captured"] > 0
        shutil.rmtree(folder)
    return rows


def _difference(folder, one, other):
    import numpy as np

    first, second = (np.load(f"{folder}/{name}.npz") for name in (one, other))
    moved = max(abs(second[k] - second[f"start.{k}"]).max() for k in second if "start." not in k)
    apart = max(abs(first[k] - second[k]).max() for k in second if "start." not in k)
    return float(apart / moved)


def tests(bench):
    """The tests with the mark `cuda`."""
    words = ["-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", "tests"]
    try:
        out = bench.run(words, 120)
    except RuntimeError as error:
        if "exit status 5" not in str(error):
            raise
        out = str(error)
    return out.strip().splitlines()[-1]


def speed(bench):
    """Environment steps and updates per second on HalfCheetah-v5, and the GPU's memory.

    By CUDA graphs, and for comparison as written.
    """
    seconds = 1 if bench.opt.dry else 5
    many = 2 if bench.opt.dry else min(16, os.cpu_count() or 1)
    rows = {}
    short = {"epochs": 1} if bench.opt.dry else {"epochs": 3}
    off_policy = {"seconds": seconds, "updates": 200}
    jobs = [("ppo", n, short) for n in (1, many)]
    jobs += [
        (algo, n, off_policy | {"batch_size": batch})
        for algo in ("sac", "td3")
        for n, batch in ((1, 100), (1, 256), (many, 256))
    ]
    jobs = [(*job, "1") for job in jobs]
    jobs += [(algo, ranks, options, "0") for algo, ranks, options, _ in jobs if ranks == 1]
    for algo, ranks, options, by_graphs in jobs:
        os.environ["SPINUP_CUDA_GRAPHS"] = by_graphs
        parts = [f"{k} {v}" for k, v in options.items()]
        name = " ".join([algo, f"{ranks} ranks", *parts, f"graphs {by_graphs}"])
        try:
            timings = bench.worker(algo, ranks=ranks, device=bench.device, **options)
            rows[name] = _speeds(algo, timings)
        except Exception as error:  # noqa: BLE001 (the other rows count, too)
            rows[name] = str(error)[-500:]
        print("  ", name, rows[name], flush=True)
    return rows


def _speeds(algo, timings):
    seconds = max(t["t1"] for t in timings) - min(t["t0"] for t in timings)
    row = {"steps_per_second": sum(t["steps"] for t in timings) / seconds}
    pauses = timings[0]["pauses"]
    updates = 1 if algo == "ppo" else 50  # in a pause
    row["updates_per_second"] = updates / statistics.median(pauses)
    row["gpu_bytes"] = timings[0].get("gpu_bytes")
    return row


def peers(bench):
    """stable-baselines3 on the same device, if it is installed."""
    try:
        __import__(PEER)
    except ImportError as error:
        return f"not run: {error}"
    rows = {}
    for algo, options in (
        ("sac", {"seconds": 3, "updates": 200}),
        ("td3", {"seconds": 3, "updates": 200}),
        ("ppo", {"epochs": 1}),
    ):
        rows[algo] = _speeds(algo, bench.worker(algo, "sb3", device=bench.device, **options))
    return rows


def kernels_of_an_update(bench):
    """Milliseconds of an update, beside the sum of the GPU's kernels in it."""
    rows = {}
    for by_graphs in ("0", "1"):
        env = {"SPINUP_CUDA_GRAPHS": by_graphs}
        for algo in ("sac", "td3"):
            found = bench.part("profile", algo, bench.device, env=env)
            rows[f"{algo}, graphs {by_graphs}"] = found
    return rows


def crossover(bench):
    """Milliseconds of a step on SAC's critics on the CPU and on the GPU, by width and batch."""
    sizes = (64, 256) if bench.opt.dry else (64, 256, 512, 1024, 2048)
    batches = (64, 1024) if bench.opt.dry else (64, 256, 1024, 4096, 16384, 65536)
    rows = {}
    for device in dict.fromkeys(("cpu", bench.device)):
        found = bench.part("steps", device, *sizes, *(-b for b in batches), seconds=120)
        for key, value in found.items():
            rows.setdefault(key, {})[device] = value
    return rows


STAGES = {
    f.__name__: f for f in (machine, tests, equality, speed, kernels_of_an_update, peers, crossover)
}


# --- Parts that run in separate processes ---------------------------------------------------------


def train(algo, device, way, path):
    """Trains until 100 updates have been made, and saves the parameters before and after."""
    import numpy as np
    import torch

    import spinup
    from spinup.fast.capture import Captured
    from spinup.utils import contract

    module = importlib.import_module(f"spinup.algos.{algo}")
    made, capture = [], module.capture

    def by_way(update, device):
        made.append(Captured(update, False) if way == "written" else capture(update, device))
        return made[-1]

    module.capture = by_way
    if way in ("device", "cpu"):
        noise = torch.Generator().manual_seed(0)
        torch.randn_like = lambda x: torch.randn(x.shape, generator=noise).to(x.device)

    steps = 400
    kwargs = dict(steps_per_epoch=steps, epochs=1, seed=3, device=device)
    if algo in ("vpg", "trpo", "ppo"):
        kwargs |= dict(train_v_iters=100) | (dict(train_pi_iters=100) if algo == "ppo" else {})
    else:
        kwargs |= dict(start_steps=steps, update_after=steps, update_every=100)
        kwargs |= dict(num_test_episodes=0)
    before = {}
    check = contract.check_actor_critic

    def checked(ac, *args):
        ac = check(ac, *args)
        before.update({f"start.{k}": v.cpu().numpy().copy() for k, v in ac.state_dict().items()})
        return ac

    module.check_actor_critic = checked
    with tempfile.TemporaryDirectory() as folder:
        ac = getattr(spinup, algo)("Pendulum-v1", logger_kwargs=dict(output_dir=folder), **kwargs)
    np.savez(path, **before, **{k: v.cpu().numpy() for k, v in ac.state_dict().items()})
    return sum(update.num_replays for update in made)


def profile(algo, device):
    """Times updates of 100 transitions, and adds up the times of the kernels that they start."""
    import torch
    from torch.profiler import ProfilerActivity

    import spinup
    from spinup.fast.capture import Captured

    called, count, times = Captured.__call__, [0], {}
    is_cuda = device.startswith("cuda")

    def timed(self, *flags, **named):
        count[0] += 1
        if count[0] == 300:
            torch.cuda.synchronize() if is_cuda else None
            times["began"] = time.perf_counter()
        if count[0] == 500:
            torch.cuda.synchronize() if is_cuda else None
            times["update_ms"] = (time.perf_counter() - times["began"]) * 1000 / 200
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * is_cuda
            times["profiler"] = torch.profiler.profile(activities=activities)
            times["profiler"].__enter__()
        result = called(self, *flags, **named)
        if count[0] == 549:
            torch.cuda.synchronize() if is_cuda else None
            times["profiler"].__exit__(None, None, None)
        return result

    Captured.__call__ = timed
    with tempfile.TemporaryDirectory() as folder:
        getattr(spinup, algo)(
            "HalfCheetah-v5",
            steps_per_epoch=1600,
            epochs=1,
            start_steps=1000,
            update_after=1000,
            num_test_episodes=0,
            device=device,
            logger_kwargs=dict(output_dir=folder),
        )
    events = times["profiler"].events()
    on_gpu = [e for e in events if str(e.device_type).endswith("CUDA")]
    kernels_ms = sum(e.device_time_total for e in on_gpu) / 1000 / 50
    row = {"update_ms": times["update_ms"], "kernels_ms": kernels_ms}
    return row | {"kernels": len(on_gpu) / 50}


def steps(device, *numbers):
    """Times gradient steps on twin critics. Positive numbers are widths, negative ones batches."""
    import torch

    from spinup.fast.capture import capture
    from spinup.fast.nodes import gradients_in_place
    from spinup.utils.flat import flatten
    from spinup.utils.mpi_pytorch import setup_pytorch_for_mpi
    from spinup.utils.nets import mlp
    from spinup.utils.optim import Adam

    setup_pytorch_for_mpi()
    numbers = [int(n) for n in numbers]
    rows, ends = {}, time.monotonic() + 100
    is_cuda = device.startswith("cuda")
    for width in (n for n in numbers if n > 0):
        for batch in (-n for n in numbers if n < 0):
            work = 6e-9 * 2 * batch * (width**2 + 24 * width)  # billions of operations
            if time.monotonic() > ends or (not is_cuda and work > 200):
                rows[f"{width}, {batch}"] = None
                continue
            torch.manual_seed(0)
            net = mlp([23, width, width, 1], torch.nn.ReLU, num_stacked=2).to(device)
            params = flatten(net)
            adam = Adam(params, 1e-3)
            x, y = torch.randn(batch, 23, device=device), torch.randn(batch, device=device)

            def step(net=net, params=params, adam=adam, x=x, y=y):
                params.grad.zero_()
                (net(x).squeeze(-1) - y).square().mean().backward()
                adam.step()

            step = capture(step, device)
            with gradients_in_place():
                for _ in range(30 if work < 1 else 2):
                    step()
                spent, count = 0.0, 0
                while spent < 0.3 and count < 300:
                    torch.cuda.synchronize() if is_cuda else None
                    began = time.perf_counter()
                    for _ in range(10 if work < 1 else 1):
                        step()
                        count += 1
                    torch.cuda.synchronize() if is_cuda else None
                    spent += time.perf_counter() - began
            rows[f"{width}, {batch}"] = spent * 1000 / count
    return rows


PARTS = {f.__name__: f for f in (train, profile, steps)}


# --- The whole ------------------------------------------------------------------------------------


def install(wheels):
    """Installs packages that are missing from wheels, and compiles spinup's functions."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if wheels is not None:
        target = tempfile.mkdtemp(prefix="spinup-wheels-")
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps"]
        found = sorted(map(str, pathlib.Path(wheels).resolve().glob("*.whl")))
        subprocess.run([*pip, "--no-compile", "--target", target, *found], check=True)
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), target])
        os.environ["PATH"] = os.pathsep.join([f"{target}/bin", os.environ["PATH"]])
        sys.path.insert(0, target)
    elif missing:
        sys.exit(f"{', '.join(missing)} can't be imported: give --wheels DIR")
    else:
        os.environ["PYTHONPATH"] = str(ROOT)
    sys.path.insert(0, str(ROOT))
    if not list((ROOT / "spinup" / "fast").glob("*.so")):
        build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        subprocess.run(build, cwd=ROOT, check=False)


def main():
    if sys.argv[1:2] == ["--part"]:
        print("\nRESULT", json.dumps(PARTS[sys.argv[2]](*sys.argv[3:])), flush=True)
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheels", metavar="DIR", help="folder with wheels of missing packages")
    parser.add_argument("--out", metavar="FILE", help="write the results to FILE as JSON")
    parser.add_argument("--dry", action="store_true", help="go through all stages on the CPU")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=list(STAGES))
    opt = parser.parse_args()
    install(opt.wheels)
    bench = Bench(opt)
    failed = []
    for name in opt.only:
        began = time.monotonic()
        print(f"== {name}", flush=True)
        try:
            bench.results[name] = STAGES[name](bench)
        except Exception as error:  # noqa: BLE001 (the other stages count, too)
            failed.append(name)
            bench.results[name] = f"failed: {error}"[-3000:]
            traceback.print_exc(limit=3)
        print(json.dumps(bench.results[name], indent=1))
        print(f"-- {name}: {time.monotonic() - began:.0f} s", flush=True)
        if opt.out:
            pathlib.Path(opt.out).write_text(json.dumps(bench.results, indent=1) + "\n")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
