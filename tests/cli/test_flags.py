import pytest
import torch

from spinup.cli.flags import (
    UsageError,
    parameters_of,
    read_docstring,
    read_value,
    split_flags,
)
from spinup.utils.nets import MLPActorCritic


def algorithm(
    env_fn,
    actor_critic=MLPActorCritic,
    ac_kwargs: dict | None = None,
    seed: int = 0,
    alpha: "float | str" = 0.2,
    plain=True,
    logger_kwargs=None,
):
    """Trains.

    Args:
        env_fn: environment.
        seed (int): the `seed`, a
            whole number.
        alpha: temperature: at least 0.

    Returns:
        nothing: at all.
    """


def split(line):
    return [(f.typed, f.key, f.shorthand, f.values) for f in split_flags(line.split())]


# --- Words to flags -------------------------------------------------------------------------------


def test_every_form_of_a_flag():
    assert split("--a 1 2 --b[x] 3 --c=4 5 --d[y]=6 --e --f:g:h v --k[] 7 --m=a=b --n=") == [
        ("a", "a", None, ["1", "2"]),
        ("c", "c", None, ["4", "5"]),
        ("e", "e", None, []),
        ("f:g:h", "f:g:h", None, ["v"]),
        ("m", "m", None, ["a=b"]),
        ("n", "n", None, [""]),
        ("b", "b", "x", ["3"]),
        ("d", "d", "y", ["6"]),
        ("k", "k", "", ["7"]),
    ]


def test_short_names_stand_for_long_ones_in_spinning_ups_order():
    line = "--dt --cpu 2 --act tanh --hid[h] [32] --seed 1 --env E --gamma[g] 1 --lam 1"
    assert split(line) == [
        ("seed", "seed", None, ["1"]),
        ("lam", "lam", None, ["1"]),
        ("gamma", "gamma", "g", ["1"]),
        ("env", "env_name", None, ["E"]),
        ("hid", "ac_kwargs:hidden_sizes", "h", ["[32]"]),
        ("act", "ac_kwargs:activation", None, ["tanh"]),
        ("cpu", "num_cpu", None, ["2"]),
        ("dt", "datestamp", None, []),
    ]


def test_negative_numbers_are_values():
    assert split("--x -1 -2.5 -1e-3 -.5 -inf - ") == [
        ("x", "x", None, ["-1", "-2.5", "-1e-3", "-.5", "-inf", "-"])
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 --a", "'1' follows no flag"),
        ("-seed 1", "'-seed' is not a flag: flags begin with two dashes, --seed"),
        ("--a 1 -b 2", "'-b' is not a flag"),
        ("--", "'--' is not a flag"),
        ("--1 2", "'--1' is not a flag"),
        ("--a[x 1", r"'--a\[x' is not a flag: write --name, --name\[short\] or --name=value"),
        ("--a 1 --a 2", "--a is given twice: put all its values after one flag"),
        ("--env A --env_name B", "--env_name is given twice"),
    ],
)
def test_what_is_no_flag(line, message):
    with pytest.raises(UsageError, match=message):
        split(line)


# --- Words to values ------------------------------------------------------------------------------

INT, FLOAT, BOOL, STR = ("int",), ("float",), ("bool",), ("str",)
SIZES, CLASS, DICT, MIXED, ANY = ("Sequence",), ("type",), ("dict", "None"), ("float", "str"), ()


