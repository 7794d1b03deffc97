"""Error data, each part alone."""
