"""Shorter recordings compute the same: see spinup/fast/fusing.py."""

import itertools
import types

import numpy as np
import pytest
import torch
from torch import nn

from spinup.fast import capture, fusing, kernels
from spinup.fast.capture import Captured, Tape
from spinup.fast.nodes import gradients_in_place
from spinup.utils.flat import flatten
from spinup.utils.nets import mlp

pytestmark = pytest.mark.skipif(kernels._kernels is None, reason="nothing is compiled")

TAILS = [0.0, -0.0, 1e-45, -1e-45, 1e-38, 1.0, -1.0, 3e38, -3e38, np.inf, -np.inf, np.nan]


def numbers(*shape, tails=False):
    """Returns random numbers, or random pairs of numbers at the edges of float32."""
    rng = np.random.default_rng(0)
    values = rng.choice(TAILS, shape) if tails else rng.standard_normal(shape)
    return torch.from_numpy(values.astype(np.float32))


def assert_same_bits(x, y):
    """Compares tensors to the bit, but for the sign of NaN."""
    assert x.shape == y.shape and x.dtype == y.dtype
    a, b = x.numpy(), y.numpy()
    assert np.array_equal(a, b, equal_nan=True)
    real = ~np.isnan(a)
    assert np.array_equal(np.signbit(a[real]), np.signbit(b[real]))


# Functions of x (2, 100), its row or column y, and a flag per column of x
OPERATIONS = {
    "neg": lambda x, y, b: -x,
    "mul": lambda x, y, b: x * y,
    "mul-number": lambda x, y, b: x * 0.99,
    "mul-bool": lambda x, y, b: x * b,
    "mul-expanded": lambda x, y, b: y[0].expand(2, 100) * x,
    "add": lambda x, y, b: x + y,
    "add-number": lambda x, y, b: x + 3,
    "sub": lambda x, y, b: x - y,
    "sub-from-number": lambda x, y, b: 1 - x,
    "div": lambda x, y, b: x / y,
    "div-number": lambda x, y, b: x / 100,
    "div-count": lambda x, y, b: x / b.sum(0, keepdim=True),
    "square": lambda x, y, b: x**2,
    "power-one": lambda x, y, b: x**1.0,
    "clamp": lambda x, y, b: x.clamp(-0.5, 0.5),
    "clamp-zero": lambda x, y, b: x.clamp(0.0, 1.0),
    "clamp-tensors": lambda x, y, b: x.clamp(-y, y),
    "addcmul": lambda x, y, b: torch.addcmul(y, x, x),
    "equal": lambda x, y, b: x == y,
    "least-of-two": lambda x, y, b: x.amin(0),
    "least-of-two-kept": lambda x, y, b: x.amin(0, keepdim=True),
    "count-of-two": lambda x, y, b: b.sum(0),
    "sum": lambda x, y, b: x.sum(),
    "mean": lambda x, y, b: x.mean(),
    "zeros-like": lambda x, y, b: torch.zeros_like(x),
    "new-zeros": lambda x, y, b: x.new_zeros(3, 5),
    "ones-like": lambda x, y, b: torch.ones_like(x),
}
LAYOUTS = {
    "contiguous": lambda x: x,
    "columns-of-a-minibatch": lambda x: torch.cat([x[:, :, None]] * 7, 2)[:, :, 3],
    "transposed": lambda x: x.T.contiguous().T,
}


def recorded(compute):
    """Returns a tape of a computation, and its result."""
    with Tape() as tape:
        result = compute()
    assert tape.obstacle is None
    return tape, result


def run(calls, kept):
    assert kept or not runs_compiled(calls)  # the memory of the arguments
    for function, args in calls:
        function(*args)


def runs_compiled(calls):
    return all(function is kernels._kernels.compute_all for function, _ in calls)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_small_operations_are_pytorchs(name, layout):
    compute = OPERATIONS[name]
    x, y, b = LAYOUTS[layout](numbers(2, 100)), numbers(100), numbers(2, 100) > 0
    b[:, 0] = False  # counts of 0, 1 and 2
    tape, result = recorded(lambda: compute(x, y, b))
    calls, kept = fusing.shortened(tape.calls)
    is_sum = name in ("sum", "mean")
    takes_other_zeros = "least" in name and layout != "contiguous"
    takes_other_zeros |= name == "clamp-tensors" and layout == "contiguous"
    if not takes_other_zeros:
        assert runs_compiled(calls) == ((x if is_sum else result).is_contiguous())
        assert len(calls) == 1 or layout == "transposed"
    for tails in (False, True):
        x.copy_(numbers(2, 100, tails=tails).flip(0))
        y.copy_(numbers(100, tails=tails).roll(1))
        run(calls, kept)
        assert_same_bits(result, compute(x, y, b))


