"""An update replayed against the same update run as it is."""

import math
import threading
import warnings

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import nn

import spinup
from spinup.fast import capture, kernels
from spinup.fast.capture import replayed
from spinup.fast.nodes import gradients_in_place
from spinup.utils.buffers import ReplayBuffer
from spinup.utils.flat import Adam, flatten
from spinup.utils.nets import mlp
from tests.algos.envs import Clock


class Learner:
    """A network that learns to double its input, by an update that can be captured."""

    def __init__(self, make=lambda: mlp([3, 16, 1], nn.ReLU)):
        torch.manual_seed(0)
        self.net = make()
        self.params = flatten(self.net)
        self.optimizer = Adam(self.params, 1e-2)
        self.targ = self.params.detach().clone()
        rng = np.random.default_rng(0)
        self.buf = ReplayBuffer(Box(-1, 1, (3,)), Box(-1, 1, (2,)), 50, rng)
        for _ in range(50):
            obs = rng.normal(size=3)
            self.buf.store(obs, rng.normal(size=2), 2 * obs.sum(), obs, False)
        self.losses = []
        self.scale = 1.0

    def update(self, moves_target=True):
        batch = self.buf.sample_batch(20)
        noise = 0.1 * torch.randn_like(batch["obs"]).clamp(-1, 1)
        with torch.no_grad():
            weight = torch.where(batch["act"].amax(1) > 0, 1.0, 0.5) * self.scale
        error = self.net(batch["obs"] + noise).squeeze(1) - batch["rew"]
        loss = (weight * error.square()).mean()
        self.params.grad.zero_()
        loss.backward()
        self.optimizer.step()
        if moves_target:
            with torch.no_grad():
                self.targ.lerp_(self.params, 0.1)
        capture.run(self.note, capture.array(loss.detach()))

    def note(self, loss):
        self.losses.append(float(loss))

    def state(self):
        optimizer = self.optimizer
        return [self.params.detach(), self.targ, optimizer.exp_avg, optimizer.exp_avg_sq]


def both(update=lambda learner: learner.update, calls=30, flags=lambda i: (), **kwargs):
    """Returns two learners after the same updates, the second captured."""
    learners = Learner(**kwargs), Learner(**kwargs)
    with gradients_in_place():
        for learner, wrap in zip(learners, (lambda f: f, replayed)):
            torch.manual_seed(1)
            step = wrap(update(learner))
            for i in range(calls):
                step(*flags(i))
    return learners


def assert_same(plain, captured):
    assert plain.losses == captured.losses
    for ours, theirs in zip(plain.state(), captured.state()):
        assert torch.equal(ours, theirs)
    assert plain.losses[-1] < 0.2 * plain.losses[0]  # and it does learn


