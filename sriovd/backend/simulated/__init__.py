"""The simulated host: a tree that looks like /sys, the kernel's rules over it, and misfortune on demand."""

from sriovd.backend.simulated.backend import DEFAULT_MACHINE, SimulatedBackend

__all__ = ["DEFAULT_MACHINE", "SimulatedBackend"]