def test_all_pairs_of_edges():
    # Each number at the edges of float32 with each other one, for all functions of two numbers
    pairs = torch.tensor(list(itertools.product(TAILS, TAILS)), dtype=torch.float32).T
    both = numbers(2, pairs.shape[1])
    x, y = both
    for compute in (
        lambda: both.amin(0),
        lambda: x * y,
        lambda: x + y,
        lambda: x - y,
        lambda: x / y,
        lambda: x == y,
        lambda: torch.addcmul(x, y, x),
    ):
        both.copy_(numbers(*pairs.shape))
        tape, result = recorded(compute)
        calls, kept = fusing.shortened(tape.calls)
        assert runs_compiled(calls)
        both.copy_(pairs)
        run(calls, kept)
        assert_same_bits(result, compute())


@pytest.mark.parametrize("n", [1, 5, 6, 31, 32, 33, 64, 100, 127, 256, 512])
def test_zeros_are_pytorchs(n):
    # Of 0 and -0, PyTorch's choice depends on the layout
    rng = np.random.default_rng(n)
    x, bound = torch.zeros(2, n), torch.zeros(n)
    for compute in (
        lambda: x.amin(0),
        lambda: x.T.contiguous().T.amin(0),
        lambda: x[0].clamp(-bound, bound),
        lambda: x.clamp(-bound, bound),
        lambda: x.T.contiguous().clamp(x[0, 0], x[1, 0]),
        lambda: x.clamp(-0.0, 0.0),
        lambda: x.clamp(0.0, 1.0),
    ):
        tape, result = recorded(compute)
        calls, kept = fusing.shortened(tape.calls)
        for _ in range(20):
            for y in (x, bound):
                zeros = rng.choice(np.array([0.0, -0.0], dtype=np.float32), tuple(y.shape))
                y.copy_(torch.from_numpy(zeros))
            run(calls, kept)
            assert_same_bits(result, compute())


@pytest.mark.parametrize("n", [100, 256])
def test_minima_and_limits_of_a_minibatch_are_compiled(n):
    q, act, limit = numbers(2, n), numbers(n, 4), torch.ones(4)
    for compute in (lambda: q.amin(0), lambda: act.clamp(-limit, limit)):
        tape, _ = recorded(compute)
        assert runs_compiled(fusing.shortened(tape.calls)[0])


def test_a_column_of_one_row():
    x = numbers(1, 9)[:, 7]
    tape, result = recorded(lambda: torch.zeros_like(x) + x * 2)
    calls, kept = fusing.shortened(tape.calls)
    x.fill_(3.0)
    run(calls, kept)
    assert result.tolist() == [6.0]


@pytest.mark.parametrize("n", [8, 9, 31, 32, 33, 100, 127, 200, 511, 512, 513, 640, 1000, 1024])
def test_sums_add_in_pytorchs_order(n):
    assert fusing._sums_in_order(n)
    x = numbers(n)
    tape, (total, mean) = recorded(lambda: (x.sum(), x.mean()))
    calls, kept = fusing.shortened(tape.calls)
    assert runs_compiled(calls) and len(calls) == 1
    rng = np.random.default_rng(1)
    for scale in (1, 1e-42, 1e37):
        for _ in range(50):
            x.copy_(torch.from_numpy(rng.standard_normal(n) * scale))
            run(calls, kept)
            assert_same_bits(total, x.sum())
            assert_same_bits(mean, x.mean())
    for i, value in ((0, np.inf), (n - 1, -np.inf), (n // 2, np.nan)):
        x[i] = value
        run(calls, kept)
        assert_same_bits(total, x.sum())


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: x[0].repeat(40) + 1,  # too many numbers
        lambda x: x.double() + 1,
        lambda x: torch.add(x, x, alpha=2),
        lambda x: torch.div(x, 3, rounding_mode="floor"),
        lambda x: x.clamp(min=0.5),
        lambda x: x**3,
        lambda x: x.sum(0),
        lambda x: x.amin(1),
        lambda x: x.view(4, 50).amin(0),
        lambda x: (x.view(4, 50) > 0).sum(0),
        lambda x: x.t().sum(),
        lambda x: x.amin(),
        lambda x: torch.addcmul(x, x, x, value=0.3),
        lambda x: x.view(2, 10, 10)[:, 1:4, ::2] + 1,  # more than two dimensions
    ],
)
@pytest.mark.parametrize("recorded_on", [0.0, 1.0])  # on zeros, most operations give the same
def test_other_operations_stay_pytorchs(compute, recorded_on):
    x = numbers(2, 100) * recorded_on
    tape, result = recorded(lambda: compute(x))
    calls, kept = fusing.shortened(tape.calls)
    x.copy_(numbers(2, 100) * 2)
    run(calls, kept)
    assert torch.equal(result, compute(x))


