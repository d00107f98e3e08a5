"""Tests a run on two hosts, which are network namespaces with one address each."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import time

import pytest

from tests.algos.runs import timeless_progress
from tests.conftest import _clean_environment

TRAIN = """
import sys
import gymnasium as gym
from spinup import ppo
ppo("CartPole-v1", seed=1, steps_per_epoch=300, epochs=3, ac_kwargs=dict(hidden_sizes=(64, 64)),
    logger_kwargs=dict(output_dir=sys.argv[1]))
"""

# mpiexec calls this script instead of ssh, with the arguments: [options] host command ...
REMOTE_SHELL = """#!/bin/bash
while [[ $1 == -* ]]; do shift; done
host=$1; shift
exec ip netns exec {prefix}${{host##*.}} bash -c "$*"
"""


def ip(*words):
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def hosts():
    """Connects two hosts, 10.77.0.1 and 10.77.0.2, and yields the prefix of their names."""
    if shutil.which("ip") is None or os.getuid() != 0:
        pytest.skip("network namespaces need root and ip (iproute2)")
    prefix = f"spinup{os.getpid()}-"
    names = [f"{prefix}{i}" for i in (1, 2)]
    try:
        try:
            for name in names:
                ip("netns", "add", name)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces can't be made here: {error.stderr.strip()}")
        ends = ["link", "add", "eth", "netns", names[0], "type", "veth"]
        ip(*ends, "peer", "name", "eth", "netns", names[1])
        for i, name in enumerate(names, 1):
            ip("-n", name, "addr", "add", f"10.77.0.{i}/24", "dev", "eth")
            for link in ("lo", "eth"):
                ip("-n", name, "link", "set", link, "up")
        deadline = time.monotonic() + 20
        while not all(is_up(name) for name in names) and time.monotonic() < deadline:
            time.sleep(0.1)
        yield prefix
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def is_up(name):
    """Returns True if a host's network device is ready."""
    return ip("netns", "exec", name, "cat", "/sys/class/net/eth/operstate").strip() == "up"


def received(name):
    """Returns the number of bytes that a host has received from the other."""
    path = "/sys/class/net/eth/statistics/rx_bytes"
    return int(ip("netns", "exec", name, "cat", path))


@pytest.mark.mpi
def test_two_ranks_on_two_hosts_train_as_on_one(hosts, tmp_path):
    script, shell = tmp_path / "train.py", tmp_path / "remote_shell"
    script.write_text(TRAIN)
    shell.write_text(REMOTE_SHELL.format(prefix=hosts))
    shell.chmod(0o755)
    mpiexec = shutil.which("mpiexec", path=sysconfig.get_path("scripts"))
    options = ["-launcher", "ssh", "-launcher-exec", str(shell), "-hosts", "10.77.0.1,10.77.0.2"]
    env = _clean_environment({**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"})

    def train(folder, *command, **more):
        words = [*command, sys.executable, "-m", "mpi4py", str(script), str(tmp_path / folder)]
        subprocess.run(words, check=True, env=env | more, timeout=120, stdout=subprocess.DEVNULL)

    inside = ["ip", "netns", "exec", f"{hosts}1"]
    # No shared memory, and not the loopback device, which doesn't reach the other host
    over_network = {"UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "eth", "FI_PROVIDER": "tcp"}
    train("apart", *inside, mpiexec, *options, "-ppn", "1", "-n", "2", **over_network)
    # The gradients went over the network: about 10,000 numbers in each of at most 480 iterations
    assert all(received(f"{hosts}{i}") > 3e6 for i in (1, 2))
    train("together", *[mpiexec, "-launcher", "fork", "-n", "2"])
    assert timeless_progress(tmp_path / "apart") == timeless_progress(tmp_path / "together")
