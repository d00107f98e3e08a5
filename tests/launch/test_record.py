import json

import pytest

from spinup.launch.processes import Experiment, Outcome
from spinup.launch.record import Record
from tests.launch.grids import grid_of
from tests.thunks import fake


def test_a_grids_record(here):
    grid = grid_of("g", seed=[0, 1, 2], ending=["finish"])
    grid.run(fake, jobs=2)
    record = json.loads((here / "data/g.grid.json").read_text())
    assert [(v["folder"], v["state"]) for v in record["variants"]] == [
        (f"g/g_s{seed}", "finished") for seed in range(3)
    ]
    grid = grid_of("g", seed=[1, 3], ending=["exit"])
    with pytest.raises(RuntimeError):
        grid.run(fake, overwrite=True)
    variants = json.loads((here / "data/g.grid.json").read_text())["variants"]
    assert {v["folder"]: v["state"] for v in variants} == {
        "g/g_s0": "finished",
        "g/g_s1": "failed",
        "g/g_s2": "finished",
        "g/g_s3": "failed",
    }
    assert all(v["reason"] for v in variants if v["state"] == "failed")


def test_two_grids_of_one_name_share_a_record(here):
    experiments = [Experiment("g", fake, dict(logger_kwargs=dict(output_dir=x))) for x in "ab"]
    records = [Record(here / "g.grid.json", [here / x]) for x in "ab"]
    for experiment, record in zip(experiments, records):
        record.started(experiment)
        record.ended(Outcome(experiment, "finished", "", 1.5, {"epoch": 2}))
    variants = json.loads((here / "g.grid.json").read_text())["variants"]
    assert [(v["folder"], v["state"], v["epoch"]) for v in variants] == [
        ("a", "finished", 2),
        ("b", "finished", 2),
    ]