def test_an_operation_that_computes_something_else_is_not_used(monkeypatch):
    x = numbers(2, 100)
    monkeypatch.setitem(fusing._CODES, torch.ops.aten.mul.Tensor, fusing._PLUS)
    tape, result = recorded(lambda: x * x)
    calls, kept = fusing.shortened(tape.calls)
    assert not runs_compiled(calls)
    x.mul_(2)
    run(calls, kept)
    assert torch.equal(result, x * x)


@pytest.mark.parametrize(
    "compute",
    [
        lambda n: n + 1,
        lambda n: n * 2,
        lambda n: -n,
        lambda n: n**2,
        lambda n: n == n + 1,
        lambda n: n.clamp(0, 2**40),
        lambda n: n.new_tensor([1, 2]) + n,
        lambda n: (n > 1) + (n > 1),
    ],
)
def test_integers_stay_integers(compute):
    n = torch.tensor([1, 1])
    tape, result = recorded(lambda: compute(n))
    calls, kept = fusing.shortened(tape.calls)
    n.copy_(torch.tensor([2**24, 2**24 + 1]))  # the second is no float32
    run(calls, kept)
    assert torch.equal(result.view(torch.uint8), compute(n).view(torch.uint8))


def test_great_integers_are_rounded_once():
    x = torch.zeros(3)
    number = 2**60 + 2**36 + 1
    tape, result = recorded(lambda: x * number)
    calls, kept = fusing.shortened(tape.calls)
    x.fill_(1)
    run(calls, kept)
    assert torch.equal(result, x * number)


def test_another_default_type_changes_nothing():
    fusing._sums_in_order.cache_clear()
    fusing._fuses_addcmul.cache_clear()
    x = numbers(2, 20)
    torch.set_default_dtype(torch.float64)
    try:
        tape, _ = recorded(lambda: (torch.addcmul(x, x, x).mean(), x.sum()))
        assert runs_compiled(fusing.shortened(tape.calls)[0])
    finally:
        torch.set_default_dtype(torch.float32)


def test_nothing_is_compiled_where_nothing_may_be():
    x = numbers(100)
    with kernels.switched_off():
        tape, _ = recorded(lambda: (x + 1) * 2)
        calls, _ = fusing.shortened(tape.calls)
    assert not any(function is kernels._kernels.compute_all for function, _ in calls)
    assert len(calls) == 2


def test_operations_that_follow_one_another_take_one_call():
    x, total = numbers(2, 50), torch.zeros(())

    def compute():
        y = (x - x.mean()) ** 2 / 3  # each reads the result of the one before
        total.copy_(y.exp().sum())  # exp stays PyTorch's
        return 1 - y * 2

    tape, result = recorded(compute)
    calls, kept = fusing.shortened(tape.calls)
    compiled = [function is kernels._kernels.compute_all for function, _ in calls]
    assert compiled == [True, False, True, False, True]
    x.copy_(numbers(2, 50) * 3 + 1)
    run(calls, kept)
    after = total.clone()
    assert_same_bits(result, compute())
    assert_same_bits(after, total)


# --- Gradients that aren't cleared ----------------------------------------------------------------


class Twins:
    """Two equal networks, whose updates are captured for one of them."""

    def __init__(self, make, update, rows=100):
        torch.manual_seed(0)
        self.x = torch.randn(rows, 3)
        self.learners = []
        for is_captured in (False, True):
            torch.manual_seed(0)
            net = make()
            params = flatten(net)
            step = lambda net=net, params=params: update(net, params, self.x)  # noqa: E731
            self.learners.append((params, Captured(step, is_captured)))

    def run(self, calls=60):
        with gradients_in_place():
            for _ in range(calls):
                self.x.normal_()
                for params, step in self.learners:
                    step()
                    params.data.add_(params.grad, alpha=-0.01)
                (plain, _), (captured, step) = self.learners
                assert torch.equal(plain.grad, captured.grad)
                assert torch.equal(plain, captured)
        assert step.num_replays > 0
        (capture,) = step._captures.values()
        return capture.replayed


def backward(net, params, x):
    params.grad.zero_()
    (net(x) ** 2).mean().backward()


def clears(replayed):
    """Returns whether a replay clears a gradient, and the flags of the backward passes."""
    zero = torch.ops.aten.zero_.default
    cleared = any(getattr(function, "func", None) is zero for function, _ in replayed)
    flags = [args[-1] for function, args in replayed if function is kernels._kernels.mlp_backward]
    return cleared, flags


