import re

import pytest

import spinup
from spinup.algos import ALGORITHMS
from spinup.cli.help_pages import algorithm_page, usage
from spinup.utils.envs import check_env


def test_the_usage_lists_every_algorithm():
    for name, entry in ALGORITHMS.items():
        assert re.search(rf"^  {name} +{entry.title}$", usage(), re.M)


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_a_page_has_an_example_that_the_algorithm_can_learn(name):
    page = algorithm_page(name, getattr(spinup, name))
    example = re.search(rf"python -m spinup\.run {name} --env (\S+) ", page)[1]
    assert example == ALGORITHMS[name].example
    check_env(example, {}, name, ALGORITHMS)  # raises if the algorithm can't handle it


def test_a_page_says_which_actions_and_networks(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    page = algorithm_page("sac", spinup.sac)
    assert "its action space is a bounded Box (env_name)" in " ".join(page.split())
    networks = page.partition("\nNetworks\n")[2].partition("\n\n")[0]
    assert re.search(r"--actor_critic +your own class of .*module:Class", networks)
    assert "--hid " in networks and "--gamma" not in networks
