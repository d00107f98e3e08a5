"""Tests of captures as graphs, with graphs of the CPU in place of CUDA's.

They test the parts, their order and the fallback; tests with the mark `cuda` need a GPU.
"""

import functools
import warnings

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from spinup.algos import ALGORITHMS
from spinup.fast import capture as capture_module
from spinup.fast import graphs
from spinup.fast.capture import Captured, capture, run
from spinup.fast.graphs import GraphCapture
from spinup.utils.buffers import ReplayBuffer
from spinup.utils.flat import flatten
from spinup.utils.nets import mlp
from spinup.utils.optim import Adam
from tests.resumable import differences, final_state, train


def detached(values):
    return tree_map(lambda x: x.detach() if isinstance(x, torch.Tensor) else x, values)


class Recorder(TorchDispatchMode):
    """Records operations, and can undo what they changed: a graph's capture executes nothing."""

    def __init__(self):
        super().__init__()
        self.calls, self.before, self.made = [], {}, []
        self.generator = torch.get_rng_state()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        inputs = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        made = {x.untyped_storage().data_ptr() for x in self.made}
        for x in inputs if func._schema.is_mutable else ():
            place = x.untyped_storage().data_ptr()
            if place not in made and place not in self.before:
                storage = torch.empty(0, dtype=torch.uint8).set_(x.untyped_storage())
                self.before[place] = storage, storage.clone()
        out = func(*args, **kwargs)
        outs = [x for x in tree_flatten(out)[0] if isinstance(x, torch.Tensor)]
        known = {x.untyped_storage().data_ptr() for x in inputs}
        new = [x for x in outs if x.untyped_storage().data_ptr() not in known]
        self.made += new
        if new or func._schema.is_mutable:
            self.calls.append((func, detached(args), detached(kwargs), detached(outs), bool(new)))
        return out

    def undo(self):
        for storage, before in self.before.values():
            storage.copy_(before)
        torch.set_rng_state(self.generator)

    def replay(self):
        for func, args, kwargs, outs, is_new in self.calls:
            again = func(*args, **kwargs)
            if is_new:
                results = [x for x in tree_flatten(again)[0] if isinstance(x, torch.Tensor)]
                for x, result in zip(outs, results, strict=True):
                    x.copy_(result)


class CpuGraphs:
    """A backend whose graphs are recordings of operations on the CPU."""

    def __init__(self, device):
        self.recorder = None
        self.count = 0

    aside = staticmethod(graphs.contextlib.nullcontext)

    def begin(self):
        self.recorder = Recorder()
        self.recorder.__enter__()

    def end(self):
        recorder, self.recorder = self.recorder, None
        recorder.__exit__(None, None, None)
        recorder.undo()
        self.count += 1
        return recorder.replay

    def abandon(self):
        if self.recorder is not None:
            self.end()


def graphed(update, backend=CpuGraphs):
    make = functools.partial(GraphCapture, device=torch.device("cpu"), backend=backend)
    return Captured(update, True, make)


class Learner:
    """A network, its targets, an optimizer and a log, and an update of them."""

    def __init__(self, way):
        torch.manual_seed(0)
        net = mlp([3, 8, 2], torch.nn.Tanh)
        self.params = flatten(net)
        targets = flatten(mlp([3, 8, 2], torch.nn.Tanh))
        adam, batch, log = Adam(self.params, 1e-2), torch.zeros(5, 3), []
        draws = torch.Generator().manual_seed(1)
        self.targets, self.log, self.settings = targets, log, {"scale": 1.0}
        settings = self.settings

        def draw():
            batch.copy_(torch.randn(5, 3, generator=draws))

        def keep(loss):
            log.append(loss.clone())

        def update(is_delayed):
            run(draw)
            x = batch + 0.1 * torch.randn_like(batch)
            loss = settings["scale"] * net(x).square().mean()
            self.params.grad.zero_()
            loss.backward()
            adam.step()
            if is_delayed:
                with torch.no_grad():
                    targets.lerp_(self.params, 0.1)
            run(keep, loss.detach())

        self.update = way(update)