# More than 1,024 parameters: fewer are cleared by _kernels.c, in a call with other operations
SIZES = [3, 64, 64, 1]


@pytest.mark.parametrize("rows", [1, 100, 1300])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_a_gradient_that_is_written_is_not_cleared(rows, activation):
    replayed = Twins(lambda: mlp(SIZES, activation), backward, rows).run()
    assert clears(replayed) == (False, [True])


def test_what_the_gradient_held_does_not_matter():
    twins = Twins(lambda: mlp(SIZES, nn.ReLU), backward)
    twins.run()
    with gradients_in_place():
        for params, step in twins.learners:
            params.grad.fill_(np.nan)
            step()
    (plain, _), (captured, _) = twins.learners
    assert torch.equal(plain.grad, captured.grad) and plain.grad.isfinite().all()


def test_sums_that_underflow_are_positive_zeros():
    params = [torch.full((4, 3), 1e-30), torch.zeros(4)]
    x, grad = torch.full((9, 3), 1e-30), torch.full((9, 4), -1e-30)
    results = []
    for are_zero in (False, True):
        grads = [torch.zeros(4, 3), torch.zeros(4)]
        _, saved = kernels.CompiledMLP.forward([x], params, (kernels.IDENTITY,))
        with pytest.MonkeyPatch.context() as patch:
            call = kernels._kernels.mlp_backward
            compiled = types.SimpleNamespace(
                mlp_backward=lambda *args: call(*args[:-1], are_zero)  # noqa: B023
            )
            patch.setattr(kernels, "_kernels", compiled)
            kernels.CompiledMLP.backward(saved, params, (kernels.IDENTITY,), grad, grads, [])
        results.append(grads[0])
    assert_same_bits(*results)
    assert not results[1].signbit().any()


class WithScale(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.scale = mlp(SIZES, nn.Tanh), nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.net(x) * self.scale


class WithSlope(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.slope = mlp(SIZES, nn.Tanh), nn.PReLU()  # after the network in the vector

    def forward(self, x):
        return self.slope(self.net(x))


class WithUnused(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.unused = mlp(SIZES, nn.Tanh), nn.Linear(2, 2)

    def forward(self, x):
        return self.net(x)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = mlp(SIZES, nn.Tanh), mlp(SIZES, nn.Tanh)

    def forward(self, x):
        return self.first(x) + self.second(x)


def twice(net, params, x):
    params.grad.zero_()
    (net(x) ** 2).mean().backward()
    (net(2 * x) ** 2).mean().backward()


def reads_between(net, params, x):
    params.grad.zero_()
    (net(x + params.grad.sum()) ** 2).mean().backward()


def adds_between(net, params, x):
    params.grad.zero_()
    params.grad.add_(0.1)
    (net(x) ** 2).mean().backward()


def fills_first(net, params, x):
    params.grad.fill_(1.0)
    backward(net, params, x)


def clears_half(net, params, x):
    params.grad[::2].zero_()
    (net(x) ** 2).mean().backward()


def touches_more_than_it_says(net, params, x):
    params.grad.zero_()
    capture.run(add_to_grad, params, tensors=(x,))
    (net(x) ** 2).mean().backward()


@capture.capturable
def add_to_grad(params):
    params.grad += 0.1


def is_its_own_gradient(net, params, x):
    params.grad.fill_(1.0)
    params.grad.zero_()
    net(x).backward(params.grad[1 : len(x) + 1].view(-1, 1))


def clears_late(net, params, x):
    loss = (net(x) ** 2).mean()
    params.grad.add_(1.0)
    params.grad.zero_()
    loss.backward()


@pytest.mark.parametrize(
    "make, update, expected",
    [
        (WithScale, backward, (True, [False])),
        (WithSlope, backward, (True, [False])),
        (WithUnused, fills_first, (True, [False])),
        (Two, backward, (True, [False, False])),
        (lambda: mlp(SIZES, nn.Tanh), twice, (False, [True, False])),
        (lambda: mlp(SIZES, nn.Tanh), reads_between, (True, [False])),
        (lambda: mlp(SIZES, nn.Tanh), adds_between, (True, [False])),
        (lambda: mlp(SIZES, nn.Tanh), clears_half, (True, [False])),
        (lambda: mlp(SIZES, nn.Tanh), touches_more_than_it_says, (True, [False])),
        (lambda: mlp(SIZES, nn.Tanh), is_its_own_gradient, (True, [False])),
        (lambda: mlp(SIZES, nn.Tanh), clears_late, (False, [True])),
    ],
    ids="before after unused two twice read added-to half run own late".split(),
)
def test_a_gradient_is_cleared_where_it_matters(make, update, expected):
    assert clears(Twins(make, update).run()) == expected
