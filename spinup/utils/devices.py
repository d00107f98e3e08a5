"""The device that trains the networks."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from spinup.utils.groups import this_group
from spinup.utils.mpi_tools import proc_id

# Variables with a rank's number on its host, as set by MPICH, Open MPI and Slurm.
_LOCAL_RANK = ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID")


def choose_device(device: str | torch.device) -> torch.device:
    """Returns the device that holds networks and minibatches; environments stay on the CPU.

    It is the CPU for a rank that shares a GPU, but doesn't learn (see `spinup.utils.groups`). A GPU
    also becomes this process's current one, whose generator `Checkpoint` saves. Otherwise every
    rank would also open a context on GPU 0.

    Args:
        device: as for `find_device`, which raises ValueError if there is no such device.
    """
    chosen = find_device(device)
    if not this_group().learns:
        return torch.device("cpu")
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    return chosen


@contextlib.contextmanager
def current_device_kept() -> Iterator[None]:
    """Makes the caller's GPU the current one again after the block."""
    before = torch.cuda.current_device() if torch.cuda.is_initialized() else 0
    try:
        yield
    finally:
        if torch.cuda.is_initialized():
            torch.cuda.set_device(before)


def find_device(device: str | torch.device) -> torch.device:
    """Returns the device of a name, without using it.

    Args:
        device: ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"auto"``, which is CUDA if it is available
            and the CPU otherwise. ``"cuda"`` spreads the ranks of a host over its GPUs.

    Raises:
        ValueError: the device is unknown or not available.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise ValueError(f"device {str(device)!r} is unknown: use cpu, cuda, cuda:N or auto")
    if chosen.type == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise ValueError(
            f"device {str(device)!r}: this PyTorch ({torch.__version__}) sees no CUDA GPU; use "
            "device cpu, or install a CUDA build of PyTorch and check nvidia-smi"
        )
    index = _local_rank() % count if chosen.index is None else chosen.index
    if index >= count:
        raise ValueError(f"device {str(device)!r}: there are {count} GPUs, numbered from 0")
    return torch.device("cuda", index)


def gpu_name(device: str | torch.device) -> str:
    """Returns a name of a device's GPU that is unique on this host; "" for the CPU.

    It doesn't open a context on the GPU. With Slurm, each rank may see another GPU as number 0, so
    the name is NVIDIA's identifier, if torch can find it.
    """
    chosen = find_device(device)
    if chosen.type == "cpu":
        return ""
    with contextlib.suppress(Exception):  # private functions of torch
        number = torch.cuda._get_nvml_device_index(chosen)
        return torch.cuda._raw_device_uuid_nvml()[number]  # type: ignore[index]
    return f"{os.environ.get('CUDA_VISIBLE_DEVICES', '')} {chosen.index}"


def _local_rank():
    known = [int(os.environ[name]) for name in _LOCAL_RANK if name in os.environ]
    return known[0] if known else proc_id()
