import os

import pytest

from spinup.launch import cores
from spinup.launch.cores import usable_cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_affinity_limits_the_usable_cores():
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_a_quota_limits_the_usable_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(cores, "_cgroup_cores", lambda default: min(default, 3))
    assert usable_cores() == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 5})
    assert usable_cores() == 2


@pytest.mark.parametrize(
    "membership, files, granted",
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 16),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "350000 100000\n"}, 3),
        ("0::/a/b\n", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, 2),
        ("0::/a/b\n", {"a/cpu.max": "600000 100000", "a/b/cpu.max": "400000 100000"}, 4),
        ("0::/a\n", {"b/cpu.max": "200000 100000"}, 16),  # the quota of another group
        ("0::/a\n", {"cpu.max": "nonsense"}, 16),
        ("0::/\n", {}, 16),
        ("", {"cpu.max": "200000 100000"}, 16),
        (
            "9:memory:/m\n4:cpu,cpuacct:/docker/x\n1:name=systemd:/\n",
            {"cpu/docker/x/cpu.cfs_quota_us": "300000", "cpu/docker/x/cpu.cfs_period_us": "100000"},
            3,
        ),
        # A container sees its own group as the root, although the file contains the path outside.
        (
            "4:cpu,cpuacct:/docker/x\n",
            {"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "50000\n"},
            5,
        ),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 16),
        ("4:cpuset:/\n", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 16),
    ],
)
def test_the_tightest_quota_of_the_cgroups_counts(membership, files, granted, tmp_path):
    (tmp_path / "membership").write_text(membership)
    for name, text in files.items():
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert cores._cgroup_cores(16, tmp_path / "root", tmp_path / "membership") == granted


def test_a_system_without_cgroups_has_no_quota(tmp_path):
    assert cores._cgroup_cores(16, tmp_path, tmp_path / "none") == 16
