"""Spinning Up's path to what `spinup.launch.grid` holds."""

from spinup.launch.grid import ExperimentGrid, call_experiment, setup_logger_kwargs

__all__ = ["ExperimentGrid", "call_experiment", "setup_logger_kwargs"]
