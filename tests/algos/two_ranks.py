"""Program for two ranks, ``two_ranks.py FOLDER``, whose results `test_ranks.py` checks.

Each scenario function trains in the folder ``FOLDER/<function>`` and returns facts, which each rank
writes to ``facts_<rank>.json`` in this folder. All scenarios share one program because starting
ranks takes longer than these runs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from spinup.utils.buffers import ReplayBuffer
from spinup.utils.mpi_tools import proc_id
from tests.algos.envs import Made
from tests.algos.runs import ALGORITHMS, OFF_POLICY, train


def same_seeds(folder):
    for name, seed in [("first", 5), ("again", 5), ("other", 6)]:
        for algorithm in ALGORITHMS:
            kwargs = dict(seed=seed, steps_per_epoch=101, max_ep_len=25)
            train(algorithm, "Pendulum-v1", folder / f"{algorithm}-{name}", **kwargs)


def shared_steps(folder):
    facts = {}
    for algorithm in ALGORITHMS:
        made = Made(length=6)
        kwargs = dict(num_test_episodes=3) if algorithm in OFF_POLICY else {}
        train(algorithm, made, folder / algorithm, steps_per_epoch=21, **kwargs)
        facts[algorithm] = dict(seed=made.env.seeds[0], steps=[env.total for env in made.envs])
    return facts


def turns(folder):
    facts = {}
    for algorithm in OFF_POLICY:
        made, updates = Made(length=6), []
        kwargs = dict(epochs=1, batch_size=9, start_steps=0, update_after=5, update_every=5)
        with pytest.MonkeyPatch.context() as patch:
            recorder = _recorder(made, updates)
            patch.setattr(f"spinup.algos.{algorithm}.ReplayBuffer", recorder)
            train(algorithm, made, folder / algorithm, **kwargs)
        facts[algorithm] = updates
    return facts


def _recorder(made, updates):
    class Recorder(ReplayBuffer):
        def _draw(self, out):
            updates.append([made.env.total, len(out)])
            super()._draw(out)

    return Recorder


def earliest_updates(folder):
    for algorithm in OFF_POLICY:
        kwargs = dict(update_after=0, update_every=1, epochs=1, steps_per_epoch=4)
        train(algorithm, Made(), folder / algorithm, **kwargs)


def unfinished_episodes(folder):
    for algorithm in ALGORITHMS:
        for name, length in [("one", 5 if proc_id() == 1 else None), ("none", None)]:
            made = Made(length=length)
            train(
                algorithm,
                made,
                folder / f"{algorithm}-{name}",
                max_ep_len=1000,
                **_no_tests(algorithm),
            )


def _no_tests(algorithm):
    return dict(num_test_episodes=0) if algorithm in OFF_POLICY else {}


def too_few_to_split(folder):
    messages = {}
    for algorithm, name in [
        ("ppo", "steps_per_epoch"),
        ("sac", "batch_size"),
        ("td3", "replay_size"),
    ]:
        with pytest.raises(ValueError) as refused:
            train(algorithm, Made(), folder / algorithm, **{name: 1})
        messages[name] = str(refused.value)
    return messages


def infinite_loss(folder):
    messages = {}
    for algorithm in ALGORITHMS:
        made = Made(length=5, rew=lambda t: 1e25 if proc_id() == 1 else 1.0)
        with pytest.raises(FloatingPointError) as stopped:
            train(algorithm, made, folder / algorithm)
        messages[algorithm] = str(stopped.value)
    return messages


if __name__ == "__main__":
    scenarios = (
        same_seeds,
        shared_steps,
        turns,
        earliest_updates,
        unfinished_episodes,
        too_few_to_split,
        infinite_loss,
    )
    for scenario in scenarios:
        folder = Path(sys.argv[1], scenario.__name__)
        folder.mkdir(exist_ok=True)
        facts = scenario(folder)
        (folder / f"facts_{proc_id()}.json").write_text(json.dumps(facts))
