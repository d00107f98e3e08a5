"""Spinning Up's import path of `spinup.cli.plot`."""

from spinup.cli.plot import get_all_datasets, get_datasets, make_plots, plot_data

__all__ = ["get_all_datasets", "get_datasets", "make_plots", "plot_data"]
