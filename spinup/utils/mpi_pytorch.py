"""PyTorch on several ranks: threads, equal parameters, averaged gradients."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator

import threadpoolctl
import torch

from spinup.fast import capture, kernels
from spinup.fast.shared import shared_vector
from spinup.runs.watchdog import still_alive
from spinup.utils.mpi_tools import broadcast, mpi_sum, num_procs, proc_id, sum_in_place


def setup_pytorch_for_mpi() -> None:
    """Sets one thread (or ``OMP_NUM_THREADS``) for this rank, and flushes denormals to zero.

    Networks of this library's size run fastest on one thread. One thread per rank also prevents
    ranks from competing for cores, and makes sums independent of the machine's number of cores.
    Adam's moments of dead units decay into denormals, which make arithmetic several times slower.
    """
    threads = int((os.environ.get("OMP_NUM_THREADS") or "1").split(",")[0])  # one per nesting level
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    threadpoolctl.threadpool_limits(threads, user_api="blas")  # of NumPy


@contextlib.contextmanager
def one_thread_per_rank() -> Iterator[None]:
    """Applies `setup_pytorch_for_mpi` in a block, and restores the threads afterwards."""
    threads = torch.get_num_threads()
    with threadpoolctl.threadpool_limits(user_api="blas"):
        setup_pytorch_for_mpi()
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.set_flush_denormal(False)


@contextlib.contextmanager
def same_kernels() -> Iterator[None]:
    """Makes all ranks use PyTorch in a block, if only some have the compiled functions.

    The two round differently, so that the ranks' parameters would drift apart.
    """
    have = mpi_sum(kernels.compiled() is not None)
    if have in (0, num_procs()):
        yield
        return
    if proc_id() == 0:
        warnings.warn(
            f"{have:.0f} of {num_procs()} ranks have spinup's compiled functions (the other hosts "
            "installed spinup without a C compiler, or set SPINUP_COMPILED=0). All ranks use "
            "PyTorch, which is slower, so that their parameters stay equal. Install spinup with a "
            "C compiler on each host",
            stacklevel=4,
        )
    with kernels.switched_off():
        yield


def sync_params(module: torch.nn.Module | torch.nn.Parameter) -> None:
    """Overwrites a module's parameters and buffers, or a flat vector, with those of rank 0.

    Parameters then stay equal, because all ranks take the same steps. Buffers that a forward pass
    changes, such as a running mean, don't, because each rank sees different data.
    """
    if num_procs() == 1:
        return
    tensors = _parameters(module)
    if isinstance(module, torch.nn.Module):
        tensors += list(module.buffers())
    for x in tensors:
        host = x.data.cpu().contiguous()
        broadcast(host.reshape(-1).view(torch.uint8).numpy())  # for any dtype
        x.data.copy_(host)


@capture.capturable
def mpi_avg_grads(
    module: torch.nn.Module | torch.nn.Parameter, weight: float | None = None
) -> None:
    """Averages gradients over ranks.

    Args:
        module: a module, or a flat vector of parameters, which takes only one reduction.
        weight: this rank's weight: its share of the whole batch. The weights of all ranks add up
            to one. Equal weights if None.
    """
    still_alive()  # also on one rank, where a step may take long
    if num_procs() == 1:
        return
    weight = 1 / num_procs() if weight is None else weight
    for p in _parameters(module):
        shared = shared_vector(p)
        if shared is not None:  # see the class Adam
            capture.run(shared.average, weight)
            continue
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        if p.grad.is_cpu and p.grad.is_contiguous():
            p.grad.mul_(weight)
            capture.run(sum_in_place, capture.array(p.grad))
        else:
            capture.run(_average_through_a_copy, p.grad, weight)


def _average_through_a_copy(grad, weight):
    host = grad.cpu().contiguous()
    host.mul_(weight)
    sum_in_place(host.numpy())
    grad.copy_(host)


def _parameters(module):
    return [module] if isinstance(module, torch.nn.Parameter) else list(module.parameters())
