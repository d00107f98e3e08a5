"""The command line: commands, flags, help pages, plots, and trained policies."""
