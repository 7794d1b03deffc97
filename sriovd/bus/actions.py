"""The polkit actions of sriovd: what each verb needs. units/org.sriovd1.policy declares them, and a test
compares the two."""

from __future__ import annotations

INSPECT = "org.sriovd1.inspect"
LEASE = "org.sriovd1.lease"
CONFIGURE = "org.sriovd1.configure"
SET_NUM_VFS = "org.sriovd1.set-num-vfs"
BIND_DRIVER = "org.sriovd1.bind-driver"
MANAGE_POLICY = "org.sriovd1.manage-policy"
RESET = "org.sriovd1.reset"
HOTPLUG = "org.sriovd1.hotplug"
RECOVER = "org.sriovd1.recover"
SIMULATE = "org.sriovd1.simulate"  # no polkit action of that name exists: the simulated host is its owner's

# What cancelling a job needs: what starting it needs. The jobs of a lease bind drivers for its owner, who
# ends them by Release; others who may lease shall not.
ACTION_OF_OPERATION = {
    "SetNumVFs": SET_NUM_VFS,
    "Bind": BIND_DRIVER,
    "BindVFs": BIND_DRIVER,
    "Unbind": BIND_DRIVER,
    "Reset": RESET,
    "Remove": HOTPLUG,
    "Rescan": HOTPLUG,
    "SetAttributes": CONFIGURE,
    "Apply": MANAGE_POLICY,
    "ApplyPolicy": MANAGE_POLICY,
    "PrepareLease": BIND_DRIVER,
    "Release": LEASE,
    "CleanLease": BIND_DRIVER,
    "Recover": RECOVER,
}
