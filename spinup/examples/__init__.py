"""Short scripts that people copy."""
