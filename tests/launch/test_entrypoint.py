import json
import os
import pickle

import pytest

from spinup.launch.entrypoint import execute, with_env_fn
from spinup.launch.spec import read_spec
from spinup.runs.folder import read_status
from spinup.runs.wording import describe_error
from tests.thunks import fake


class Touch:
    """An object whose unpickling makes a folder."""

    def __reduce__(self):
        return os.mkdir, ("PWNED",)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_pickle(path, content, mode):
    path.write_bytes(pickle.dumps(content))
    path.chmod(mode)
    return str(path)


def test_reads_a_spec(here):
    spec = here / "experiment.json"
    spec.write_text(
        json.dumps(
            {"thunk": "tests.thunks:fake", "kwargs": {"a": {"__tuple__": [1]}}, "num_cpu": 1}
        )
    )
    assert read_spec(str(spec)) == (fake, {"a": (1,)})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not the spec of an experiment"),
        ("[]", "is not the spec of an experiment"),
        ('{"kwargs": {}}', "is not the spec of an experiment: KeyError"),
        ('{"thunk": "os.system", "kwargs": {}}', "write it as 'module:function'"),
        ('{"thunk": "os:nothing", "kwargs": {}}', "Cannot import 'os:nothing'"),
        ('{"thunk": "os:name", "kwargs": {}}', "'os:name' cannot be called"),
    ],
)
def test_a_spec_that_is_none(here, text, message):
    spec = here / "experiment.json"
    spec.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_spec(str(spec))


def test_a_pickle_is_read_from_a_private_file_only(here):
    private = write_pickle(here / "a.pkl", (fake, {"seed": 1}), 0o600)
    assert read_spec(private) == (fake, {"seed": 1})
    for mode in (0o644, 0o620, 0o602):
        shared = write_pickle(here / "b.pkl", Touch(), mode)
        with pytest.raises(ValueError, match=r"is not private to this user \(mode 0600\)"):
            read_spec(shared)
    assert not (here / "PWNED").exists()


def test_a_pickle_under_another_name_is_not_unpickled(here):
    spec = write_pickle(here / "experiment.json", Touch(), 0o600)
    with pytest.raises(ValueError, match="is not the spec of an experiment"):
        read_spec(spec)
    assert not (here / "PWNED").exists()


def test_env_name_becomes_env_fn():
    assert with_env_fn({"env_name": "CartPole-v1", "seed": 1}) == {
        "env_fn": "CartPole-v1",
        "seed": 1,
    }
    assert with_env_fn({"env_name": "CartPole-v1", "env_kwargs": {}})["env_fn"] == "CartPole-v1"
    made = with_env_fn({"env_name": "CartPole-v1", "env_kwargs": {"max_episode_steps": 7}})
    assert made["env_fn"]().spec.max_episode_steps == 7
    assert with_env_fn({"env_fn": 3}) == {"env_fn": 3}


def test_the_end_of_a_function_without_a_logger_is_recorded(here):
    def fails(logger_kwargs):
        raise KeyError("why")

    kwargs = {"logger_kwargs": {"output_dir": "run"}}
    assert execute(lambda logger_kwargs: 42, kwargs) == 42
    assert read_status("run") == {"state": "finished", "error": None}
    with pytest.raises(KeyError):
        execute(fails, {"logger_kwargs": {"output_dir": "other"}})
    assert read_status("other") == {"state": "failed", "error": "KeyError: 'why'"}
    assert execute(lambda: 1, {}) == 1


def test_describes_errors_in_one_line():
    assert describe_error(ValueError("a\n  b")) == "ValueError: a b"
    assert describe_error(KeyboardInterrupt()) == "KeyboardInterrupt"
