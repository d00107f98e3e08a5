"""Keeps the data of updates on the GPU, so that each update is one CUDA graph.

Minibatches are drawn on the GPU, from a copy of the replay buffer, and values for the log are
gathered there. If the CPU did either, the update would be split into several graphs (see
`spinup.fast.graphs`), and the GPU would wait between them.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from spinup.fast.capture import run

_LOG_ROWS = 1024  # most calls of `store` between two copies of the log from the GPU
_LOG_SIZE = 2**20  # most numbers in that time
LARGEST_VALUE = 4096  # most numbers in a value that is gathered on the GPU


class DeviceRows:
    """A copy on a device of a ring buffer's rows, from which minibatches are drawn.

    Args:
        rows: the buffer's rows ``(max_size, width)``, on the CPU.
        device: the device.
    """

    def __init__(self, rows: np.ndarray, device: torch.device):
        self._source = torch.from_numpy(rows)
        self.rows = torch.empty(rows.shape, dtype=torch.float32, device=device)
        self.size = torch.zeros((), dtype=torch.int64, device=device)
        self.num_copied = -1

    @staticmethod
    def make(rows: np.ndarray, device: torch.device) -> DeviceRows | None:
        """Returns a copy, or None with a warning if the device has no memory for it."""
        try:
            return DeviceRows(rows, device)
        except torch.OutOfMemoryError:
            warnings.warn(
                f"The replay buffer ({rows.nbytes:,} bytes) does not fit in the memory of "
                f"{device}. Minibatches are drawn on the CPU instead, which is slower. To keep the "
                "buffer on the GPU, lower replay_size",
                stacklevel=2,
            )
            return None

    def update(self, num_stored: int, ptr: int) -> None:
        """Copies the rows that are new.

        Args:
            num_stored: number of rows stored since the start.
            ptr: position of the next row.
        """
        if num_stored == self.num_copied:
            return
        num_new = min(num_stored - max(self.num_copied, 0), len(self.rows))
        start = ptr - num_new
        if start < 0:  # the end of the ring
            self.rows[start:].copy_(self._source[start:])
        self.rows[max(start, 0) : ptr].copy_(self._source[max(start, 0) : ptr])
        self.num_copied = num_stored
        self.size.fill_(min(num_stored, len(self.rows)))

    def draw(self, out: Tensor) -> None:
        """Fills `out` with rows that are drawn uniformly, with replacement."""
        # The size is a tensor, because a graph would freeze a number. The bias of % is below 1e-12.
        idx = torch.randint(2**62, (len(out),), device=out.device) % self.size
        torch.index_select(self.rows, 0, idx, out=out)


class DeviceLog:
    """Values for the log, gathered on a device.

    Args:
        values: the values of the first call of `add`, each a tensor on the device.
        keep: called as ``keep(name, array)`` with the values of one name.
    """

    def __init__(self, values: dict[str, Tensor], keep):
        self.sizes = [x.numel() for x in values.values()]
        self.names, self._keep = list(values), keep
        device, width = next(iter(values.values())).device, sum(self.sizes)
        num_rows = max(1, min(_LOG_ROWS, _LOG_SIZE // max(width, 1)))
        self._memory = torch.empty(num_rows, width, dtype=torch.float32, device=device)
        self._next = torch.zeros(1, dtype=torch.int64, device=device)
        self._size = self._num_expected = 0

    def add(self, values: dict[str, Tensor]) -> None:
        """Adds the values of one call."""
        run(self._make_room, when="before")
        row = torch.cat([x.reshape(-1).float() for x in values.values()])
        self._memory.index_copy_(0, self._next, row[None])
        self._next.add_(1)
        run(self._count, when="after")

    def _make_room(self):
        # An update that calls `add` several times makes all these calls before the first row
        self._num_expected += 1
        if self._size + self._num_expected > len(self._memory):
            self._move()
        if self._num_expected > len(self._memory):
            raise ValueError(
                f"an update stores {', '.join(self.names)} more than {len(self._memory)} times: "
                "store one tensor of all values"
            )

    def _count(self):
        self._size += 1
        self._num_expected -= 1

    def drain(self) -> None:
        """Moves the values to the CPU. Call it between updates."""
        self._move()
        self._num_expected = 0  # of an update that failed

    def _move(self):
        rows = self._memory[: self._size].cpu()
        for name, part in zip(self.names, rows.split(self.sizes, dim=1), strict=True):
            self._keep(name, part.reshape(-1).numpy())
        self._size = 0
        self._next.zero_()
