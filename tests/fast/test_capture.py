"""Captured updates, compared with the same updates run as written."""

import gc
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
from spinup.fast.capture import Captured
from spinup.fast.nodes import gradients_in_place
from spinup.utils.buffers import ReplayBuffer
from spinup.utils.flat import flatten
from spinup.utils.nets import mlp
from spinup.utils.optim import Adam
from tests.algos.envs import Clock
from tests.fast.operations import DRAWS, all_operations
from tests.fast.test_guards import compare


class Learner:
    """A network that learns twice the sum of its inputs, by an update that can be captured."""

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
    """Returns two learners after the same updates, which are captured for the second one."""
    learners = Learner(**kwargs), Learner(**kwargs)
    with gradients_in_place():
        for learner, wrap in zip(learners, (lambda f: Captured(f, False), Captured)):
            torch.manual_seed(1)
            learner.step = wrap(update(learner))
            for i in range(calls):
                learner.step(*flags(i))
    return learners


def assert_same(plain, captured):
    assert plain.losses == captured.losses
    for ours, theirs in zip(plain.state(), captured.state()):
        assert torch.equal(ours, theirs)
    assert plain.losses[-1] < 0.2 * plain.losses[0]  # it learns


@pytest.fixture(params=[1, 2], ids=["compiled", "pytorch"], autouse=True)
def threads(request):
    """With one thread, the compiled functions are used; with two, PyTorch."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def replays(calls):
    """Returns the number of replays among a number of calls; the other calls are compared."""
    return calls - 25 - calls // 97


def test_a_replay_computes_the_same():
    plain, captured = both(calls=500)
    assert_same(plain, captured)
    assert captured.step.num_replays == replays(500) == 470


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
def test_networks_of_a_users_own(make):
    plain, captured = both(calls=300, make=make)
    assert_same(plain, captured)
    assert captured.step.num_replays == replays(300)


def test_a_minibatch_of_another_size_is_recorded_again(recwarn):
    box = Box(-1, 1, (3,), np.float32)
    buf = ReplayBuffer(box, box, 100, np.random.default_rng(0))
    for i in range(100):
        buf.store(np.ones(3), np.ones(3), float(i), np.ones(3), False)
    total, size = torch.zeros(()), 16

    def update():
        total.add_(buf.sample_batch(size)["rew"].mean())

    step = Captured(update)
    for i in range(300):
        size = 16 if i < 100 else 32
        step()
    assert step.is_captured and step.num_replays > 200 and not recwarn.list


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD([p], lr=0.1, momentum=0.9),
        lambda p: torch.optim.Adam([p]),
        lambda p: torch.optim.AdamW([p], fused=True),
    ],
)
def test_pytorchs_optimizers_are_named_as_the_reason(make):
    p = nn.Parameter(torch.ones(5))
    p.grad = torch.zeros(5)
    optimizer = make(p)

    def update():
        p.grad.zero_()
        (p * p).sum().backward()
        optimizer.step()

    step = Captured(update)
    with pytest.warns(UserWarning, match=r"as the optimizers of torch\.optim do"):
        for _ in range(3):
            step()
    assert not step.is_captured and (p < 1).all()


@pytest.mark.parametrize(
    "constant",
    [
        lambda x: torch.where(x > 0, x, float("nan")),
        lambda x: x.masked_fill(x > 0, float("nan")),
        lambda x: x * torch.tensor([1.0, float("nan")]).nanmean(),
    ],
)
def test_constants_that_are_nan_are_captured(constant, recwarn):
    x, out = torch.randn(10), torch.zeros(())
    step = Captured(lambda: store(out, constant(x).nanmean()))
    for _ in range(60):
        x.normal_()
        step()
        assert out.item() == constant(x).nanmean().item()
    assert step.num_replays == replays(60) and not recwarn.list


def store(out, value):
    out.copy_(value)


def test_each_flag_has_its_own():
    plain, captured = both(calls=201, flags=lambda i: (i % 3 == 0,))
    assert_same(plain, captured)
    assert captured.step.num_replays == replays(67) + replays(134)


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
        (lambda learner: learner.targ.add_(len(learner.losses) * 1e-9), "it changes .*losses"),
        (lambda learner: [learner.targ.add_(0) for _ in learner.losses], "it changes .*losses"),
        (lambda learner: np.from_dlpack(learner.targ).sum(), "from_dlpack|reads a tensor's value"),
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
def test_more_operations(compute):
    def update(learner):
        def call():
            learner.update()
            with torch.no_grad():
                compute(learner.targ)

        return call

    plain, captured = both(update, calls=200)
    assert_same(plain, captured)
    assert captured.step.num_replays == replays(200)


def test_what_is_stored_may_be_strided(tmp_path):
    logger = spinup.EpochLogger(output_dir=tmp_path)
    values = torch.arange(12.0).reshape(6, 2)
    step = Captured(lambda: logger.store(Q=values.mul_(1).t()[1]))
    for i in range(6):
        values.copy_(torch.arange(12.0).reshape(6, 2) + i)
        step()
    assert logger.epoch_dict["Q"].values()[-6:].tolist() == [6, 8, 10, 12, 14, 16]
    logger.close()


def test_a_frozen_network_of_a_users_own_is_captured():
    frozen = nn.Sequential(nn.Linear(1, 4), nn.LayerNorm(4), nn.Linear(4, 1)).requires_grad_(False)

    def make():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 1), Scaled(frozen))

    plain, captured = both(calls=300, make=make)
    assert_same(plain, captured)
    assert captured.step.num_replays == replays(300)


def test_a_network_that_gets_attributes_by_name_is_captured():
    plain, captured = both(calls=300, make=ByName)
    assert_same(plain, captured)
    assert captured.step.num_replays == replays(300)


class ByName(nn.Module):
    """Calls its layers by their names, so that guards look at all attributes of what they meet."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out, self.scale = nn.Linear(3, 16), nn.Linear(16, 1), 1.0

    def forward(self, x):
        for name in ("hidden", "out"):
            x = getattr(self, name)(x.relu() if name == "out" else x)
        return x * vars(self)["scale"]


