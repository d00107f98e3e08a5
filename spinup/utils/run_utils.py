"""Spinning Up's path to what `spinup.launch` holds: grids, experiments and the names of folders."""

from spinup.launch.experiment import call_experiment, setup_logger_kwargs
from spinup.launch.grid import ExperimentGrid

__all__ = ["ExperimentGrid", "call_experiment", "setup_logger_kwargs"]