@pytest.mark.parametrize(
    ("kinds", "text", "value"),
    [
        (INT, "3", 3),
        (INT, "1e6", 1000000),
        (INT, "-2", -2),
        (FLOAT, "3", 3),
        (FLOAT, "1e-3", 0.001),
        (BOOL, "true", True),
        (BOOL, "False", False),
        (STR, "cuda:1", "cuda:1"),
        (STR, "123", "123"),
        (STR, "'quoted'", "quoted"),
        (STR, "linear", "linear"),
        (STR, "__import__('os')", "__import__('os')"),
        (SIZES, "[64,64]", [64, 64]),
        (SIZES, "(32,)", (32,)),
        (SIZES, "[]", []),
        (CLASS, "tanh", torch.nn.Tanh),
        (CLASS, "ReLU", torch.nn.ReLU),
        (CLASS, "torch.nn.ELU", torch.nn.ELU),
        (CLASS, "nn.silu", torch.nn.SiLU),
        (DICT, "{'a': 1}", {"a": 1}),
        (DICT, "None", None),
        (MIXED, "0.5", 0.5),
        (MIXED, "auto", "auto"),
        (ANY, "[1,'x']", [1, "x"]),
        (ANY, "true", True),
        (ANY, "linear", "linear"),
        (ANY, "torch.nn.Tanh", torch.nn.Tanh),
        (ANY, "os.system", "os.system"),
    ],
)
def test_reads(kinds, text, value):
    result = read_value("x", text, kinds)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("kinds", "text", "message"),
    [
        (INT, "ten", "--x expects a whole number, not 'ten'"),
        (INT, "1.5", "--x expects a whole number, not '1.5'"),
        (INT, "1e400", "--x expects a whole number, not '1e400'"),
        (INT, "True", "--x expects a whole number, not 'True'"),
        (INT, "[1]", r"--x expects a whole number, not '\[1\]'"),
        (FLOAT, "abc", "--x expects a number, not 'abc'"),
        (FLOAT, "1+2j", r"--x expects a number, not '1\+2j'"),
        (FLOAT, "", "--x expects a number, not ''"),
        (BOOL, "1", "--x expects true or false, not '1'"),
        (SIZES, "64", r"--x expects a list of whole numbers such as \[64,64\], not '64'"),
        (SIZES, "[64,", "write it without spaces, or in quotes"),
        (SIZES, "[64.5]", "--x expects a list of whole numbers"),
        (SIZES, "[-1]", "--x expects a list of whole numbers"),
        (SIZES, "[True]", "--x expects a list of whole numbers"),
        (CLASS, "tnh", "an activation of torch.nn such as tanh, not 'tnh'; did you mean tanh?"),
        (CLASS, "linear", "an activation of torch.nn such as tanh, not 'linear'"),
        (CLASS, "os.system", "not 'os.system'"),
        (CLASS, "functional", "not 'functional'"),
        (DICT, "x", "--x expects a dict such as"),
        (INT, "(" * 5000, "--x expects a whole number"),
    ],
)
def test_refuses(kinds, text, message):
    with pytest.raises(UsageError, match=message):
        read_value("x", text, kinds)


# --- Parameters of an algorithm -------------------------------------------------------------------


def test_parameters_come_from_signature_and_docstring():
    found = {key: (p.kinds, p.default, p.meaning) for key, p in parameters_of(algorithm).items()}
    assert found == {
        "ac_kwargs": (("dict", "None"), None, ""),
        "seed": (("int",), 0, "the seed, a whole number"),
        "alpha": (("float", "str"), 0.2, "temperature: at least 0"),
        "plain": (("bool",), True, ""),
        "actor_critic": (
            ("network",),
            MLPActorCritic,
            "your own class of networks, module:Class",
        ),
        "ac_kwargs:hidden_sizes": (
            ("Sequence",),
            (64, 64),
            "number of units in each hidden layer of both networks",
        ),
        "ac_kwargs:activation": (("type",), torch.nn.Tanh, "class of the activation"),
    }


def test_reads_a_docstring():
    summary, meanings = read_docstring(algorithm)
    assert summary == "Trains."
    assert meanings == {
        "env_fn": "environment",
        "seed": "the seed, a whole number",
        "alpha": "temperature: at least 0",
    }
    assert read_docstring(lambda: 0) == ("", {})


def test_parameters_of_own_networks():
    class Own(torch.nn.Module):
        def __init__(self, observation_space, action_space, width: int = 8):
            """Makes them.

            Args:
                width: units.
            """

    parameters = parameters_of(algorithm, [Own])
    assert parameters["ac_kwargs:width"].kinds == ("int",)
    assert not {"ac_kwargs:hidden_sizes", "ac_kwargs:observation_space"} & parameters.keys()
    assert {"ac_kwargs:width", "ac_kwargs:activation"} <= parameters_of(
        algorithm, [Own, MLPActorCritic]
    ).keys()


def test_networks_are_named_by_module_and_class():
    name = "spinup.utils.nets:MLPActorCritic"
    assert read_value("actor_critic", name, ("network",)) == name
    for text, message in [
        ("spinup.utils.nets:mlp", "expects a subclass of torch.nn.Module, module:Class, not"),
        ("os:system", "expects a subclass of torch.nn.Module"),
        ("os.system", "is not the name of a function: write it as 'module:function'"),
        ("spinup.utils.nets:Nope", "--actor_critic spinup.utils.nets:Nope: Cannot import"),
    ]:
        with pytest.raises(UsageError, match=message):
            read_value("actor_critic", text, ("network",))
