import functools
import json
import os
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from spinup.runs.json_values import (
    activation_names,
    convert_json,
    decode,
    encode,
    find_activation,
    import_callable,
    importable_name,
)
from tests import thunks


class Hostile:
    def __getattr__(self, name):
        raise RuntimeError("no")

    def __str__(self):
        raise RuntimeError("no")


class OldStyleName:
    __name__ = "pretends"

    def __str__(self):
        return "plain text"


# --- convert_json ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("obj", "described"),
    [
        (None, None),
        (True, True),
        (3, 3),
        (0.5, 0.5),
        ("text", "text"),
        (float("nan"), "nan"),
        (-np.inf, "-inf"),
        ((1, (2, 3)), [1, [2, 3]]),
        ({3, 1, 2}, [1, 2, 3]),
        ({1: "a", None: "b", (1, 2): "c"}, {"1": "a", "None": "b", "[1, 2]": "c"}),
        (np.float32(0.5), 0.5),
        (np.int64(7), 7),
        (np.bool_(True), True),
        (np.arange(3), [0, 1, 2]),
        (np.array([np.nan, 1.0]), ["nan", 1.0]),
        (torch.nn.Tanh, "torch.nn.modules.activation:Tanh"),
        (thunks.fake, "tests.thunks:fake"),
        (len, "builtins:len"),
        (torch.float32, "torch.float32"),
        (torch.device("cuda", 1), "cuda:1"),
        (Path("a") / "b", os.path.join("a", "b")),
        (gymnasium.spaces.Discrete(3), "Discrete(3)"),
        (gymnasium.spaces.Box(-1, 1, (2,)), "Box(-1.0, 1.0, (2,), float32)"),
        (OldStyleName(), "plain text"),
        (
            functools.partial(gymnasium.make, "CartPole-v1", max_episode_steps=9),
            {
                "partial": "gymnasium.envs.registration:make",
                "args": ["CartPole-v1"],
                "kwargs": {"max_episode_steps": 9},
            },
        ),
    ],
)
def test_describes(obj, described):
    result = convert_json(obj)
    assert result == described
    assert type(result) is type(described)
    json.dumps(result, allow_nan=False)


def test_describes_functions_without_a_name_of_their_own():
    assert convert_json(lambda: 0).startswith(f"{__name__}:test_describes_functions")


def test_addresses_are_left_out():
    class Thing:
        pass

    assert "0x" not in convert_json(Thing())
    assert convert_json(Thing()) == convert_json(Thing())


def test_never_raises():
    array = np.empty(1, dtype=object)
    array[0] = Hostile()
    text = f"<{__name__}:Hostile>"
    described = convert_json({"h": Hostile(), "a": array, Hostile(): 1})
    assert described == {"h": text, "a": [text], text: 1}


def test_cycles_end():
    cycle = {"a": 1}
    cycle["self"] = cycle
    items = [cycle]
    items.append(items)
    assert convert_json(cycle) == {"a": 1, "self": "<cycle>"}
    assert convert_json(items) == [{"a": 1, "self": "<cycle>"}, "<cycle>"]


def test_the_same_object_twice_is_no_cycle():
    shared = [1]
    assert convert_json([shared, shared]) == [[1], [1]]


# --- encode and decode ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "obj",
    [
        None,
        True,
        -3,
        0.1,
        float("inf"),
        "text",
        [1, [2.0, "x"]],
        (64, (1, ()), [2]),
        {"a": (1,), "b": {"c": None}},
        torch.nn.Tanh,
        {"hidden_sizes": (64, 64), "activation": torch.nn.ReLU},
    ],
)
def test_decode_inverts_encode(obj):
    written = json.dumps(encode(obj))
    assert repr(decode(json.loads(written))) == repr(obj)


def test_a_class_of_torch_nn_goes_by_its_name():
    assert encode({"activation": torch.nn.Tanh}) == {"activation": {"__torch.nn__": "Tanh"}}


@pytest.mark.parametrize(
    "obj",
    [
        lambda: 0,
        thunks.fake,
        np.float64(1),
        {1: "key is no string"},
        {"__tuple__": "ours"},
        {1, 2},
        torch.nn.Tanh(),
        torch.nn.functional.relu,
        [object()],
    ],
)
def test_encode_refuses_the_rest(obj):
    with pytest.raises(TypeError, match="cannot be written in a JSON spec"):
        encode(obj)


@pytest.mark.parametrize("name", ["functional", "Nope", "os.system", "init", "Tanh.__init__", 3])
def test_decode_takes_no_other_name_for_a_class(name):
    with pytest.raises(
        ValueError, match=r"is not the name of a class in torch\.nn, such as 'Tanh'"
    ):
        decode({"__torch.nn__": name})


# --- Names of functions ---------------------------------------------------------------------------


def test_importable_names():
    def nested():
        pass

    from_main = function_of("__main__")
    assert importable_name(thunks.fake) == "tests.thunks:fake"
    assert importable_name(gymnasium.make) == "gymnasium.envs.registration:make"
    assert importable_name(Path.exists) == "pathlib:Path.exists"
    assert importable_name(nested) is None
    assert importable_name(lambda: 0) is None
    assert importable_name(functools.partial(thunks.fake)) is None
    assert importable_name(from_main) is None


def function_of(module):
    def function():
        pass

    function.__module__, function.__qualname__ = module, "function"
    sys.modules[module].function = function
    return function


def test_a_name_that_leads_to_something_else_is_not_importable(monkeypatch):
    original = thunks.fake
    monkeypatch.setattr(thunks, "fake", lambda: 0)
    assert importable_name(original) is None


def test_import_callable():
    assert import_callable("tests.thunks:fake") is thunks.fake
    assert import_callable("pathlib:Path.cwd")() == Path.cwd()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fake", "write it as 'module:function'"),
        (":fake", "write it as 'module:function'"),
        ("tests.thunks:", "write it as 'module:function'"),
        ("tests.nothing:fake", "Cannot import 'tests.nothing:fake': No module named"),
        (
            "tests.thunks:nothing",
            "Cannot import 'tests.thunks:nothing': module 'tests.thunks' has no",
        ),
        ("sys:path", "'sys:path' cannot be called; it is a list"),
    ],
)
def test_import_callable_refuses(name, message):
    with pytest.raises(ValueError, match=message):
        import_callable(name)


# --- Activations by name ---


@pytest.mark.parametrize(
    "name, found",
    [
        ("tanh", torch.nn.Tanh),
        ("ReLU", torch.nn.ReLU),
        ("nn.silu", torch.nn.SiLU),
        ("torch.nn.ELU", torch.nn.ELU),
        ("linear", None),  # which needs arguments
        ("functional", None),
        ("os.system", None),
        ("", None),
    ],
)
def test_finds_activations(name, found):
    assert find_activation(name) is found


def test_every_name_of_an_activation_finds_one():
    assert {"relu", "tanh", "silu"} < {*activation_names()}
    assert all(find_activation(name) for name in activation_names())
