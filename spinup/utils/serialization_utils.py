"""Spinning Up's path to what `spinup.runs.json_values` holds."""

from spinup.runs.json_values import convert_json

__all__ = ["convert_json"]
