"""Experiments: from a specification to processes and their outcome."""
