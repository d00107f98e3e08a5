"""Makes grids for tests."""

from spinup.launch.grid import ExperimentGrid


def grid_of(name="", **params):
    """Returns a grid; the keyword ``a__b`` stands for the key ``a:b``."""
    grid = ExperimentGrid(name)
    for key, vals in params.items():
        grid.add(key.replace("__", ":"), vals)
    return grid
