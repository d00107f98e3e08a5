"""The fast path learns as well as plain PyTorch: see tests/benchmarks/parity.py."""

from pathlib import Path

import pytest

from tests.benchmarks import parity

PAGE = Path(__file__).parents[2] / "docs" / "speed.md"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("algo, least", [("td3", 60), ("sac", 60), ("ppo", 60)])
def test_walker2d_is_learned_on_both_sides(algo, least):
    # With a tanh that never reached one, TD3's weights here were 14 to 18 after 40,000 steps, and
    # its policy chose the same action in every state.
    pytest.importorskip("mujoco")
    for side in parity.SIDES:
        row, error = parity.run((algo, "Walker2d-v5", 40_000, 100, side))
        assert not error
        figures = dict(zip(parity.FIGURES, row[len(parity.KEYS) :], strict=True))
        assert figures["return"] > least
        assert figures["weight_rms"] < 1
        assert figures["pre99"] < 100


def test_the_table_is_that_of_the_runs():
    assert parity.table(parity.RUNS) in PAGE.read_text(encoding="utf-8")


def test_the_table_by_hand(tmp_path):
    runs = tmp_path / "runs.csv"
    runs.write_text(
        "algo,env,steps,seed,side,return,pre50,pre99,pre_max,weight_rms,seconds\n"
        "td3,Walker2d-v5,100000,0,fast,100,1,5,9,0.1,1\n"
        "td3,Walker2d-v5,100000,10,fast,300,3,7,20,0.1,1\n"
        "td3,Walker2d-v5,100000,0,plain,150,2,6,8,0.1,1\n"
    )
    table = parity.table(runs)
    assert table.splitlines()[2:] == [
        "| TD3, Walker2d-v5 | 100,000 | 2, 1 | 200 ± 100 | 150 ± 0 | 2, 6, 20 | 2, 6, 8 |"
    ]
    page = tmp_path / "page.md"
    heading = "".join(table.splitlines(keepends=True)[:2])
    page.write_text(f"Before\n\n{heading}| old |\n| rows |\n\nAfter\n")
    parity.put_into(page, table)
    assert page.read_text() == f"Before\n\n{table}\nAfter\n"


def test_what_has_run_is_not_run_again(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(parity, "run", lambda job: (ran.append(job), ([*job, *range(6)], ""))[1])
    words = ["parity", "--runs", str(tmp_path / "runs.csv"), "--algos", "ppo", "--seeds", "0", "10"]
    monkeypatch.setattr("sys.argv", words)
    parity.main()
    assert len(ran) == 12
    monkeypatch.setattr("sys.argv", [*words, "20"])
    parity.main()
    assert len(ran) == 18 and {job[3] for job in ran[12:]} == {20}
    assert len(parity.read(tmp_path / "runs.csv")) == 18
