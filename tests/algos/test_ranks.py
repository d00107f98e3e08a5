"""Rules that every algorithm keeps on several ranks, tested under a real mpiexec."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from tests.algos import fixed_data, two_ranks
from tests.algos.runs import ALGORITHMS, OFF_POLICY, ON_POLICY, read_progress, timeless_progress

pytestmark = [pytest.mark.mpi, pytest.mark.filterwarnings("ignore:.* ranks on .* core")]


# --- The same update on any number of ranks -------------------------------------------------------


# Numbers of ranks, and of ranks for each learner. The last group of (3, 2) has only one rank.
RANKS = [(2, 1), (3, 1), (2, 2), (3, 3), (3, 2)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders for the results on fixed data, by numbers of ranks; each is filled once."""
    return {n: tmp_path_factory.mktemp("{}_ranks_by_{}".format(*n)) for n in [(1, 1), *RANKS]}


@pytest.fixture
def trained(folders, run_on_ranks):
    """Function of the numbers of ranks; returns the folder with the results of their training."""

    def train(ranks=(1, 1)):
        num_ranks, per_learner = ranks
        if not any(folders[ranks].iterdir()):
            env = {"SPINUP_RANKS_PER_LEARNER": str(per_learner)}
            args = [str(folders[ranks])]
            run_on_ranks(num_ranks, Path(fixed_data.__file__), args, timeout=180, env=env)
        return folders[ranks]

    return train


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize(
    "name, size", [(name, size) for name, sizes in fixed_data.SIZES.items() for size in sizes]
)
def test_ranks_compute_the_update_of_one(trained, name, size, ranks):
    one, several = (trained(n) / f"{name}-{size}" for n in ((1, 1), ranks))
    expected = np.load(f"{one}-0.npz")
    of_ranks = [np.load(f"{several}-{rank}.npz") for rank in range(ranks[0])]
    for params in of_ranks:
        assert set(params) == set(expected)
    for key in expected:
        assert_allclose(of_ranks[0][key], expected[key], atol=1e-5, rtol=0, err_msg=key)
        # All ranks take one and the same step, or fetch it from their learner.
        assert all(np.array_equal(params[key], of_ranks[0][key]) for params in of_ranks), key


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("algorithm", ON_POLICY)
def test_ranks_log_what_one_does(trained, algorithm, ranks):
    expected, progress = (read_progress(trained(n) / f"{algorithm}-61") for n in ((1, 1), ranks))
    if algorithm == "ppo":
        assert expected["StopIter"].min() < 15  # the average KL of all ranks stops its steps
    for key in expected.keys() - {"Time"}:
        assert_allclose(progress[key], expected[key], atol=1e-5, err_msg=key)


@pytest.mark.parametrize("ranks", RANKS)
def test_ranks_stop_where_one_does(trained, ranks):
    def stops(n):
        folders = (trained(n) / f"stops-{i}" for i in range(len(fixed_data.TARGET_KLS)))
        return [int(read_progress(folder)["StopIter"][0]) for folder in folders]

    assert len(set(stops((1, 1)))) > 4
    assert stops(ranks) == stops((1, 1))


# --- Two ranks ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory):
    return tmp_path_factory.mktemp("two_ranks")


@pytest.fixture
def ran(scenarios, run_on_ranks):
    """Function of a scenario's name; returns its folder and the facts of each rank."""

    def look(name):
        if not any(scenarios.iterdir()):
            run_on_ranks(2, Path(two_ranks.__file__), [str(scenarios)], timeout=180)
        folder = scenarios / name
        return folder, [json.loads((folder / f"facts_{r}.json").read_text()) for r in (0, 1)]

    return look


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_same_seed_and_ranks_same_progress(ran, algorithm):
    folder, _ = ran("same_seeds")
    first, again, other = (
        timeless_progress(folder / f"{algorithm}-{name}") for name in ("first", "again", "other")
    )
    assert first == again
    assert first != other


def test_ranks_share_steps_and_seed_their_environments_apart(ran):
    folder, facts = ran("shared_steps")
    for algorithm in ON_POLICY:
        # Each epoch's 21 steps are split.
        assert facts[0][algorithm] == dict(seed=3, steps=[22])
        assert facts[1][algorithm] == dict(seed=10003, steps=[20])
    for algorithm in OFF_POLICY:
        # 42 steps in turn. Rank 0 runs two of the three test episodes of an epoch (6 steps each).
        assert facts[0][algorithm] == dict(seed=3, steps=[21, 24])
        assert facts[1][algorithm] == dict(seed=10003, steps=[21, 12])
    for algorithm in ALGORITHMS:
        assert read_progress(folder / algorithm)["TotalEnvInteracts"].tolist() == [21, 42]


@pytest.mark.parametrize("algorithm", OFF_POLICY)
def test_ranks_take_turns_and_split_minibatches(ran, algorithm):
    _, facts = ran("turns")
    # Five updates after 5, 10, 15 and 20 steps of both ranks; rank 1 takes the first step.
    for rank, steps, batch_size in [(0, [2, 5, 7, 10], 5), (1, [3, 5, 8, 10], 4)]:
        assert facts[rank][algorithm] == [[n, batch_size] for n in steps for _ in range(5)]


@pytest.mark.parametrize("algorithm", OFF_POLICY)
def test_updates_wait_until_each_rank_has_a_transition(ran, algorithm):
    folder, _ = ran("earliest_updates")
    assert np.isfinite(read_progress(folder / algorithm)["LossQ"]).all()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_rank_may_finish_no_episode(ran, algorithm):
    folder, _ = ran("unfinished_episodes")
    one, none = (read_progress(folder / f"{algorithm}-{name}") for name in ("one", "none"))
    for key in ("AverageEpRet", "MaxEpRet", "MinEpRet", "EpLen"):
        assert one[key].tolist() == [5, 5]
        assert np.isnan(none[key]).all()
    assert one["StdEpRet"].tolist() == [0, 0]


def test_what_cannot_be_split_is_refused(ran):
    _, facts = ran("too_few_to_split")
    for messages in facts:
        for name in ("steps_per_epoch", "batch_size", "replay_size"):
            expected = "must be a whole number of at least 2 (one per rank, with 2 ranks), not 1"
            assert messages[name] == f"{name} {expected}"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_loss_that_is_infinite_on_one_rank_stops_all(ran, algorithm):
    folder, facts = ran("infinite_loss")
    loss = "LossV" if algorithm in ON_POLICY else "LossQ"
    for messages in facts:
        assert f"{loss} is NaN or infinite" in messages[algorithm]
    status = json.loads((folder / algorithm / "status.json").read_text())
    assert status["state"] == "failed" and loss in status["error"]


def test_nan_in_an_observation_of_one_rank_ends_all(tmp_path, run_on_ranks):
    code = """
        import sys
        from spinup.utils.mpi_tools import proc_id
        from tests.algos.envs import Made
        from tests.algos.runs import train

        train("ppo", Made(broken_at=5 if proc_id() == 1 else None), sys.argv[1])
    """
    result = run_on_ranks(2, code, [str(tmp_path / "run")], check=False)
    assert result.returncode != 0
    assert "Clock returned NaN or infinity in the observation at step 5" in result.stderr
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "failed" and "at step 5" in status["error"]