@pytest.fixture(params=[1, 2], ids=["compiled", "pytorch"], autouse=True)
def threads(request):
    """One thread has the compiled functions do the work, two PyTorch."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def count(monkeypatch):
    """Counts how often the update itself is run."""
    counts = {"update": 0}
    update = Learner.update

    def counted(self, *flags):
        counts["update"] += 1
        update(self, *flags)

    monkeypatch.setattr(Learner, "update", counted)
    return counts


def test_a_replay_computes_the_same(count):
    assert_same(*both(calls=200))
    assert count["update"] == 200 + 3


@pytest.mark.parametrize(
    "make",
    [
        lambda: mlp([3, 16, 1], nn.Tanh),
        lambda: mlp([3, 16, 1], nn.ELU),
        lambda: nn.Sequential(nn.Linear(3, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 1)),
        lambda: nn.Sequential(nn.Linear(3, 16), nn.Dropout(0.1), nn.SiLU(), nn.Linear(16, 1)),
    ],
    ids=["tanh", "elu", "layer-norm", "dropout"],
)
def test_networks_of_a_users_own(make, count):
    assert_same(*both(calls=300, make=make))
    assert count["update"] == 300 + 3


def test_each_flag_has_its_own(count):
    assert_same(*both(calls=201, flags=lambda i: (i % 3 == 0,)))
    assert count["update"] == 201 + 6


def test_a_number_that_changes_ends_it(monkeypatch):
    monkeypatch.setattr(capture, "_CHECK_EVERY", 10)

    def update(learner):
        def call():
            learner.scale = 1.0 if len(learner.losses) < 19 else 0.5
            learner.update()

        return call

    with pytest.warns(UserWarning, match="slower than captured"):
        assert_same(*both(update, calls=100))


@pytest.mark.parametrize(
    "look, reason",
    [
        (lambda learner: learner.params.sum().item(), "reads a tensor's value"),
        (lambda learner: bool(learner.params[0] > 0), "reads a tensor's value"),
        (lambda learner: learner.params.tolist(), "reads a tensor's value"),
        (lambda learner: learner.params.detach().numpy().sum(), "reads a tensor's value"),
        (lambda learner: np.asarray(learner.targ), "reads a tensor's value"),
        (lambda learner: learner.targ[learner.targ > 0].sum(), "depends on values"),
        (lambda learner: learner.targ.nonzero(), "depends on values"),
        (lambda learner: torch.masked_select(learner.targ, learner.targ > 0), "depends on values"),
        (lambda learner: learner.net(torch.tensor([[1.0, 2, 3]])), "other memory"),
        (lambda learner: learner.targ.add_(len(learner.losses) * 1e-9), "other numbers"),
        (lambda learner: [learner.targ.add_(0) for _ in learner.losses], "other"),
    ],
)
def test_what_can_not_be_captured_runs_as_it_is(look, reason):
    def update(learner):
        def call():
            look(learner)
            learner.update()

        return call

    with pytest.warns(UserWarning, match=reason):
        assert_same(*both(update, calls=60))


@pytest.mark.parametrize(
    "compute",
    [
        lambda targ: targ.add_((0.3 - targ.double()).sum() * 1e-9),
        lambda targ: targ.add_(2 - targ, alpha=1e-9),
        lambda targ: targ.add_(torch.stack([targ, -targ]).T.sum(1), alpha=1e-9),
        lambda targ: targ.mul_(nn.functional.layer_norm(targ, targ.shape).abs().mean() * 0 + 1),
        lambda targ: torch._foreach_mul_([targ], 0.999),
    ],
    ids=["number-double", "number-float", "strided", "layer-norm", "foreach"],
)
def test_more_operations(compute, count):
    def update(learner):
        def call():
            learner.update()
            with torch.no_grad():
                compute(learner.targ)

        return call

    assert_same(*both(update, calls=200))
    assert count["update"] == 200 + 3


def test_what_is_stored_may_be_strided(tmp_path):
    logger = spinup.EpochLogger(output_dir=tmp_path)
    values = torch.arange(12.0).reshape(6, 2)
    step = replayed(lambda: logger.store(Q=values.mul_(1).t()[1]))
    for i in range(6):
        values.copy_(torch.arange(12.0).reshape(6, 2) + i)
        step()
    assert logger.epoch_dict["Q"].values()[-6:].tolist() == [6, 8, 10, 12, 14, 16]
    logger.close()


def test_a_frozen_network_of_a_users_own_is_captured(count):
    frozen = nn.Sequential(nn.Linear(1, 4), nn.LayerNorm(4), nn.Linear(4, 1)).requires_grad_(False)

    def make():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 1), Scaled(frozen))

    assert_same(*both(calls=300, make=make))
    assert count["update"] == 300 + 3


class Scaled(nn.Module):
    """Adds a little of a frozen network's output."""

    def __init__(self, frozen):
        super().__init__()
        self.frozen = [frozen]  # not among its parameters

    def forward(self, x):
        return x + 1e-3 * self.frozen[0](x)


