"""Tests of each epoch's end: the best policy is kept, and a function may end the run."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from spinup.algos import ALGORITHMS
from spinup.cli.policies import load_actor_critic
from spinup.runs.folder import read_status
from tests.algos.runs import ON_POLICY, read_progress, timeless_progress, train

all_algorithms = pytest.mark.parametrize("algorithm", ALGORITHMS)


ENV = "Pendulum-v1"
SHORT = dict(max_ep_len=10)


def saved(folder, name):
    return load_file(folder / "pyt_save" / f"{name}.safetensors")


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def history(algorithm, folder, **kwargs):
    """Trains; returns the log, and the weights at each epoch's end with those before the first."""
    weights = []

    def keep(row, ac):
        weights.append({k: v.clone() for k, v in ac.state_dict().items()})

    train(algorithm, ENV, folder, epochs=6, **SHORT, on_epoch=keep, **kwargs)
    return read_progress(folder), weights


@all_algorithms
def test_the_best_policy_is_the_one_that_earned_the_highest_return(algorithm, tmp_path):
    rows, weights = history(algorithm, tmp_path / "run")
    is_on = algorithm in ON_POLICY
    returns = rows["AverageEpRet" if is_on else "AverageTestEpRet"]
    best = int(np.nanargmax(returns))
    # On-policy, an epoch's episodes were run by the policy of the epoch before
    expected = weights[best - 1] if is_on and best else weights[best]
    if not (is_on and best == 0):
        assert equal(saved(tmp_path / "run", "best"), expected)
        ac = load_actor_critic(tmp_path / "run", "best")
        assert equal(ac.state_dict(), expected)
    assert equal(saved(tmp_path / "run", "model"), weights[-1])


@all_algorithms
def test_a_function_ends_the_run_and_it_can_be_resumed(algorithm, tmp_path):
    calls = []

    def stop(row, ac):
        calls.append(row)
        return row["Epoch"] == 2

    train(algorithm, ENV, tmp_path / "whole", epochs=4, **SHORT)
    ac = train(algorithm, ENV, tmp_path / "cut", epochs=4, **SHORT, on_epoch=stop, save_freq=99)
    assert [row["Epoch"] for row in calls] == [1, 2]
    assert read_progress(tmp_path / "cut")["LossPi"][-1] == calls[-1]["LossPi"]
    assert equal(saved(tmp_path / "cut", "model"), ac.state_dict())
    assert read_status(tmp_path / "cut")["state"] == "finished"
    kwargs = dict(output_dir=tmp_path / "cut", resume=True)
    train(algorithm, ENV, tmp_path / "cut", epochs=4, **SHORT, logger_kwargs=kwargs)
    assert timeless_progress(tmp_path / "cut") == timeless_progress(tmp_path / "whole")
    assert equal(saved(tmp_path / "cut", "model"), saved(tmp_path / "whole", "model"))
    assert equal(saved(tmp_path / "cut", "best"), saved(tmp_path / "whole", "best"))


def test_the_function_does_not_change_the_training(tmp_path):
    def draws(row, ac):
        torch.rand(3), np.random.rand(3)

    for name, function in (("with", draws), ("without", None)):
        train("sac", ENV, tmp_path / name, epochs=3, **SHORT, on_epoch=function)
    assert timeless_progress(tmp_path / "with") == timeless_progress(tmp_path / "without")


def test_something_else_than_a_function_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"on_epoch must be a function of the log's row .* not 3"):
        train("ppo", ENV, tmp_path, on_epoch=3)
    with pytest.raises(ValueError, match=r"Cannot import 'no_such:function'"):
        train("ppo", ENV, tmp_path, on_epoch="no_such:function")


def test_without_an_episode_nothing_is_best(tmp_path):
    train("td3", ENV, tmp_path / "run", num_test_episodes=0)
    assert not (tmp_path / "run" / "pyt_save" / "best.safetensors").exists()
    with pytest.raises(ValueError, match="no save 'best': it has last"):
        load_actor_critic(tmp_path / "run", "best")


@pytest.mark.mpi
def test_one_rank_stops_all(tmp_path, run_on_ranks):
    code = """
        from tests.algos.runs import train
        from tests.algos.test_epoch_end import ENV, SHORT
        from spinup.utils.mpi_tools import proc_id

        def stop(row, ac):
            return proc_id() == 1 and row["Epoch"] == 2

        for algorithm in ("ppo", "sac"):
            train(algorithm, ENV, algorithm, epochs=5, **SHORT, on_epoch=stop)
    """
    run_on_ranks(2, code)
    for algorithm in ("ppo", "sac"):
        assert read_progress(tmp_path / algorithm)["Epoch"].tolist() == [1, 2]
