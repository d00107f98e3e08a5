import pytest

from spinup.cli.parser import Parser


def test_a_mistake_is_one_line_and_status_2(capsys):
    parser = Parser("plot", "Draws.")
    parser.add_argument("folder")
    assert parser.parse_args(["x"]).folder == "x"
    with pytest.raises(SystemExit) as end:
        parser.parse_args(["x", "y"])
    assert end.value.code == 2
    assert capsys.readouterr().err == "spinup plot: unrecognized arguments: y\n"
    with pytest.raises(SystemExit) as end:
        parser.parse_args(["--help"])
    assert end.value.code == 0
    assert "Draws." in capsys.readouterr().out
