"""Experiments: how they are specified, run in processes, and how they ended."""
