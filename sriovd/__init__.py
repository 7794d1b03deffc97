"""sriovd: the daemon that owns SR-IOV on a Linux host.

Packages point down only: bus -> core -> backend.base; the two hosts (backend.linux, backend.simulated)
implement backend.base and are chosen in daemon.py alone.
"""

__version__ = "0.1.0"
