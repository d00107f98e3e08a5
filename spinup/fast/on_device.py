"""Data of updates that stays on the GPU, so that an update is one CUDA graph.

Minibatches are drawn on the GPU, from a copy of the replay buffer, and values for the log are
gathered there. On the CPU, both would divide the update into several graphs (see
`spinup.fast.graphs`), with a wait in between.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from spinup.fast.capture import run

_LOG_ROWS = 1024  # calls of `store` between two copies of the log from the GPU


class DeviceRows:
    """A copy on a device of a ring buffer's rows, from which minibatches are drawn.

    Args:
        rows: the buffer's rows ``(max_size, width)``, on the CPU.
        device: the device.
    """

    def __init__(self, rows: np.ndarray, device: torch.device):
        self._source = torch.from_numpy(rows)
        self.rows = torch.empty(rows.shape, device=device)
        self.size = torch.zeros((), dtype=torch.int64, device=device)
        self.num_copied = 0

    @staticmethod
    def make(rows: np.ndarray, device: torch.device) -> DeviceRows | None:
        """Returns a copy, or None with a warning if the device has no memory for it."""
        try:
            return DeviceRows(rows, device)
        except torch.OutOfMemoryError:
            warnings.warn(
                f"The replay buffer ({rows.nbytes:,} bytes) doesn't fit into the memory of "
                f"{device}. Minibatches are drawn on the CPU, which is slower; a lower replay_size "
                "fits",
                stacklevel=2,
            )
            return None

    def update(self, num_stored: int, ptr: int) -> None:
        """Copies the rows that are new.

        Args:
            num_stored: number of rows stored since the start.
            ptr: position of the next row.
        """
        num_new = min(num_stored - self.num_copied, len(self.rows))
        if num_new == 0:
            return
        start = ptr - num_new
        if start < 0:  # the end of the ring
            self.rows[start:].copy_(self._source[start:])
        self.rows[max(start, 0) : ptr].copy_(self._source[max(start, 0) : ptr])
        self.num_copied = num_stored
        self.size.fill_(min(num_stored, len(self.rows)))

    def draw(self, out: Tensor) -> None:
        """Fills `out` with rows that are drawn uniformly, with replacement."""
        # The size is not a number, which a graph would repeat. The bias of % is below 1e-12.
        idx = torch.randint(2**62, (len(out),), device=out.device) % self.size
        torch.index_select(self.rows, 0, idx, out=out)


class DeviceLog:
    """Values for the log, gathered on a device.

    Args:
        values: the values of the first call of `add`, each a tensor on the device.
        keep: function that keeps the values of one name, ``keep(name, array)``.
    """

    def __init__(self, values: dict[str, Tensor], keep):
        self.sizes = [x.numel() for x in values.values()]
        self.names, self._keep = list(values), keep
        device = next(iter(values.values())).device
        self._memory = torch.empty(_LOG_ROWS, sum(self.sizes), device=device)
        self._next = torch.zeros(1, dtype=torch.int64, device=device)
        self._size = 0

    def add(self, values: dict[str, Tensor]) -> None:
        """Adds the values of one call."""
        row = torch.cat([x.reshape(-1).float() for x in values.values()])
        self._memory.index_copy_(0, self._next, row[None])
        self._next.add_(1)
        run(self._count, when="after")

    def _count(self):
        self._size += 1
        if self._size == _LOG_ROWS:
            self.drain()

    def drain(self) -> None:
        """Moves the values to the CPU."""
        rows = self._memory[: self._size].cpu()
        for name, part in zip(self.names, rows.split(self.sizes, dim=1), strict=True):
            self._keep(name, part.reshape(-1).numpy())
        self.clear()

    def clear(self) -> None:
        """Removes all values."""
        self._size = 0
        self._next.zero_()
