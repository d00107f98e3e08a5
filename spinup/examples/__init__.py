"""Short example scripts to copy from."""
