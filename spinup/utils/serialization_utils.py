"""Spinning Up's import path of `spinup.runs.json_values`."""

from spinup.runs.json_values import convert_json

__all__ = ["convert_json"]
