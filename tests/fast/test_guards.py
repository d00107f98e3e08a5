# ruff: noqa: E501 (tables of updates)
"""Captured updates that depend on more than tensors, compared bit for bit with updates as written."""

import collections
import contextlib
import dataclasses
import dis
import enum
import functools
import importlib
import itertools
import operator
import random
import re
import time
import types
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils import checkpoint

import spinup
from spinup.fast.capture import Captured
from spinup.fast.guards import Guards
from spinup.fast.nodes import gradients_in_place


def compare(make, calls=300):
    """Runs an update as written and captured, and compares the results after each call.

    Args:
        make: function that returns the update and a function ``before(i)``, which is called before
            call i and returns the tensors to compare after it.
        calls: number of calls.

    Returns:
        The captured update and its warnings.
    """
    histories, messages = [], []
    for wrap in (lambda f: Captured(f, False), Captured):
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        update, before = make()
        step, history = wrap(update), []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for i in range(calls):
                results = before(i)
                step()
                history.append([torch.as_tensor(x).clone() for x in results])
        histories.append(history)
        messages = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    for i, (plain, captured) in enumerate(zip(*histories, strict=True)):
        for x, y in zip(plain, captured, strict=True):
            assert torch.equal(x.nan_to_num(), y.nan_to_num()), f"call {i}: {x} became {y}"
    return step, messages


class Agent:
    """An object whose attributes the updates in these tests read and change."""

    def __init__(self):
        self.clip, self.n, self.scale = 0.5, 0, 1.0
        self.x, self.total = torch.zeros(3), torch.zeros(3)
        self.targets = torch.zeros(3)
        self.net = nn.Linear(3, 3)
        self.old = collections.deque([torch.ones(3)], maxlen=3)
        self.options = {"clip": 0.5, "n": 0}
        self.list = [0]

    @property
    def limit(self):
        return self.clip * 2

    def results(self):
        return [self.total, self.targets]

    def add(self, x):
        self.total.add_(x)


CLIP = 0.5
COUNT = 0


def by(agent_update, between=lambda agent, i: None):
    """Returns an argument for `compare`: an agent's update, and a function called in between."""

    def make():
        agent = Agent()
        agent.x.copy_(torch.arange(3.0) - 1)

        def before(i):
            agent.x.mul_(-1.01 if i % 2 else -0.99)
            between(agent, i)
            return agent.results()

        return functools.partial(agent_update, agent), before

    return make


