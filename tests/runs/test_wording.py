from spinup.runs.wording import one_line


def test_one_line():
    assert one_line(ValueError("a\n  b\tc ")) == "a b c"
    assert one_line(KeyError()) == "KeyError"
    assert one_line("a\nb") == "a b"