@pytest.fixture
def both(monkeypatch):
    """Makes a learner that runs as written, and an equal one that is captured as graphs."""
    monkeypatch.setattr("spinup.fast.kernels._kernels", None)  # as on a GPU

    def pair(backend=CpuGraphs):
        written = Learner(lambda update: update)
        return written, Learner(functools.partial(graphed, backend=backend))

    return pair


def steps(learner, numbers):
    torch.manual_seed(7)
    for i in numbers:
        learner.update(i % 3 == 0)


def assert_equal(written, captured):
    assert torch.equal(written.params, captured.params)
    assert torch.equal(written.targets, captured.targets)
    assert torch.equal(torch.stack(written.log), torch.stack(captured.log))


def test_replays_compute_what_is_written(both):
    written, captured = both()
    for learner in (written, captured):
        steps(learner, range(250))
    assert_equal(written, captured)
    assert captured.update.num_replays > 150
    assert captured.update.is_captured


def test_an_update_is_divided_at_its_calls(both):
    _, captured = both()
    steps(captured, range(120))
    for known in captured.update._captures.values():
        kinds = [type(part).__name__ for part in known.graphs.parts]
        # draw, step and keep, with a graph before, between and after them
        assert kinds[::2].count("method") == len(kinds[::2])
        assert kinds[1::2].count("partial") == len(kinds[1::2]) >= 3


def test_a_changed_value_is_captured_anew(both):
    written, captured = both()
    for learner in (written, captured):
        steps(learner, range(100))
        learner.settings["scale"] = 3.0
        steps(learner, range(100, 200))
    assert_equal(written, captured)
    assert captured.update.is_captured


class FailsAtOnce(CpuGraphs):
    def begin(self):
        raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors")


class FailsLater(CpuGraphs):
    def end(self):
        replay = super().end()
        if self.count == 2:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        return replay


@pytest.mark.parametrize("backend", [FailsAtOnce, FailsLater])
def test_what_cannot_be_captured_runs_as_written_with_a_warning(both, backend):
    written, captured = both(backend)
    steps(written, range(150))
    message = r"update runs as written.* CUDA graph \(operation not permitted when stream is captur"
    with pytest.warns(UserWarning, match=message) as caught:
        steps(captured, range(150))
    assert len(caught) == 1
    assert not captured.update.is_captured
    assert_equal(written, captured)


@pytest.mark.parametrize("fails_in", ["begin", "end"])
def test_after_a_failed_capture_the_current_stream_is_the_former_one(fails_in, monkeypatch):
    """PyTorch's context doesn't leave its stream if the capture can't begin or end."""
    current, ended = ["main"], []

    class Graph:
        def __init__(self, graph, pool=None, stream=None):
            self.stream, self.fails = stream, pool is not None  # not the empty graph

        def __enter__(self):
            current.append(self.stream)
            if self.fails and fails_in == "begin":
                raise RuntimeError("capture_begin failed")

        def __exit__(self, *error):
            if self.fails:
                raise RuntimeError("capture_end failed")
            current.pop()
            ended.append("an empty graph")

    class CUDAGraph:
        def replay(self):
            pass

    for name, value in dict(
        graph=Graph,
        CUDAGraph=CUDAGraph,
        Stream=lambda device: "side",
        graph_pool_handle=lambda: 1,
        current_stream=lambda device: current[-1],
        set_stream=current.append,
    ).items():
        monkeypatch.setattr(torch.cuda, name, value)
    graphs._side_stream.cache_clear()
    tape = graphs.GraphTape(graphs.CudaBackend(torch.device("cuda:0")))
    graphs._side_stream.cache_clear()
    with pytest.raises(RuntimeError, match=f"capture_{fails_in} failed"):
        tape.capture(lambda: None)
    assert ended == ["an empty graph"]  # which ends the capture mode of the random generator
    assert current[-1] == "main"
    assert capture_module._tape() is None


def test_an_update_that_reads_a_value_runs_as_written():
    x = torch.ones(3)

    def grow():
        if x.sum().item() < 100:
            x.mul_(1.01)

    update = graphed(grow)
    with pytest.warns(UserWarning, match=r"runs as written.*reads a tensor's value"):
        for _ in range(5):
            update()


