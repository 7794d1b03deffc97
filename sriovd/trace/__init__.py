"""The trace of a VF: what its records mean and how they lie in memory, for the daemon that writes them and
for whoever reads them. Needs no daemon, no bus and no library."""
