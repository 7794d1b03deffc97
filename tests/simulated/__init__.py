"""The whole daemon on the simulated host, on a private bus, driven as its clients drive it."""
