"""Spinning Up's import path of grids, experiments and folder names, from `spinup.launch`."""

from spinup.launch.experiment import call_experiment, setup_logger_kwargs
from spinup.launch.grid import ExperimentGrid

__all__ = ["ExperimentGrid", "call_experiment", "setup_logger_kwargs"]