def test_distributions_that_check_their_arguments_are_captured():
    mean, result, calls = torch.ones(3), torch.zeros(()), []

    def update():
        calls.append(1)
        pi = torch.distributions.Normal(mean, torch.ones(3))
        result.add_(pi.log_prob(torch.zeros(3)).sum())

    step = replayed(update)
    for _ in range(5):
        step()
    assert result.item() == pytest.approx(5 * 3 * -1.4189385)
    assert len(calls) == 3
    assert torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(True)
    with pytest.raises(ValueError, match="invalid values"):
        torch.distributions.Normal(mean, -torch.ones(3))


def test_functions_called_as_a_whole_may_call_others():
    calls = []

    def inner():
        calls.append("inner")

    def outer():
        calls.append("outer")
        capture.run(inner)

    step = replayed(lambda: capture.run(outer))
    for _ in range(5):
        step()
    assert calls == ["outer", "inner"] * 5


def test_another_threads_updates_are_its_own():
    learner, other = Learner(), Learner()

    def update():
        learner.update()
        thread = threading.Thread(target=other.update)
        thread.start()
        thread.join()

    step = replayed(update)
    for _ in range(5):
        step()
    assert len(learner.losses) == 5
    assert len(other.losses) == 3  # replays don't start it


def test_a_comparison_that_an_error_cut_short_is_made_up():
    learner, fails = Learner(), [False, False, True, False, False]

    def update():
        learner.update()
        if fails[len(learner.losses) - 1]:
            raise KeyError("by test")

    step = replayed(update)
    for failing in fails:
        if failing:
            learner.scale = 2.0  # which the comparison would have seen
            with pytest.raises(KeyError):
                step()
        elif learner.scale == 2.0 and len(learner.losses) == 3:
            with pytest.warns(UserWarning, match="other numbers"):
                step()
        else:
            step()


def test_an_error_passes_and_ends_the_capture():
    learner = Learner()

    def update():
        learner.update()
        if len(learner.losses) == 2:
            raise FloatingPointError("by test")

    step = replayed(update)
    step()
    with pytest.raises(FloatingPointError, match="by test"):
        step()
    assert capture._tape() is None
    for _ in range(5):
        step()
    assert len(learner.losses) == 7


OFF_POLICY = dict(start_steps=50, update_after=50, update_every=25, num_test_episodes=1)


@pytest.mark.parametrize(
    "algorithm, actions, kwargs",
    [
        ("ppo", Box(-1, 1, (2,)), dict(target_kl=math.inf)),
        ("ppo", Discrete(3), dict(pi_lr=0.01)),
        ("sac", Box(-1, 1, (2,)), OFF_POLICY),
        ("sac", Box(-1, 1, (2,)), OFF_POLICY | dict(alpha="auto")),
        ("td3", Box(-1, 1, (2,)), OFF_POLICY),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_algorithms_train_to_the_same_bits(
    algorithm, actions, kwargs, tmp_path, monkeypatch, threads
):
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    rows = []
    for name in ("captured", "plain"):
        if name == "plain":
            monkeypatch.setattr(f"spinup.algos.{algorithm}.capture", lambda update, device: update)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # none says that it wasn't captured
            ac = getattr(spinup, algorithm)(
                lambda: Clock(action_space=actions),
                **dict(steps_per_epoch=100, epochs=3, ac_kwargs=dict(hidden_sizes=(16, 16))),
                **kwargs,
                logger_kwargs=dict(output_dir=tmp_path / name),
            )
        lines = (tmp_path / name / "progress.txt").read_text().splitlines()
        time = lines[0].split("\t").index("Time")
        rows.append([line.split("\t")[:time] for line in lines])
        rows[-1].append([p.tolist() for p in ac.parameters()])
    assert rows[0] == rows[1]
    assert len(rows[0]) == 5


def test_replays_use_the_compiled_functions(threads, monkeypatch):
    if threads == 2 or kernels._kernels is None:
        pytest.skip("PyTorch does the work")
    learner = Learner()
    step = replayed(learner.update)
    with gradients_in_place():
        for _ in range(4):
            step()
    monkeypatch.setattr(torch.nn.Module, "__call__", None)  # no network is called any more
    step()
    assert len(learner.losses) == 5
