"""Checkpoints of the whole training state, protected against interrupted writes and damage.

A checkpoint is the folder ``checkpoint/step-N`` in the run folder. It holds two files per rank,
``rank0.safetensors`` with the arrays and ``rank0.json`` with everything else, and one file
``manifest.json`` with the size and SHA-256 of each file. A checkpoint is written under a temporary
name, flushed to disk, and renamed. The last two checkpoints are kept. A checkpoint that doesn't
match its manifest isn't used. Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import random
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import torch

from spinup.runs import files
from spinup.runs.files import as_os_error, may_pass
from spinup.runs.folder import (
    CHECKPOINT,
    check_unchanged,
    fixed_config,
    holds_checkpoint,
    is_resumable,
    remedy,
)
from spinup.runs.interrupts import Interrupted, StopRequest
from spinup.runs.underway import current_run
from spinup.runs.watchdog import still_alive
from spinup.utils.logx import EpochLogger
from spinup.utils.mpi_tools import barrier, broadcast, mpi_op, mpi_sum, num_procs, proc_id

FORMAT = 2
_KEPT = 2
_TEMPORARY = ".unfinished-"

# Key of a JSON object that stands for an array. Its value is the name in the safetensors file.
_ARRAY = "__array__"


class Checkpoint:
    """Saves a run's state periodically and when it is interrupted, and restores it.

    Args:
        logger: the run's logger. Its folder holds the checkpoints, which include its state.
        every: minimum time in seconds between checkpoints. They are saved at the end of an epoch;
            0 saves one every epoch. The last epoch always saves one.
        steps_per_epoch, total_steps: environment steps, summed over ranks.
        meet_every: environment steps after which all ranks check together for a signal to stop.
        **parts: the training state by name: modules, optimizers, buffers, environments (objects
            with ``state_dict`` and ``load_state_dict``), tensors, and NumPy generators. The global
            generators of torch, NumPy and Python are added.
    """

    def __init__(
        self,
        logger: EpochLogger,
        every: float,
        steps_per_epoch: int,
        total_steps: int,
        meet_every: int,
        **parts: Any,
    ):
        self.logger, self.every = logger, every
        self.steps_per_epoch, self.total_steps = steps_per_epoch, total_steps
        self.meet_every = meet_every
        self.parts = {**parts, "logger": logger, "generators": _GlobalGenerators()}
        run = current_run()
        self._stop = run.stop if run else StopRequest()
        self._began = time.time()
        self._saved = -math.inf  # so that the first epoch saves one

    def restore(self, **counters: Any) -> SimpleNamespace:
        """Restores the newest checkpoint if the run is to be resumed.

        This writes no file. Call ``logger.begin()`` after the first episode has started.

        Args:
            **counters: the training loop's counters with their initial values.

        Returns:
            The counters, from the checkpoint or as given; ``t``, the number of environment steps
            taken; and ``start_time``, the time at which an uninterrupted run would have started.

        Raises:
            ValueError: checkpoints exist, but none can be used, or the newest one is from a run
                with other hyperparameters; or no checkpoint exists, but results that would be lost.
            BlockingIOError: another run is writing to the folder.
        """
        folder = self.logger.folder
        at = SimpleNamespace(**counters, t=0, start_time=self._began)
        if not folder.resumes:
            return at
        folder.lock()
        saved = self._read()
        if saved is None:
            self.logger.log("There is no checkpoint yet: the run starts from the beginning")
            self.logger.load_state_dict(self.logger.state_dict())  # so that the log does, too
            return at
        check_unchanged(saved.get("config", {}), folder.config)
        self._saved = time.time()
        vars(at).update(saved["counters"])
        at.start_time = self._began = time.time() - saved["seconds"]
        for name, part in self.parts.items():
            _load(part, saved["parts"][name])
        self.logger.log(f"Continuing at step {at.t} of {self.total_steps}")
        return at

    def step(self, t: int, is_last: bool = False, **counters: Any) -> None:
        """Saves a checkpoint if one is due after `t` environment steps.

        Call it at the end of each iteration of the training loop. An iteration may skip it if all
        ranks do.

        Args:
            t: number of environment steps taken.
            is_last: whether the run ends here, before its last step. The policy is then saved, too.
            **counters: the training loop's counters.

        Raises:
            Interrupted: a signal stopped the run, after a checkpoint was saved.
        """
        ends_epoch = t % self.steps_per_epoch == 0
        if not ends_epoch and t % self.meet_every:
            return
        signal, due = self._stop.signal, ends_epoch and time.time() - self._saved >= self.every
        if num_procs() > 1:  # only rank 0's clock counts, but a signal to any rank
            both = np.array([signal, due if proc_id() == 0 else 0])
            signal, due = map(int, mpi_op(both, "MAX"))  # type: ignore[assignment]
        ends = bool(signal) or is_last or t == self.total_steps
        if due or ends:
            self.save(t, is_last=ends, **counters)
        if signal or is_last:
            self.logger.save_state()
            barrier()
        if signal and t < self.total_steps:
            how = "the same command and --resume, or from Python resume=True"
            where = self.logger.folder.path
            self.logger.log(f"Saved at step {t}; continue with {how} (the folder is {where})")
            raise Interrupted(signal, t)

    def save(self, t: int, is_last: bool = True, **counters: Any) -> None:
        """Saves a checkpoint after `t` environment steps.

        Args:
            t: number of environment steps taken.
            is_last: whether the run ends here. If not, a full disk only causes a warning: the run
                continues, and earlier checkpoints stay.
            **counters: the training loop's counters.

        Raises:
            OSError: the checkpoint can't be written.
        """
        state = {
            "counters": {**counters, "t": t},
            "seconds": time.time() - self._began,
            "config": fixed_config(self.logger.folder.config),
            "parts": {name: _state(part) for name, part in self.parts.items()},
        }
        folder = self._folder
        still_alive()
        self._saved = time.time()
        try:
            write(folder, t, state)
        except OSError as error:
            if may_pass(error) and not is_last:
                self.logger.note_full_disk("the checkpoint", error)
                return
            has_others = holds_checkpoint(folder.parent)
            others = "earlier checkpoints are intact" if has_others else "no other exists"
            raise OSError(
                error.errno,
                f"{error.strerror}: the checkpoint of step {t} can't be written to {folder}; "
                f"{others}. Free disk space, and {remedy(folder.parent)}",
            ) from error
        self.logger.note_room("the checkpoint")

    @property
    def _folder(self):
        assert self.logger.folder.path is not None
        return self.logger.folder.path / CHECKPOINT

    def _read(self):
        if self.logger.folder.path is None:
            return None
        folder = self._folder
        # -1: no checkpoint exists; -2: some exist, but none can be used; -3: only results exist
        step = np.array([-1])
        if proc_id() == 0:
            found = find(folder, self.logger.log)
            step[0] = -1 if found is None else found
            if found is None and holds_checkpoint(folder.parent):
                step[0] = -2
            elif found is None and not is_resumable(folder.parent):
                step[0] = -3
        broadcast(step)
        if step[0] == -2:
            raise ValueError(
                f"No checkpoint in {folder} can be used, for the reasons above; replace the run by "
                "a new one with --overwrite (overwrite=True)"
            )
        if step[0] == -3:
            raise ValueError(
                f"{folder.parent} holds results, but there is no checkpoint to continue from: "
                "--overwrite (overwrite=True) starts again in their place"
            )
        return None if step[0] < 0 else read(folder, int(step[0]))


def _state(part):
    if isinstance(part, torch.Tensor):
        return {"value": part.detach()}
    if isinstance(part, np.random.Generator):
        return part.bit_generator.state
    return part.state_dict()


def _load(part, state):
    if isinstance(part, torch.Tensor):
        with torch.no_grad():
            part.copy_(torch.from_numpy(state["value"]))
    elif isinstance(part, np.random.Generator):
        part.bit_generator.state = state
    elif isinstance(part, torch.nn.Module):
        part.load_state_dict({k: torch.as_tensor(v) for k, v in state.items()})
    else:
        part.load_state_dict(state)


class _GlobalGenerators:
    """The global random generators of torch, NumPy and Python."""

    def state_dict(self):
        version, numbers, gauss = random.getstate()
        state = {"python": [version, list(numbers), gauss], "torch": torch.get_rng_state()}
        state["numpy"] = np.random.get_state(legacy=False)
        if torch.cuda.is_initialized():  # else the run is on the CPU; saving would open a context
            state["cuda"] = torch.cuda.get_rng_state()
        return state

    def load_state_dict(self, state):
        version, numbers, gauss = state["python"]
        random.setstate((version, tuple(numbers), gauss))
        torch.set_rng_state(torch.from_numpy(state["torch"]))
        np.random.set_state(state["numpy"])
        if "cuda" in state and torch.cuda.is_initialized():
            torch.cuda.set_rng_state(torch.from_numpy(state["cuda"]))


# --- Files ----------------------------------------------------------------------------------------


def write(folder: Path, step: int, state: Mapping[str, Any]) -> None:
    """Writes the state of all ranks as the checkpoint of a step. All ranks must call it.

    Args:
        folder: folder of the checkpoints.
        step: number of environment steps taken.
        state: this rank's state: nested dicts and lists of JSON values, arrays and tensors.

    Raises:
        OSError: the checkpoint can't be written; earlier checkpoints are intact.
    """
    unfinished, rank = folder / f"{_TEMPORARY}{step}", proc_id()
    try:
        with _together():
            if folder.is_symlink():
                raise OSError(errno.ELOOP, f"{folder} is a link, through which nothing is written")
            if rank == 0:
                for rest in folder.glob(f"{_TEMPORARY}*"):
                    shutil.rmtree(rest)
                unfinished.mkdir(parents=True)
        names = [f"rank{rank}.safetensors", f"rank{rank}.json"]
        with _together():
            arrays: dict[str, np.ndarray] = {}
            content = json.dumps(_without_arrays(state, "", arrays))
            with as_os_error():
                safetensors.numpy.save_file(arrays, unfinished / names[0])
            (unfinished / names[1]).write_text(content)
            described = [_describe(unfinished / name) for name in names]
        described = _gathered(described)
        with _together():
            if rank == 0:
                _finish(folder, unfinished, step, described)
    except OSError:
        if rank == 0:
            shutil.rmtree(unfinished, ignore_errors=True)  # frees disk space
        raise


def _finish(folder, unfinished, step, described):
    """Completes a checkpoint whose files all ranks have written, and removes old ones."""
    names = [f"rank{r}.{end}" for r in range(num_procs()) for end in ("safetensors", "json")]
    contents = dict(zip(names, described, strict=True))
    manifest = dict(format=FORMAT, step=step, ranks=num_procs(), files=contents)
    manifest["sha256"] = _digest(manifest)
    (unfinished / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    _flush(unfinished / "manifest.json")
    _flush(unfinished)
    final = folder / f"step-{step}"
    if final.exists():
        shutil.rmtree(final)
    os.replace(unfinished, final)
    _flush(folder)
    for old in _steps(folder)[_KEPT:]:
        shutil.rmtree(folder / f"step-{old}")


@contextlib.contextmanager
def _together():
    """Raises OSError on all ranks if the block raises it on any, so that none continues alone."""
    own = None
    try:
        yield
    except OSError as error:
        own = error
    number = int(mpi_op((own.errno or errno.EIO) if own else 0, "MAX"))
    if number:
        raise own or OSError(number, f"{os.strerror(number)} (on another rank)")


def find(folder: Path, log=print) -> int | None:
    """Returns the step of the newest checkpoint that can be used, or None.

    Args:
        folder: folder of the checkpoints.
        log: function that prints why a newer checkpoint can't be used.
    """
    for step in _steps(folder):
        damage = check(folder / f"step-{step}")
        if damage is None:
            return step
        log(f"The checkpoint of step {step} can't be used: {damage}")
    return None


def check(path: Path) -> str | None:
    """Returns why a checkpoint can't be used, or None if it can."""
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        digest = manifest.pop("sha256")
        if digest != _digest(manifest):
            return "manifest.json is damaged"
        if (manifest["format"], f"step-{manifest['step']}") != (FORMAT, path.name):
            return "manifest.json belongs to another checkpoint or version"
        if manifest["ranks"] != num_procs():
            return f"it was saved on {manifest['ranks']} ranks, but this run has {num_procs()}"
        ranks = range(num_procs())
        names = {f"rank{rank}{ending}" for rank in ranks for ending in (".json", ".safetensors")}
        if set(manifest["files"]) != names:
            return "manifest.json lists other files"
        for name, (size, sha256) in manifest["files"].items():
            if [size, sha256] != _describe(path / name, flushes=False):
                return f"{name} is damaged"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def read(folder: Path, step: int) -> dict[str, Any]:
    """Returns this rank's state from a checkpoint that `find` returned."""
    path = folder / f"step-{step}"
    arrays = safetensors.numpy.load_file(path / f"rank{proc_id()}.safetensors")
    content = json.loads((path / f"rank{proc_id()}.json").read_text())
    return _with_arrays(content, arrays)


