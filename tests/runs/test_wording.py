from spinup.runs.wording import one_line, plural


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
