import pytest
import torch

from spinup.utils import devices
from spinup.utils.devices import choose_device, current_device_kept, find_device


@pytest.fixture
def gpus(monkeypatch):
    """A function that pretends that PyTorch has `count` GPUs, and that this is rank `rank`.

    Its attribute `current` lists the devices that were made the current one.
    """
    current = []

    def pretend(count, rank=0):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", current.append)
        monkeypatch.setattr(devices, "proc_id", lambda: rank)
        for name in devices._LOCAL_RANK:
            monkeypatch.delenv(name, raising=False)

    pretend.current = current
    return pretend


@pytest.mark.parametrize(
    "device, count, chosen",
    [
        ("cpu", 0, "cpu"),
        ("cpu", 2, "cpu"),
        (torch.device("cpu"), 2, "cpu"),
        ("auto", 0, "cpu"),
        ("auto", 1, "cuda:0"),
        ("cuda", 1, "cuda:0"),
        ("cuda:1", 2, "cuda:1"),
        (torch.device("cuda", 1), 2, "cuda:1"),
    ],
)
def test_devices_there_are(device, count, chosen, gpus):
    gpus(count)
    assert choose_device(device) == torch.device(chosen)


@pytest.mark.parametrize(
    "device, count, message",
    [
        ("cuda", 0, "device 'cuda': this PyTorch .* sees no CUDA GPU; use device cpu"),
        ("cuda:1", 0, "device 'cuda:1': .* sees no CUDA GPU"),
        ("cuda:2", 2, "device 'cuda:2': there are 2 GPUs, numbered from 0"),
        ("gpu", 1, "device 'gpu' is unknown: use cpu, cuda, cuda:N or auto"),
        ("", 1, "device '' is unknown"),
        ("meta", 1, "device 'meta' is unknown"),
        ("cuda:x", 1, "device 'cuda:x' is unknown"),
        (None, 1, "device 'None' is unknown"),
        (1.5, 1, "device '1.5' is unknown"),
    ],
)
def test_devices_there_are_not(device, count, message, gpus):
    gpus(count)
    with pytest.raises(ValueError, match=message):
        choose_device(device)


def test_ranks_of_a_host_are_spread_over_its_gpus(gpus, monkeypatch):
    def chosen(rank):
        gpus(2, rank)
        return choose_device("cuda").index

    assert [chosen(rank) for rank in range(4)] == [0, 1, 0, 1]
    gpus(2, rank=5)
    # Rank 5 of the world is rank 0 on its host.
    monkeypatch.setenv("MPI_LOCALRANKID", "0")
    assert choose_device("cuda").index == 0
    assert choose_device("cuda:1").index == 1


def test_the_chosen_gpu_is_the_current_one_and_a_search_changes_nothing(gpus):
    gpus(2)
    assert find_device("cuda:1") == torch.device("cuda:1")
    assert find_device("cpu") == choose_device("cpu") == torch.device("cpu")
    assert gpus.current == []
    choose_device("cuda:1")
    assert gpus.current == [torch.device("cuda:1")]


def test_after_a_run_the_callers_gpu_is_the_current_one(gpus, monkeypatch):
    gpus(2)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    with pytest.raises(KeyError), current_device_kept():
        choose_device("cuda:1")
        raise KeyError
    assert gpus.current == [torch.device("cuda:1"), 0]


def test_a_run_on_the_cpu_leaves_the_gpus_alone(gpus):
    gpus(2)
    with current_device_kept():
        choose_device("cpu")
    assert gpus.current == []


@pytest.mark.cuda
def test_the_chosen_device_computes():
    assert torch.ones(2, device=choose_device("auto")).sum().item() == 2