def _steps(folder):
    """Returns the steps of all checkpoints, newest first."""
    names = [path.name.removeprefix("step-") for path in folder.glob("step-*")]
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def _without_arrays(x, name, arrays):
    """Returns nested values with references in place of arrays, and adds these to `arrays`."""
    if isinstance(x, Mapping):
        return {str(k): _without_arrays(v, f"{name}.{k}", arrays) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [_without_arrays(v, f"{name}.{i}", arrays) for i, v in enumerate(x)]
    if isinstance(x, torch.Tensor):
        x = x.detach().cpu().numpy()
    if isinstance(x, np.ndarray):
        arrays[name] = np.ascontiguousarray(x)
        return {_ARRAY: name, "shape": list(x.shape)}
    return x.item() if isinstance(x, np.generic) else x


def _with_arrays(x, arrays):
    if isinstance(x, list):
        return [_with_arrays(v, arrays) for v in x]
    if not isinstance(x, dict):
        return x
    if _ARRAY in x:
        return arrays[x[_ARRAY]].reshape(x["shape"])
    return {k: _with_arrays(v, arrays) for k, v in x.items()}


def _describe(path, flushes=True):
    """Returns a file's size and SHA-256, after flushing it to disk if `flushes` is True."""
    if flushes:
        _flush(path)
    sha256 = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            sha256.update(block)
        return [file.tell(), sha256.hexdigest()]


def _flush(path):
    if files.ON_WINDOWS and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if files.ON_WINDOWS else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(manifest):
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _gathered(described):
    """Returns the sizes and hashes of all ranks' files, in the order of ranks."""
    if num_procs() == 1:
        return described
    numbers = np.zeros((num_procs(), len(described), 33))
    for i, (size, sha256) in enumerate(described):
        numbers[proc_id(), i] = [size, *bytes.fromhex(sha256)]
    rows = mpi_sum(numbers).reshape(-1, 33).astype(np.int64)
    return [[int(row[0]), bytes(row[1:].tolist()).hex()] for row in rows]
