"""Who may open a VFIO group: the owner of its node below /dev/vfio.

Rule: the node keeps its mode 0600; only its user changes, so that one tenant at a time has it.
Linux: Documentation/driver-api/vfio.rst, "VFIO Usage Example".
"""

from __future__ import annotations

import os

ROOT_UID = 0
_KEEP_GROUP = -1


def give_node(directory: str, group: int, uid: int) -> None:
    """Make `uid` the owner of the node of that VFIO group. Raises OSError."""
    path = f"{directory}/{group}"
    if os.stat(path).st_uid != uid:
        os.chown(path, uid, _KEEP_GROUP)
