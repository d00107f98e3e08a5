"""The number of cores that this process may use."""

from __future__ import annotations

import os
from pathlib import Path


def usable_cores() -> int:
    """Returns the number of cores that affinity and the cgroup's quota let this process use."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, min(cores, _cgroup_cores(cores)))


def _cgroup_cores(default, root="/sys/fs/cgroup", membership="/proc/self/cgroup"):
    """Returns the number of cores by the smallest quota of this process's cgroups."""
    try:
        groups = [line.split(":", 2) for line in Path(membership).read_text().splitlines()]
    except OSError:
        return default
    granted = [default]
    for _, controllers, path in groups:
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = Path(root) / "cpu" if controllers else Path(root)
        own = base / path.strip("/")
        for group in [own, *own.parents]:
            granted.append(_quota(group, default))
            if group == base:
                break
    return min(granted)


def _quota(group, default):
    """Reads one cgroup's quota in whole cores: ``cpu.max`` in version 2, two files in version 1."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text()
            period = (group / "cpu.cfs_period_us").read_text()
        return max(1, int(quota) // int(period)) if int(quota) > 0 else default
    except (OSError, ValueError):  # no such file, or "max": no limit here
        return default
