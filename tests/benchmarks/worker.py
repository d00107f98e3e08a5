"""Trains one algorithm of one library on HalfCheetah-v5 and prints when its timed steps took place.

    python worker.py ALGORITHM LIBRARY [options]

compare.py starts one worker at a time, in a new process with one thread. A wrapper around the
environment, the same for every library, reads the clock when a step begins, so that the interval
contains whole cycles of acting, storing and updating, and no library is changed. Under mpiexec each
rank times its own share of the steps.
"""

import argparse
import contextlib
import importlib
import json
import math
import os
import tempfile
import time

RANK, RANKS = int(os.environ.get("PMI_RANK", 0)), int(os.environ.get("PMI_SIZE", 1))
# One thread on one core for every library, set before the imports that create threads.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
os.environ.update(NPROC="1", JAX_PLATFORMS="cpu")
if hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[RANK % len(cores)]})

import gymnasium as gym  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

WARM_UP = 1000  # random steps before the first update of SAC and TD3
CYCLE = 50  # environment steps, followed by as many updates: spinup's default
FOREVER = 10**9  # steps: the stopwatch ends the run

ON_POLICY = ("vpg", "ppo", "trpo")
PEERS = {"sb3": "stable_baselines3", "sb3-contrib": "sb3_contrib", "sbx": "sbx"}


class TimeIsUp(Exception):
    """Raised in a step to end a run when the timed interval is over."""


class Stopwatch(gym.Wrapper):
    """Times the steps from `start` on, until both minima are met at a multiple of `every`.

    It also keeps the times between one step and the next at multiples of `every`, when an on-policy
    algorithm updates its networks.
    """

    def __init__(self, env, start, every, min_steps, min_seconds, step_seconds=0.0):
        super().__init__(env)
        self.step_seconds = step_seconds
        self.start, self.every = start, every
        self.min_steps, self.min_seconds = min_steps, min_seconds
        self.count, self.steps, self.t0, self.t1 = 0, 0, None, None
        self.pauses, self.end = [], 0.0

    def step(self, action):
        if self.t1 is None and self.count >= self.start and self.count % self.every == 0:
            self.look(time.perf_counter())
        self.count += 1
        if self.step_seconds:
            time.sleep(self.step_seconds)
        result = self.env.step(action)
        if self.count % self.every == 0:
            self.end = time.perf_counter()
        return result

    def look(self, now):
        if self.t0 is None:
            self.start, self.t0 = self.count, now
            return
        self.pauses.append(now - self.end)
        if self.count - self.start >= self.min_steps and now - self.t0 >= self.min_seconds:
            self.steps, self.t1 = self.count - self.start, now
            if RANKS == 1:  # with several ranks, `on_epoch` ends training
                raise TimeIsUp


def train_spinup(algo, env_fn, opt, watches):
    import spinup

    had_time = [False]

    def on_epoch(row, ac):
        """Ends a run on several ranks one epoch after its time is up, when it is up on all."""
        stops, had_time[0] = had_time[0], any(watch.t1 for watch in watches)
        return stops

    kwargs = {
        "device": opt.device,
        "steps_per_epoch": opt.epoch,
        "epochs": FOREVER // opt.epoch,
        "save_freq": FOREVER,
    }
    kwargs |= {"on_epoch": on_epoch} if RANKS > 1 else {}
    if algo in ON_POLICY:
        kwargs |= {"ac_kwargs": {"hidden_sizes": (64, 32)}}
        kwargs |= {"target_kl": float("inf")} if algo == "ppo" else {}
    else:
        kwargs |= {"start_steps": WARM_UP, "update_after": WARM_UP, "num_test_episodes": 0}
        kwargs |= {"batch_size": opt.batch_size}
    with tempfile.TemporaryDirectory() as folder:
        logger_kwargs = {"output_dir": f"{folder}/run", "exp_name": "benchmark"}
        getattr(spinup, algo)(env_fn, seed=0, logger_kwargs=logger_kwargs, **kwargs)


def train_peer(algo, env_fn, opt, watches):
    """Trains with a peer. stable-baselines3 and sbx have the same arguments and defaults."""
    library = importlib.import_module(PEERS[opt.package])
    if algo in ON_POLICY:
        kwargs = {"n_steps": opt.epoch, "batch_size": opt.epoch, "gae_lambda": 0.97}
        if algo == "ppo":
            kwargs["n_epochs"] = 80
        else:
            kwargs |= {"n_critic_updates": 80, "cg_max_steps": 10, "target_kl": 0.01}
        kwargs |= {"policy_kwargs": {"net_arch": {"pi": [64, 32], "vf": [64, 32]}}}
    else:
        kwargs = {
            "learning_rate": 1e-3,
            "batch_size": opt.batch_size,
            "tau": 0.005,
            "buffer_size": 10**6,
        }
        kwargs |= {"train_freq": opt.train_freq, "gradient_steps": opt.train_freq}
        kwargs |= {"learning_starts": WARM_UP, "policy_kwargs": {"net_arch": [256, 256]}}
    env = env_fn()
    if algo == "sac":
        kwargs |= {"ent_coef": 0.2}
    if algo == "td3":
        from stable_baselines3.common.noise import NormalActionNoise

        zeros = np.zeros(env.action_space.shape)
        kwargs |= {"policy_delay": 2, "action_noise": NormalActionNoise(zeros, zeros + 0.1)}
    model = getattr(library, algo.upper())
    model("MlpPolicy", env, gamma=0.99, seed=0, device=opt.device, **kwargs).learn(FOREVER)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("algo", choices=["vpg", "trpo", "ppo", "ddpg", "td3", "sac"])
    parser.add_argument("package", choices=["spinup", *PEERS])
    parser.add_argument("--train_freq", type=int, default=1, help="SB3, SBX: steps between updates")
    parser.add_argument("--epoch", type=int, default=4000, help="steps per epoch, over all ranks")
    parser.add_argument("--epochs", type=int, default=8, help="PPO: timed epochs, after the first")
    parser.add_argument(
        "--step_ms", type=float, default=0, help="milliseconds to wait in each step"
    )
    parser.add_argument("--updates", type=int, default=1000, help="SAC, TD3: updates before timing")
    parser.add_argument("--seconds", type=float, default=8, help="SAC, TD3: timed seconds")
    parser.add_argument("--batch_size", type=int, default=100, help="SAC, TD3")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--flush_denormal", action="store_true", help="SB3: set it, as in spinup")
    opt = parser.parse_args()

    torch.set_num_threads(1)
    torch.set_flush_denormal(opt.flush_denormal)
    if opt.algo in ON_POLICY:
        share = opt.epoch // RANKS
        timing = (share, share, opt.epochs * share, 0)
    else:
        cycle = math.lcm(CYCLE, RANKS) // RANKS
        timing = ((WARM_UP + opt.updates) // RANKS, cycle, cycle, opt.seconds)
    watches = []

    def env_fn():
        watches.append(Stopwatch(gym.make("HalfCheetah-v5"), *timing, opt.step_ms / 1000))
        return watches[-1]

    with contextlib.suppress(TimeIsUp):
        train = train_spinup if opt.package == "spinup" else train_peer
        train(opt.algo, env_fn, opt, watches)
    watch = next(watch for watch in watches if watch.t1)
    timed = {"steps": watch.steps, "t0": watch.t0, "t1": watch.t1, "pauses": watch.pauses}
    if torch.cuda.is_initialized():
        timed["gpu_bytes"] = torch.cuda.max_memory_allocated()
    print("\nTIMING " + json.dumps(timed), flush=True)


if __name__ == "__main__":
    main()
