"""Grids for tests."""

from spinup.launch.grid import ExperimentGrid


def grid_of(name="", **params):
    """Makes a grid; ``a__b`` is the key ``a:b``."""
    grid = ExperimentGrid(name)
    for key, vals in params.items():
        grid.add(key.replace("__", ":"), vals)
    return grid
