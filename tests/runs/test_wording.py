from spinup.runs.interrupts import Interrupted
from spinup.runs.wording import (
    clock,
    describe_error,
    one_line,
    plural,
    short_path,
    short_return,
    with_commas,
)


def test_one_line():
    assert one_line(ValueError("a\n  b\tc ")) == "a b c"
    assert one_line(KeyError()) == "KeyError"
    assert one_line("a\nb") == "a b"


def test_plural():
    assert [plural(n, "usable core") for n in (0, 1, 2)] == [
        "0 usable cores",
        "1 usable core",
        "2 usable cores",
    ]


def test_an_error_with_its_type_and_notes():
    error = ValueError("a\n b")
    assert describe_error(error) == "ValueError: a b"
    error.__notes__ = ["raised by\nX", "twice"]
    assert describe_error(error) == "ValueError: a b; raised by X; twice"
    assert describe_error(KeyError()) == "KeyError"
    stopped = Interrupted(15, 4000)
    assert describe_error(stopped) == str(stopped)


def test_numbers():
    assert [clock(s) for s in (0, 59.6, 61, 3725, None)] == ["0:00", "1:00", "1:01", "1:02:05", ""]
    assert (with_commas(12000.0), with_commas(None)) == ("12,000", "")


def test_a_return_of_a_task_whose_returns_are_small_keeps_its_digits():
    values = [None, 0, -1234.56, 15.04, 1, 0.0952, -0.5, 0.00012345]  # FrozenLake's is 0.0952
    shown = ["", "0.0", "-1,234.6", "15.0", "1.0", "0.0952", "-0.5", "0.000123"]
    assert [short_return(value) for value in values] == shown


def test_paths(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert short_path(tmp_path / "here" / "data") == "data"
    assert short_path(tmp_path / "there") == str(tmp_path / "there")