class Scaled(nn.Module):
    """Adds a little of a frozen network's output."""

    def __init__(self, frozen):
        super().__init__()
        self.frozen = [frozen]  # not among its parameters

    def forward(self, x):
        return x + 1e-3 * self.frozen[0](x)


ONE_THREAD = pytest.mark.parametrize("threads", [1], indirect=True)
# These operations read values, or have results whose shape depends on values
NOT_CAPTURED = {"gaussian_nll-mean", "gaussian_nll-sum", "gaussian_nll-none", "x.prod", "one-hot"}
NOT_CAPTURED |= {"sparse", "histogram", "unique"}


def computation(compute):
    """Returns an argument for `compare`: an update that computes a function and its gradient."""

    def make():
        x, y = torch.randn(6, 4), torch.rand(6, 4)
        leaf = torch.zeros(6, 4, requires_grad=True)
        leaf.grad, result = torch.zeros(6, 4), torch.zeros((), dtype=torch.float64)
        generator = torch.Generator().manual_seed(3)

        def update():
            leaf.grad.zero_()
            out = compute(x + leaf, y, generator)
            out = out[0] if isinstance(out, tuple) else out
            if out.requires_grad:
                out.sum().backward()
            result.copy_(out.detach().double().sum())

        def before(i):
            x.mul_(-1.01)
            y.add_(0.01)
            return [result, leaf.grad, generator.get_state(), torch.get_rng_state()]

        return update, before

    return make