def anneals_global(agent, i):
    global CLIP
    CLIP = 0.5 - 0.05 * (i // 10 % 5)


def rebinds_mean(agent, i):
    if i % 50 == 49:
        agent.targets = agent.targets * 0.5 + 1


def swaps_net(agent, i):
    if i == 60:
        torch.manual_seed(5)
        agent.net = nn.Linear(3, 3)


def resizes(agent, i):
    if i % 60 == 59:
        agent.x = torch.ones(3)
    if i % 100 == 99:
        agent.old.append(torch.full((3,), float(i)))


class Mode(enum.Enum):
    FAST, SLOW = 1.0, 2.0


def sets(name, value):
    def set_attribute(agent, i):
        if i % 10 == 0:
            setattr(agent, name, value(i))

    return set_attribute


def tries(agent):
    try:
        scale = agent.options["scale"]
    except KeyError:
        scale = 3.0
    agent.add(agent.x * scale)


def adds_option(agent, i):
    if i == 150:
        agent.options["scale"] = 2.0


@dataclasses.dataclass
class Rates:
    rate: float = 1.0
    slots: "Slots" = None

    def doubled(self):
        return 2 * self.rate


class Slots:
    __slots__ = ("rate",)

    def __init__(self):
        self.rate = 1.0


RATES, WEIGHT = Rates(slots=Slots()), torch.ones(3)


def sets_rates(agent, i):
    RATES.rate = RATES.slots.rate = WEIGHT.rate = 1.0 + i // 50


def sets_weights_rate(agent, i):
    agent.net.weight.rate = 1.0 + i // 50


def matches(agent):
    match RATES:
        case Rates(factor):
            agent.add(agent.x * factor)


def matches_by_name(agent):
    match RATES:
        case Rates(rate=factor):
            agent.add(agent.x * factor)


def loops(agent):
    for p in [*agent.net.parameters()][:1]:
        agent.add(agent.x * p.rate)


class Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * RATES.rate

    @staticmethod
    def backward(ctx, grad):
        return grad * RATES.rate


NET = nn.Linear(3, 3)


def replaces_a_parameter(agent, i):
    if i % 50 == 0:
        OLD.append(NET.bias)
        NET.bias = nn.Parameter(torch.full((3,), float(i)))


OLD = []  # keeps their addresses in use


# --- Changes from outside, after which updates are recorded again ---------------------------------


@pytest.mark.parametrize(
    "update, between",
    [
        (lambda a: a.add(a.x.clamp(-a.clip, a.clip)), sets("clip", lambda i: 0.5 - i // 10 * 0.01)),
        (lambda a: a.add(a.x.clamp(-CLIP, CLIP)), anneals_global),
        (lambda a: a.add(a.x.clamp(max=a.limit)), sets("clip", lambda i: 0.5 - i // 60 * 0.01)),
        (lambda a: a.add(a.x.clamp(max=a.options["clip"])),
         lambda a, i: a.options.update(clip=0.5 - i // 40 * 0.1)),
        (lambda a: a.add(a.x - a.targets), rebinds_mean),
        (lambda a: a.add(a.net(a.x).detach()), swaps_net),
        (lambda a: a.add(torch.stack([*a.old, a.x]).sum(0)), resizes),
        (lambda a: a.add(torch.where(a.x > 0, a.scale, -1.0)),
         sets("scale", lambda i: 1.0 + i // 50)),
        (tries, adds_option),
        (lambda a: a.add(a.x * getattr(a, "sca" + "le")), sets("scale", lambda i: 1.0 + i // 50)),
        (lambda a: a.add(a.x * a.scale(2)), sets("scale", lambda i: functools.partial(pow, 1 + i // 20))),
        (lambda a: a.add(nn.functional.dropout(a.net(a.x), 0.5, a.net.training).detach()),
         lambda a, i: a.net.train(i // 50 % 2 == 0)),
        (lambda a: a.add(a.x * a.scale.value), sets("scale", lambda i: list(Mode)[i // 50 % 2])),
        (lambda a: a.add(a.x * a.scale.rate),
         sets("scale", lambda i: types.SimpleNamespace(rate=1.0 + i // 50))),
        (lambda a: a.add(a.net(a.x).sum() * (2 if a.net.weight.requires_grad else 1)),
         lambda a, i: a.net.requires_grad_(False)),
        (lambda a: a.add(a.x * float(a.scale[0])),
         sets("scale", lambda i: np.array([1.0 + i // 50]))),
        (lambda a: a.add(a.x * WEIGHT.rate), sets_rates),
        (loops, sets_weights_rate),
        (lambda a: a.add(a.x * dataclasses.asdict(RATES)["ra" "te"]), sets_rates),
        (lambda a: a.add(a.x * dataclasses.astuple(RATES)[0]), sets_rates),
        (lambda a: a.add(a.x * AS_TUPLE(RATES)[0]), sets_rates),
        (lambda a: a.add(a.x * min(vars(dataclasses.replace(RATES, slots=7)).values())), sets_rates),
        (lambda a: a.add(a.x * operator.methodcaller("doubled")(RATES)), sets_rates),
        (lambda a: a.add(a.x * operator.attrgetter("slots.rate")(RATES)), sets_rates),
        (lambda a: a.add(a.x * RATES.__getattribute__("".join(["ra", "te"]))), sets_rates),
        (lambda a: a.add(a.x * getattr(RATES.slots, "".join(["ra", "te"]))), sets_rates),
        (matches, sets_rates),
        (matches_by_name, sets_rates),
        (lambda a: a.add(Scale.apply(a.x)), sets_rates),
        (lambda a: a.add([*NET.parameters()][1].detach()), replaces_a_parameter),
    ],
    ids=["attribute", "global", "property", "dict", "rebound-tensor", "module", "deque", "where", "try",
         "getattr", "partial", "training", "enum", "namespace", "requires-grad", "array",
         "tensors-attribute", "parameters-attribute", "asdict", "astuple", "renamed-astuple", "replace",
         "methodcaller", "attrgetter", "getattribute", "slots", "match", "match-by-name",
         "autograd-function", "parameters"],
)  # fmt: skip
def test_a_change_is_recorded_again(update, between):
    step, messages = compare(by(update, between))
    assert messages == [] and step.is_captured
    assert step.num_replays > 150


@pytest.mark.parametrize("statement", ["from . import rates", "from .rates import RATE"])
def test_a_relative_import_is_followed(statement, tmp_path, monkeypatch):
    name = "rates" if statement.endswith("rates") else "by_name"
    package = tmp_path / f"package_{name}"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "rates.py").write_text("RATE = 1.0")
    factor = "rates.RATE" if name == "rates" else "RATE"
    (package / "updates.py").write_text(
        f"def update(agent):\n    {statement}\n    agent.add(agent.x * {factor})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    updates, rates = (importlib.import_module(f"{package.name}.{m}") for m in ("updates", "rates"))
    step, messages = compare(by(updates.update, lambda a, i: setattr(rates, "RATE", 1.0 + i // 50)))
    assert messages == [] and step.num_replays > 150


def test_a_closures_number_is_recorded_again():
    def make():
        clip, x, total = 0.5, torch.linspace(-1, 1, 5), torch.zeros(5)

        def update():
            total.add_(x.clamp(-clip, clip))

        def before(i):
            nonlocal clip
            clip = 0.5 - 0.01 * (i // 10)
            return [total]

        return update, before

    step, messages = compare(make, calls=500)
    assert messages == [] and step.num_replays > 300


def test_a_change_in_place_outside_needs_no_recording():
    def make():
        clip, x, total = torch.tensor(0.5), torch.linspace(-1, 1, 5), torch.zeros(5)

        def update():
            total.add_(x.minimum(clip))

        return update, lambda i: [clip.mul_(0.99), total]

    step, messages = compare(make)
    assert messages == [] and step.num_replays == 300 - 25 - 3


@pytest.mark.parametrize(
    "switch",
    [
        torch.set_grad_enabled,
        lambda on: torch.set_default_dtype([torch.float64, torch.float32][on]),
    ],
    ids=["grad", "dtype"],
)
def test_pytorchs_settings_are_guarded(switch):
    def make():
        switch(True)
        x, total = torch.ones(3, requires_grad=True), torch.zeros(3)

        def update():
            y = x * torch.ones(3)
            with torch.no_grad():
                total.add_(y * (2 if y.requires_grad else 1) * (1 if y.dtype.itemsize == 4 else 3))

        def before(i):
            switch(i < 50)
            return [total]

        return update, before

    try:
        step, messages = compare(make, calls=80)
    finally:
        switch(True)
    assert messages == [] and step.num_replays > 40


def superinstructions(code):
    """Yields the instructions of a code object with the names of Python 3.13."""
    before = None
    for step in ORIGINAL_INSTRUCTIONS(code):
        pair = (before.opname, step.opname) if before else ()
        if pair in (
            ("STORE_FAST", "LOAD_FAST"),
            ("STORE_FAST", "STORE_FAST"),
            ("LOAD_FAST", "LOAD_FAST"),
        ):
            yield step._replace(opname="_".join(pair), argval=(before.argval, step.argval))
            before = None
        else:
            if before is not None:
                yield before
            before = step
    yield before


def borrows(code):
    """Yields the instructions of a code object with the names of Python 3.14."""
    for step in superinstructions(code):
        yield step._replace(opname=step.opname.replace("LOAD_FAST", "LOAD_FAST_BORROW"))


ORIGINAL_INSTRUCTIONS = dis.get_instructions


@pytest.mark.parametrize("instructions", [dis.get_instructions, superinstructions, borrows])
def test_a_local_name_that_is_given_to_another_object_is_followed(instructions, monkeypatch):
    class Leaf:
        def update(self):
            self = self.parent
            return self.rate

        def update_two(self):
            me = other = self
            me, self = self.parent, other
            return me.rate, self.rate

    root, leaf = Leaf(), Leaf()
    leaf.parent, root.rate, leaf.rate = root, 1.0, 2.0
    monkeypatch.setattr(dis, "get_instructions", instructions)
    for update in (leaf.update, leaf.update_two):
        root.rate = 1.0
        guards = Guards(update, set())
        assert guards.obstacle is None and guards.hold()
        root.rate = 3.0
        assert not guards.hold()
        assert "rate" in guards.change()


# --- Updates that run as written ------------------------------------------------------------------


def counts(agent):
    agent.n += 1
    if agent.n % 7 == 0:
        agent.targets.lerp_(agent.x, 0.5)


def counts_in_dict(agent):
    agent.options["n"] += 1
    if agent.options["n"] % 7 == 0:
        agent.targets.lerp_(agent.x, 0.5)


def counts_in_list(agent):
    agent.list[0] += 1
    if agent.list[0] % 7 == 0:
        agent.targets.lerp_(agent.x, 0.5)


def counts_globally(agent):
    global COUNT
    COUNT += 1
    if COUNT % 7 == 0:
        agent.targets.lerp_(agent.x, 0.5)


def returns_early(agent):
    agent.list.append(1)
    if len(agent.list) % 5:
        return
    agent.add(agent.x)


def rebinds(agent):
    agent.x = agent.x + 1
    agent.add(agent.x)


def normalizes(agent):
    agent.targets = agent.targets * 0.9 + 0.1 * agent.x
    agent.add(agent.x - agent.targets)


def queues(agent):
    agent.old.append(agent.x.clone())
    agent.add(torch.stack(list(agent.old)).sum(0))


class Schedule:
    def __init__(self):
        self.n = 0

    def __call__(self):
        self.n += 1
        return 1.0 / self.n


SCHEDULE, COUNTER, RNG = Schedule(), itertools.count(), np.random.default_rng(0)


@contextlib.contextmanager
def scaled(agent):
    agent.scale *= 1.01
    yield agent.scale


def in_context(agent):
    with scaled(agent) as scale:
        agent.add(agent.x * scale)


@dataclasses.dataclass
class Config:
    steps: int = 0

    def next(self):
        self.steps += 1
        return self.steps


CONFIG = Config()
CACHED = functools.lru_cache(lambda x: x)


REMEMBERED, AS_TUPLE = None, dataclasses.astuple


def imports(agent):
    from random import random as draw

    agent.add(agent.x * draw())


@pytest.mark.parametrize(
    "update, reason",
    [
        (counts, "it changes .*n"),
        (counts_in_dict, "it changes .*n"),
        (counts_in_list, "it changes .*list"),
        (counts_globally, "it changes COUNT"),
        (returns_early, "it changes .*list"),
        (rebinds, "it changes .*x"),
        (normalizes, "it changes .*targets"),
        (queues, "it changes .*old"),
        (in_context, "it changes .*scale"),
        (imports, "random"),
        (lambda a: a.add(a.x * SCHEDULE()), "it changes SCHEDULE.n"),
        (lambda a: a.add(a.x * CONFIG.next()), "it changes CONFIG.steps"),
        (lambda a: a.add(a.x * next(COUNTER)), "COUNTER, a itertools.count"),
        (lambda a: a.add(a.x * random.random()), "random"),
        (lambda a: a.add(a.x * np.random.normal()), "random"),
        (lambda a: a.add(a.x * RNG.normal()), "RNG.normal"),
        (lambda a: a.add(a.x * (time.monotonic() > 0)), "time"),
        (lambda a: a.add(a.x * CACHED(2)), "CACHED, a functools"),
        (lambda a: print(end="") or a.add(a.x), "it calls print"),
        (lambda a: torch.manual_seed(3) and a.add(torch.randn(3)), "manual_seed"),
        (lambda a: a.x.sum(), "it returns a value"),
    ],
)
def test_what_changes_in_python_runs_as_written(update, reason):
    def make():
        global COUNTER, RNG, COUNT
        COUNTER, RNG, COUNT = itertools.count(), np.random.default_rng(0), 0
        SCHEDULE.n = CONFIG.steps = 0
        return by(update)()

    step, messages = compare(make, calls=120)
    assert len(messages) == 1 and not step.is_captured, messages
    assert re.search(reason, messages[0]), messages


def test_a_number_that_changes_at_each_call_runs_as_written():
    update = lambda a: a.add(a.x.clamp(-a.clip, a.clip))  # noqa: E731
    step, messages = compare(by(update, lambda a, i: setattr(a, "clip", 0.5 - i * 1e-3)))
    assert len(messages) == 1 and "clip changes so often" in messages[0]
    assert step.num_replays == 0


def test_a_nonlocal_counter_runs_as_written():
    def make():
        n, x, targets = 0, torch.ones(3), torch.zeros(3)

        def update():
            nonlocal n
            n += 1
            x.add_(1)
            if n % 7 == 0:
                targets.lerp_(x, 0.5)

        return update, lambda i: [x, targets]

    _, messages = compare(make, calls=200)
    assert len(messages) == 1 and "it changes n" in messages[0]


def remembers_globally(x):
    def update():
        global REMEMBERED
        REMEMBERED = x.sum()

    return update, lambda: REMEMBERED


def remembers_in_a_cell(x):
    last = None

    def update():
        nonlocal last
        last = x.sum()

    return update, lambda: last


def remembers_by_an_inner_function(x):
    last = None

    def keep(value):
        nonlocal last
        last = value

    return lambda: keep(x.sum()), lambda: last


def remembers_on_a_tensor(x):
    def update():
        x.last = x.sum()

    return update, lambda: x.last


def remembers_on_each_of_some_tensors(x):
    tensors = [x]

    def update():
        for y in tensors:
            y.last = y.sum()

    return update, lambda: x.last


@pytest.mark.parametrize(
    "remember",
    [
        remembers_globally,
        remembers_in_a_cell,
        remembers_by_an_inner_function,
        remembers_on_a_tensor,
        remembers_on_each_of_some_tensors,
    ],
)
def test_a_tensor_that_an_update_stores_is_each_calls_own(remember):
    x = torch.zeros(3)
    update, stored = remember(x)
    step = Captured(update)
    with pytest.warns(UserWarning, match="it changes .*(REMEMBERED|last)"):
        for i in range(60):
            x.fill_(i)
            step()
            assert stored() == 3 * i
    assert not step.is_captured


@pytest.mark.parametrize("is_reentrant", [True, False])
@pytest.mark.parametrize("how", ["function", "module", "import"])
def test_checkpointed_activations_run_as_written(how, is_reentrant):
    def make():
        leaf, result = torch.ones(64, requires_grad=True), torch.zeros(64)
        leaf.grad = torch.zeros(64)
        dropout = nn.Dropout(0.5)

        def by_module(*args):
            return torch.utils.checkpoint.checkpoint(*args, use_reentrant=is_reentrant)

        def by_import(*args):
            from torch.utils.checkpoint import checkpoint as cp

            return cp(*args, use_reentrant=is_reentrant)

        compute = {
            "function": functools.partial(checkpoint.checkpoint, use_reentrant=is_reentrant),
            "module": by_module,
            "import": by_import,
        }[how]

        def update():
            leaf.grad.zero_()
            out = compute(lambda x: dropout(x) ** 2, leaf)
            out.sum().backward()
            result.copy_(out.detach())

        return update, lambda i: [result, leaf.grad]

    step, messages = compare(make, calls=40)
    assert len(messages) == 1 and "torch.utils.checkpoint" in messages[0]
    assert step.num_replays == 0


@pytest.mark.parametrize(
    "value",
    [lambda n: n, np.float64, lambda n: np.array([n, 2.0])],
    ids=["int", "float64", "array"],
)
def test_stored_numbers_are_each_calls_own(value, tmp_path):
    logger = spinup.EpochLogger(output_dir=tmp_path)
    n = 0
    step = Captured(lambda: logger.store(N=value(n)))
    with pytest.warns(UserWarning, match="n changes so often"):
        for i in range(120):
            n = i
            step()
    stored = np.concatenate([np.ravel(value(i)) for i in range(120)])
    np.testing.assert_array_equal(logger.epoch_dict["N"].values(), stored)
    logger.close()


def test_gradients_in_place_are_guarded():
    x, seen = torch.ones(3), []

    def update():
        x.add_(1)

    step = Captured(update)
    for _ in range(30):
        step()
    before = step.num_replays
    with gradients_in_place():
        step()  # runs as written; the next one is recorded, and that after it compared
        seen.append(step.num_replays)
        for _ in range(3):
            step()
    assert (
        seen == [before]
        and step.num_replays == before + 1
        and torch.equal(x, torch.full((3,), 35.0))
    )


@pytest.mark.parametrize("lasts", [True, False])
@pytest.mark.parametrize("first", [3, 23, 24, 25, 26, 97, 98])
def test_what_no_guard_sees_is_found_by_the_next_comparison(first, lasts, monkeypatch):
    monkeypatch.setattr(Guards, "hold", lambda guards: True)
    monkeypatch.setattr(Guards, "change", lambda guards: None)
    x = torch.zeros(3)

    def update():
        x.add_(1)
        if (number >= first) if lasts else (number == first):
            x.mul_(2)

    step = Captured(update)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number in range(1, 301):  # noqa: B007 (a cell of the update)
            step()
    is_seen = lasts or first <= 25 or first % 97 == 0
    assert len(caught) == is_seen and step.is_captured == (not is_seen)
    if is_seen and lasts:
        compared = next(n for n in (*range(1, 26), 97, 194) if n >= first)
        assert step.num_replays == len(range(26, compared)) - (compared > 97)
    elif first == 24:  # the light recording was made of this call
        assert step.num_replays == len(range(26, 97))


def test_a_shape_or_a_gradient_that_is_changed_in_place_is_seen():
    x, total = torch.arange(6.0).reshape(2, 3), torch.zeros(2)

    def update():
        total.add_(x.sum(1)[:2])

    step = Captured(update)
    for _ in range(30):
        step()
    assert step.num_replays > 0
    total.zero_()
    x.resize_(3, 2)  # in the same memory
    step()
    assert total.tolist() == [1.0, 5.0]

    known = next(iter(step._captures.values()))
    assert known.guards is None or known.guards.hold()
    guards = Guards(update, set())
    x.grad = torch.ones(3, 2)
    assert not guards.hold()
