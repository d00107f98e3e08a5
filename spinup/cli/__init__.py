"""The command line, in words."""