@ONE_THREAD
@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")  # of kl_div, at each call
@pytest.mark.parametrize("name", all_operations())
def test_operations(name, monkeypatch):
    monkeypatch.setattr(capture, "_FIRST_CHECKS", 3)
    compute = all_operations()[name]
    step, messages = compare(computation(lambda x, y, g: compute(x, y)), calls=12)
    messages = [m for m in messages if "mean" not in m]
    assert step.num_replays == (0 if name in NOT_CAPTURED else 9)
    assert len(messages) == (name in NOT_CAPTURED), messages


@ONE_THREAD
@pytest.mark.parametrize("has_generator", [False, True])
@pytest.mark.parametrize("name", DRAWS)
def test_random_numbers_come_from_the_generator_that_they_should(name, has_generator, monkeypatch):
    monkeypatch.setattr(capture, "_FIRST_CHECKS", 3)
    draw = DRAWS[name]
    update = computation(lambda x, y, g: draw(y, g if has_generator else None) * x.sum())
    step, messages = compare(update, calls=12)
    assert messages == [] and step.num_replays == 9


NETWORKS = {
    "batch-norm": lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 1)),
    "convolution": lambda: nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 2, 2), nn.Flatten()),
    "gru": lambda: nn.GRU(4, 3),
    "lstm": lambda: nn.LSTM(4, 3),
    "attention": lambda: nn.TransformerEncoderLayer(4, 2, 8),
    "spectral-norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 2)),
    "compiled": lambda: torch.compile(nn.Linear(4, 2), backend="eager"),
}


@ONE_THREAD
@pytest.mark.parametrize("name", NETWORKS)
def test_modules_train_to_the_same_bits(name, monkeypatch):
    monkeypatch.setattr(capture, "_FIRST_CHECKS", 3)

    def make():
        net, x = NETWORKS[name](), torch.randn(6, 4)
        params = list(net.parameters())
        for p in params:
            p.grad = torch.zeros_like(p)

        def update():
            for p in params:
                p.grad.zero_()
            out = net(x)
            (out[0] if isinstance(out, tuple) else out).square().mean().backward()
            with torch.no_grad():
                for p in params:
                    p.sub_(p.grad, alpha=0.01)

        def before(i):
            x.mul_(-1.01)
            net.train(i < 9)
            return [*params, *net.buffers()]

        return update, before

    step, messages = compare(make, calls=15)
    runs_as_written = name in ("lstm", "compiled")
    assert len(messages) == runs_as_written, messages
    assert step.num_replays == (0 if runs_as_written else 9)


@ONE_THREAD
@pytest.mark.parametrize(
    "flags, reason",
    [
        (lambda i: torch.ones(2), "is not a flag"),
        (lambda i: 0.5 - i * 1e-3, "its argument 0.5 is not a flag"),
        (lambda i: [i], "is not a flag"),
        (lambda i: i, "more than 8 combinations"),
    ],
)
def test_flags_that_are_none_make_no_captures(flags, reason):
    total = torch.zeros(2)

    def update(flag):
        total.add_(flag if not isinstance(flag, list) else flag[0])

    step = Captured(update)
    expected = torch.zeros(2)
    with pytest.warns(UserWarning, match=reason) as caught:
        for i in range(60):
            step(flags(i))
            expected += flags(i)[0] if isinstance(flags(i), list) else flags(i)
    assert len(caught) == 1 and torch.equal(total, expected)
    assert not step._captures


@ONE_THREAD
def test_equal_flags_of_other_types_have_their_own_captures():
    total = torch.zeros(())

    def update(flag):
        total.add_(2 if flag is True else 1)

    step = Captured(update)
    for _ in range(40):
        step(True)
        step(1)
    assert total == 120 and step.num_replays == 2 * replays(40)


@ONE_THREAD
def test_a_check_can_be_asked_for():
    x, seen = torch.zeros(()), []

    def note():
        seen.append(1)

    def update():
        x.add_(1)
        capture.run(note)

    step = Captured(update)
    for _ in range(40):
        step()
    before = step.num_replays
    step.check_next()
    step()
    assert step.num_replays == before
    step()
    assert step.num_replays == before + 1 and len(seen) == 42 == x
    Captured(update, False).check_next()  # no effect, as it runs as written


