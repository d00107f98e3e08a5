"""Run folders: what lies in them, and how it is read."""
