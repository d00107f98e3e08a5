"""Quick functions for experiments in tests, which can be imported by name."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

from spinup.utils.logx import EpochLogger
from spinup.utils.mpi_tools import barrier, num_procs, proc_id


def fake(env_fn=None, seed=0, ending="finish", epochs=2, ac_kwargs=None, logger_kwargs=None):
    """Logs like an algorithm without training, and ends in the second epoch; see `end`."""
    logger = EpochLogger(**(logger_kwargs or {}))
    logger.save_config(dict(epochs=epochs, steps_per_epoch=100, env_fn=env_fn))
    print(f"seed {seed} on {env_fn}", flush=True)
    for epoch in range(epochs):
        if epoch == 1:
            barrier()  # rank 0 has written its status
            end(ending)
        logger.log_tabular("Epoch", epoch)
        logger.log_tabular("AverageEpRet", 10.0 * epoch + seed)
        logger.log_tabular("TotalEnvInteracts", (epoch + 1) * 100)
        logger.dump_tabular()


def fragile(seed=0, logger_kwargs=None):
    """Calls `fake` with an ending that depends on the seed, or finishes if ``mended`` exists."""
    endings = {3: "raise", 7: "exit", 11: "kill", 15: "never"}
    ending = "finish" if Path("mended").exists() else endings.get(seed, "finish")
    with open("ran.txt", "a") as file:
        file.write(f"{seed}\n")
    fake(seed=seed, ending=ending, logger_kwargs=logger_kwargs)


def end(ending):
    """Ends a run in the given way."""
    if ending == "raise":
        raise ValueError("the reward\nis NaN")
    if ending == "exit":
        os._exit(0)
    if ending == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if ending == "raise on rank 1" and proc_id() == 1:
        raise ValueError("not here")
    if ending == "never":
        time.sleep(600)
    barrier()


def note(path=None, seed=0, logger_kwargs=None, **kwargs):
    """Writes its arguments to one file per rank, without creating a Logger."""
    folder = Path(logger_kwargs["output_dir"])
    types = {key: type(value).__name__ for key, value in kwargs.items()}
    called = {"kwargs": repr(kwargs), "types": types, "seed": seed, "ranks": num_procs()}
    (folder / f"rank{proc_id()}.json").write_text(json.dumps(called))