@ONE_THREAD
def test_updates_run_as_written_where_captures_are_off(monkeypatch, recwarn):
    assert capture.capture(lambda: None, "cpu").is_captured
    assert not capture.capture(lambda: None, torch.device("cuda")).is_captured
    monkeypatch.setattr(capture.fast, "_IS_ON", False)
    step = capture.capture(lambda: torch.ones(2), "cpu")
    assert torch.equal(step(), torch.ones(2)) and not step.is_captured and not recwarn.list


@ONE_THREAD
def test_an_update_in_another_is_recorded_with_it():
    total = torch.zeros(())

    def add():
        total.add_(1)

    inner = Captured(add)

    def update():
        inner()
        total.mul_(0.5)

    step, expected = Captured(update), torch.zeros(())
    for _ in range(60):
        step()
        expected.add_(1).mul_(0.5)
    assert torch.equal(total, expected) and step.num_replays == replays(60)
    assert inner.num_replays == 0


def test_distributions_that_check_their_arguments_are_captured():
    mean, result = torch.ones(3), torch.zeros(())
    torch.distributions.Distribution.set_default_validate_args(True)

    def update():
        pi = torch.distributions.Normal(mean, torch.ones(3))
        result.add_(pi.log_prob(torch.zeros(3)).sum())

    step = Captured(update)
    for _ in range(50):
        step()
    assert result.item() == pytest.approx(50 * 3 * -1.4189385)
    assert step.num_replays == replays(50)
    assert torch.distributions.Distribution._validate_args
    with pytest.raises(ValueError, match="invalid values"):
        torch.distributions.Normal(mean, -torch.ones(3))


def test_functions_called_as_a_whole_may_call_others():
    calls = []

    def inner():
        calls.append("inner")

    def outer():
        calls.append("outer")
        capture.run(inner)

    step = Captured(lambda: capture.run(outer))
    for _ in range(5):
        step()
    assert calls == ["outer", "inner"] * 5


def test_another_threads_updates_are_its_own():
    learner, other = Learner(), Learner()
    tape = capture.Tape()
    with tape, gradients_in_place():
        learner.update()
        operations = len(tape.trace)
        thread = threading.Thread(target=other.update)
        thread.start()
        thread.join()
    assert len(tape.trace) == operations > 5
    assert len(other.losses) == 1


def test_a_comparison_that_an_error_cut_short_is_made_up():
    learner, fails = Learner(), torch.zeros(())

    def check():
        if fails:
            raise KeyError("by test")

    def update():
        learner.update()
        capture.run(check)

    step = Captured(update)
    for _ in range(50):
        step()
    assert step.num_replays == replays(50)
    step.check_next()
    fails.fill_(1)
    with pytest.raises(KeyError, match="by test"):
        step()
    fails.fill_(0)
    step()  # is compared: no replay
    assert step.num_replays == replays(50)
    step()
    assert step.num_replays == replays(50) + 1


def test_an_error_passes_and_ends_the_recording():
    learner = Learner()

    def update():
        learner.update()
        if learner.scale == 0.5:
            raise FloatingPointError("by test")

    step = Captured(update)
    step()
    learner.scale = 0.5
    with pytest.raises(FloatingPointError, match="by test"):
        step()
    learner.scale = 1.0
    assert capture._tape() is None
    for _ in range(30):
        step()
    assert len(learner.losses) == 32
    assert step.num_replays == 7


