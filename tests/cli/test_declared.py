"""Tests of stand-ins for algorithms, against the algorithms themselves."""

import importlib
import inspect
import typing

import pytest

from spinup.algos import ALGORITHMS
from spinup.cli import declared as declared_module
from spinup.cli.declared import declared
from spinup.cli.flags import parameters_of, read_docstring
from spinup.runs.json_values import importable_name
from spinup.utils.hyperparameters import check_hyperparameters


def imported(name):
    return getattr(importlib.import_module(f"spinup.algos.{name}"), name)


def stand_in(name):
    return declared(f"spinup.algos.{name}", name)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_stand_in_describes_the_function(name):
    ours, real = stand_in(name), imported(name)
    assert (ours.__module__, ours.__name__) == (real.__module__, real.__name__)
    assert inspect.getdoc(ours) == inspect.getdoc(real)
    assert read_docstring(ours) == read_docstring(real)
    both = [inspect.signature(f).parameters for f in (ours, real)]
    assert [*both[0]] == [*both[1]]
    for key, parameter in both[0].items():
        same = both[1][key]
        assert parameter.annotation == same.annotation
        assert parameter.kind == same.kind
        if key == "actor_critic":
            assert importable_name(parameter.default) == importable_name(same.default)
        else:
            assert parameter.default == same.default
            assert type(parameter.default) is type(same.default)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_stand_in_has_the_same_flags(name):
    ours, real = parameters_of(stand_in(name)), parameters_of(imported(name))
    assert ours.keys() == real.keys()
    for key in ours:
        assert ours[key].kinds == real[key].kinds
        assert ours[key].meaning == real[key].meaning


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_checks_of_values_know_the_same_types(name):
    ours = typing.get_type_hints(stand_in(name))
    real = typing.get_type_hints(imported(name))
    numbers = [k for k, hint in real.items() if {int, float, bool} & {hint, *typing.get_args(hint)}]
    assert len(numbers) > 8
    assert {k: ours[k] for k in numbers} == {k: real[k] for k in numbers}
    words = dict(device="cpu", ac_kwargs={"hidden_sizes": [8, 8], "activation": "tanh"})
    assert check_hyperparameters(stand_in(name), words) == check_hyperparameters(
        imported(name), words
    )
    for wrong in (
        dict(gamma=1.5),
        dict(epochs=0),
        dict(ac_kwargs={"hidden_size": [8]}),
        dict(ac_kwargs={"hidden_sizes": 64}),
        dict(ac_kwargs={"activation": "tanhh"}),
        dict(on_epoch=3),
    ):
        with pytest.raises(ValueError) as refused:
            check_hyperparameters(imported(name), wrong)
        with pytest.raises(ValueError) as by_stand_in:
            check_hyperparameters(stand_in(name), wrong)
        assert str(by_stand_in.value) == str(refused.value)


def test_a_stand_in_can_be_called_and_found_by_its_name(tmp_path):
    ppo = stand_in("ppo")
    assert importable_name(ppo) == "spinup.algos.ppo:ppo"
    ac = ppo(
        "CartPole-v1",
        epochs=1,
        steps_per_epoch=50,
        ac_kwargs=dict(hidden_sizes=(4,)),
        logger_kwargs=dict(output_dir=tmp_path),
    )
    assert len(list(ac.parameters())) > 0


UNREADABLE = {
    "no such function": "def other(): pass",
    "a function that is made": "ppo = decorated(lambda env_fn: 1)",
    "arguments without names": "def ppo(*args): pass",
    "a default by name": "import math\ndef ppo(env_fn, lr: float = math.inf): pass",
    "a call with a keyword": "def ppo(env_fn, epochs=int('10', base=2)): pass",
    "a class without a constructor": "class A: pass\ndef ppo(env_fn, networks=A): pass",
    "a relative import": "from .nets import A\ndef ppo(env_fn, networks=A): pass",
    "a circle": "from unreadable import A\ndef ppo(env_fn, networks=A): pass",
    "a default that is computed": "def ppo(env_fn, lr=10 ** -3): pass",
    "a default from elsewhere": "def ppo(env_fn, actor_critic=Networks): pass",
    "no Python": "def ppo(:",
}


@pytest.mark.parametrize("source", UNREADABLE.values(), ids=UNREADABLE)
def test_other_sources_are_left_to_an_import(source, tmp_path, monkeypatch):
    (tmp_path / "unreadable.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    with pytest.raises(ValueError):
        declared("unreadable", "ppo")
    with pytest.raises(ValueError):
        declared("there_is_no_such_module", "ppo")


def test_an_algorithm_whose_source_cannot_be_read_is_imported(monkeypatch):
    from spinup.cli.main import find_algorithm

    def unreadable(module):
        raise OSError("only compiled files are installed")

    monkeypatch.setattr(declared_module, "_parse", unreadable)
    assert find_algorithm("ppo") is imported("ppo")