def test_an_operation_on_another_device_is_an_obstacle():
    tape = capture_module.Tape(builds=False, device_type="cuda")
    with tape:
        torch.ones(3) + 1
    assert "uses a tensor on the cpu" in tape.obstacle


@pytest.fixture(params=["in between", "on the device"])
def data(request, monkeypatch):
    """Where minibatches, Adam's steps and the log are: between graphs, or on the "GPU"."""
    monkeypatch.setattr("spinup.fast.kernels._kernels", None)
    if request.param == "on the device":
        monkeypatch.setattr(graphs, "are_used_on", lambda device: True)
        monkeypatch.setattr("spinup.utils.optim._is_on_gpu", lambda params: True)
        monkeypatch.setattr("spinup.fast.kernels._tanh_", torch.Tensor.tanh_)
    return request.param


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_trains_to_the_same_bits(algorithm, data, tmp_path, monkeypatch):
    """As written, and with all updates captured as graphs."""
    made, parts = [], set()
    replay = GraphCapture.replay

    def by_graphs(update, device):
        made.append(graphed(update))
        return made[-1]

    def replay_and_count(self, owner):
        replay(self, owner)
        parts.add(len(self.graphs.parts))

    with monkeypatch.context() as patch:
        patch.setattr(f"spinup.algos.{algorithm}.capture", lambda f, device: Captured(f, False))
        train(algorithm, tmp_path / "written")
    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")
        patch.setattr(f"spinup.algos.{algorithm}.capture", by_graphs)
        patch.setattr(GraphCapture, "replay", replay_and_count)
        train(algorithm, tmp_path / "graphs")
    assert differences(final_state(tmp_path / "written"), final_state(tmp_path / "graphs")) == []
    assert sum(update.num_replays for update in made) > 20
    if data == "on the device":
        assert parts == {1}  # each update is one graph


@pytest.mark.parametrize(("value", "expected"), [(None, False), ("1", True), ("0", False)])
def test_graphs_are_used_if_they_are_asked_for(value, expected, monkeypatch):
    monkeypatch.delenv("SPINUP_CUDA_GRAPHS", raising=False)
    if value is not None:
        monkeypatch.setenv("SPINUP_CUDA_GRAPHS", value)
    update = capture(lambda: None, "cuda")
    assert update.is_captured is expected


def test_a_minibatch_on_another_device_stays_in_place():
    """The copy on the device is one tensor, which each draw overwrites."""
    import gymnasium as gym
    import numpy as np

    box = gym.spaces.Box(-1, 1, (2,))
    buf = ReplayBuffer(box, box, 10, np.random.default_rng(0))
    for i in range(10):
        buf.store(np.full(2, i), np.zeros(2), float(i), np.zeros(2), False)
    batch = buf.sample_batch(4)
    places = [x.data_ptr() for x in batch.values()]
    first = batch["rew"].clone()
    again = buf.sample_batch(4)
    assert [x.data_ptr() for x in again.values()] == places
    assert not torch.equal(again["rew"], first)
    assert len(buf.sample_batch(5)["rew"]) == 5
    assert buf.sample_batch(4, "meta")["rew"].device.type == "meta"


@pytest.mark.cuda
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_cuda_graphs_compute_what_is_written(algorithm, tmp_path, monkeypatch):
    monkeypatch.setenv("SPINUP_CUDA_GRAPHS", "1")
    finals, made = [], []

    def by_way(update, device):
        # As written, it is on the same minibatches, which are drawn on the GPU
        made.append(Captured(update, False) if name == "written" else capture(update, device))
        return made[-1]

    monkeypatch.setattr(f"spinup.algos.{algorithm}.capture", by_way)
    for name in ("graphs", "written"):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", ".* runs as written")
            ac = train(algorithm, tmp_path / name, device="cuda")
        finals.append(torch.cat([p.detach().flatten().cpu() for p in ac.parameters()]))
    assert sum(update.num_replays for update in made) > 20
    torch.testing.assert_close(finals[0], finals[1], rtol=1e-3, atol=1e-4)
