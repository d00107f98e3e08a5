"""Run folders: their files, and how they are written and read."""