@pytest.fixture
def no_garbage_collection():
    """Leaves reference cycles where they are in a test."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def alive(kind):
    return [x for x in gc.get_objects() if type(x) is kind]


@ONE_THREAD
def test_a_comparison_leaves_nothing(no_garbage_collection):
    learner = Learner()
    step = Captured(learner.update)
    before = len(alive(capture.Tape))
    for _ in range(300):
        step()
    (captured,) = step._captures.values()
    assert step.num_replays == replays(300)
    tapes = alive(capture.Tape)[before:]
    assert len(tapes) == 2 and captured.tape in tapes and captured.light in tapes
    assert captured.light.kept == captured.light.calls == []
    del step, captured, tapes
    assert len(alive(capture.Tape)) == before


@ONE_THREAD
def test_a_recording_that_fails_leaves_nothing(no_garbage_collection):
    x = torch.zeros(3)
    before = len(alive(capture.Tape))
    step = Captured(lambda: x.add_(1).sum().item())
    with pytest.warns(UserWarning, match="value"):
        for _ in range(3):
            step()
    assert len(alive(capture.Tape)) == before


OFF_POLICY = dict(start_steps=50, update_after=50, update_every=25, num_test_episodes=1)


MINIBATCHES = dict(minibatch_size=30, train_pi_iters=20, train_v_iters=20, target_kl=math.inf)
MINIBATCHES |= dict(ent_coef=0.01, normalize_obs=True, lr_schedule="linear")


@pytest.mark.parametrize(
    "algorithm, actions, kwargs, num_replays",
    [
        ("vpg", Box(-1, 1, (2,)), {}, [211]),
        ("trpo", Box(-1, 1, (2,)), {}, [211]),
        ("ppo", Box(-1, 1, (2,)), dict(target_kl=math.inf), [211, 211]),
        ("ppo", Discrete(3), dict(pi_lr=0.01), [0, 211]),
        ("ppo", Box(-1, 1, (2,)), MINIBATCHES, [126, 126]),
        ("sac", Box(-1, 1, (2,)), OFF_POLICY, [248]),
        ("sac", Box(-1, 1, (2,)), OFF_POLICY | dict(alpha="auto"), [248]),
        ("ddpg", Box(-1, 1, (2,)), OFF_POLICY, [248]),
        ("td3", Box(-1, 1, (2,)), OFF_POLICY, [223]),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_algorithms_train_to_the_same_bits(
    algorithm, actions, kwargs, num_replays, tmp_path, monkeypatch, threads
):
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    rows, updates = [], []

    def keep(update, device):
        updates.append(capture.capture(update, device))
        return updates[-1]

    monkeypatch.setattr(f"spinup.algos.{algorithm}.capture", keep)
    for name in ("captured", "plain"):
        if name == "plain":
            monkeypatch.setattr(capture.fast, "_IS_ON", False)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # that it isn't captured
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
    captured, plain = updates[: len(updates) // 2], updates[len(updates) // 2 :]
    assert [u.num_replays for u in captured] == num_replays
    assert all(u.is_captured for u in captured) and not any(u.is_captured for u in plain)


@pytest.mark.parametrize("algorithm", ["ddpg", "td3", "sac"])
def test_a_runs_replay_buffer_ends_with_it(algorithm, tmp_path, no_garbage_collection):
    before = len(alive(ReplayBuffer))
    ac = getattr(spinup, algorithm)(
        lambda: Clock(action_space=Box(-1, 1, (2,))),
        **dict(steps_per_epoch=100, epochs=1, ac_kwargs=dict(hidden_sizes=(16, 16))),
        **OFF_POLICY,
        logger_kwargs=dict(output_dir=tmp_path),
    )
    assert len(alive(ReplayBuffer)) == before and ac is not None


def test_replays_use_the_compiled_functions(threads, monkeypatch):
    if threads == 2 or kernels._kernels is None:
        pytest.skip("PyTorch does the work")
    learner = Learner()
    step = Captured(learner.update)
    with gradients_in_place():
        for _ in range(26):
            step()
        monkeypatch.setattr(torch.nn.Module, "__call__", None)  # a replay calls no module
        step()
    assert len(learner.losses) == 27
