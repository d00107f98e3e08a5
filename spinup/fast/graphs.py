"""Captures of updates as CUDA graphs.

A CUDA graph repeats a sequence of kernels on the GPU without Python's overhead, on the memory that
they used when they were captured. Minibatches are drawn, Adam steps and values are logged on the
GPU, too (see `spinup.fast.on_device`). Everything else must be a call of `spinup.fast.capture.run`,
such as an average over ranks. Each such call splits the update into two graphs, and a replay makes
it between them.

An update is first run as written and recorded several times, as on a CPU, with the same guards.
Only if all recordings are equal is it captured. If that fails, it runs as written, with a warning.

No graph has been run on a GPU by the authors yet. Therefore graphs are used only if the environment
variable ``SPINUP_CUDA_GRAPHS`` is 1.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from spinup import fast
from spinup.fast.capture import Capture, arguments_unchecked, recorded_by


def are_on() -> bool:
    """Returns True if updates on a GPU are captured."""
    return fast.is_on() and os.environ.get("SPINUP_CUDA_GRAPHS") == "1"


def are_used_on(device: torch.device) -> bool:
    """Returns True if updates on a device are captured as graphs, so that their data stay there."""
    return device.type == "cuda" and are_on()


class CudaBackend:
    """Makes CUDA graphs of the operations between `begin` and `end`, on a separate stream.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device):
        self.device, self.stream = device, _side_stream(device)
        # One pool, because later graphs use the results of earlier ones
        self.pool = torch.cuda.graph_pool_handle()
        self._context: Any = None

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Runs a block on the stream, after what was started before it, and before what follows."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        try:
            with torch.cuda.stream(self.stream):
                yield
        finally:
            current.wait_stream(self.stream)

    def begin(self) -> None:
        """Begins a graph."""
        graph = torch.cuda.CUDAGraph()
        self._current = torch.cuda.current_stream(self.device)
        self._context = torch.cuda.graph(graph, pool=self.pool, stream=self.stream)
        self._context.__enter__()
        self._replay = graph.replay

    def end(self) -> Callable[[], None]:
        """Ends the graph, and returns the function that replays it."""
        context, self._context = self._context, None
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The CUDA Graph is empty")
            context.__exit__(None, None, None)
        return self._replay

    def abandon(self) -> None:
        """Ends a graph whose capture failed, so that the update can run as written."""
        if self._context is not None:
            with contextlib.suppress(Exception):
                self.end()
        # PyTorch's context leaves its stream current, and the random generator in capture mode
        torch.cuda.set_stream(self._current)
        with contextlib.suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=self.stream):
                pass


@functools.cache
def _side_stream(device):
    """Returns one stream for all captures: PyTorch's backward passes remember their first one."""
    return torch.cuda.Stream(device)


class GraphTape:
    """An update as graphs, and the calls between them.

    Capturing doesn't execute anything: call the parts afterwards.

    Args:
        backend: captures the graphs.
    """

    def __init__(self, backend: Any):
        self.backend = backend
        self.parts: list[Callable[[], Any]] = []
        self.before: list[Callable[[], Any]] = []
        self.after: list[Callable[[], Any]] = []
        self.kept: list[Any] = []  # keeps the memory of the calls' arguments

    def capture(self, update: Callable[[], Any]) -> None:
        """Captures an update."""
        with recorded_by(self), arguments_unchecked():
            try:
                self.backend.begin()
                update()
                self.parts.append(self.backend.end())
            except BaseException:
                self.backend.abandon()
                raise

    def run(self, function: Callable, args: tuple, tensors: tuple, when: str) -> None:
        """Divides the update at a call, if need be; see `spinup.fast.capture.run`."""
        call = functools.partial(function, *args)
        self.kept.append((args, tensors))
        if when == "in place":
            self.parts.append(self.backend.end())
            self.parts.append(call)
            self.backend.begin()
        else:
            (self.before if when == "before" else self.after).append(call)

    def array(self, x: Tensor) -> Any:
        """Returns the memory of a tensor on the CPU, which only calls of `run` change."""
        return x.numpy()


def _run_aside(backend, update):
    """Runs an update as written, on the stream on which it will be captured."""
    with backend.aside():
        return update()


class GraphCapture(Capture):
    """A capture whose replays are CUDA graphs.

    Args:
        update: the update.
        flags, named: its arguments.
        device: the GPU.
        backend: makes the object that captures graphs.
    """

    is_built = False

    def __init__(
        self,
        update: Callable[..., Any],
        flags: tuple,
        named: dict[str, Any],
        device: torch.device,
        backend: Callable[[torch.device], Any] = CudaBackend,
    ):
        self.device_type = device.type
        self.backend = backend(device)
        super().__init__(update, flags, named)
        self.written: Callable[[], Any] = self.update
        # Not a method: a cycle would keep the GPU's memory in use
        self.update = functools.partial(_run_aside, self.backend, self.written)

    def forget(self):
        super().forget()
        self.graphs: GraphTape | None = None

    def replay(self, owner):
        if self.graphs is None:
            tape = GraphTape(self.backend)
            try:
                tape.capture(self.written)
            except Exception as error:  # noqa: BLE001 (whatever the GPU or its driver refuses)
                reason = str(error).strip().partition("\n")[0] or type(error).__name__
                obstacle = f"it can't be captured as a CUDA graph ({reason})"
                owner.run_as_written(obstacle, stacklevel=4)
                return self.update()
            self.graphs = tape
        with torch.no_grad():
            for part in itertools.chain(self.graphs.before, self.graphs.parts, self.graphs.after):
                part()
        return None
