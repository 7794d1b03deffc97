"""The operations and refusals that sriovd relies on, as data: what is done to a host, nothing of what comes
of it.

Rule: every scenario begins on the machine of tests/lab/layouts/default.toml as it is after its boot, with
vfio-pci and igbvf loaded, pci-stub not until the scenario that loads it, and leaves what transcript.py can
put back. What happens is for the transcripts to tell. What any PF can show, the NVMe PF does: igb takes two
seconds to let VFs go.
"""

from __future__ import annotations

from sriovd.backend.steps import Chain
from tests.conformance.actions import (
    AskDriver,
    AssignResources,
    Close,
    Do,
    FindHolders,
    Finish,
    Hangs,
    LinkUp,
    ListFunctions,
    ListVfs,
    LoadDriver,
    Look,
    Open,
    Scenario,
    SetParameter,
    begin,
    do,
    each,
    malformed,
)
from tests.conformance.config_operations import CONFIG_SCENARIOS
from tests.conformance.link_operations import LINK_SCENARIOS
from tests.conformance.phrases import (
    IGB0,
    IGB1,
    IN_VFIO,
    LONGEST_OVERRIDE,
    MALFORMED,
    NOWHERE,
    NVME,
    NVME_VF,
    NVME_VFS,
    PORT,
    VF,
    VFS,
    autoprobe,
    make_vfs,
    method,
    move,
    move_all,
    override,
    release,
    set_vfs,
    state,
    try_everywhere,
)
from tests.conformance.steps import (
    RESCAN_BUS,
    bind,
    count_vfs,
    probe,
    read_driver,
    read_override,
    read_vf,
    remove,
    rescan_port,
    reset,
    set_autoprobe,
    set_num_vfs,
    set_override,
    set_reset_method,
    unbind,
)

SCENARIOS = (
    Scenario("inventory", "what a host without VFs tells", (
        ListFunctions(), Look(IGB0), Look(IGB1), Look(NVME), Look(NOWHERE), Look(PORT), Look(VF),
        ListVfs(IGB0), ListVfs(NOWHERE), FindHolders((IGB0, NVME, NOWHERE)), state(IGB0), state(PORT),
        state(NOWHERE), each(count_vfs(IGB0), count_vfs(NOWHERE)),
    )),
    Scenario("drivers", "which drivers are known", tuple(
        AskDriver(name)
        for name in ("igb", "nvme", "vfio-pci", "pcieport", "uio_pci_generic", "vfio-pcl", "", "../igb",
        "igb ")
    )),
    Scenario("driver-not-loaded", "a module that nobody has loaded, then loaded, takes the VF at once", (
        AskDriver("pci-stub"), make_vfs(IGB0, 2), each(*move(VF, "pci-stub").steps),
        do(probe(VF)), state(VF), LoadDriver("pci-stub"), AskDriver("pci-stub"), state(VF),
        Look(VF), state(VFS[1]), Do((release(VF, "pci-stub"),)),
    )),
    Scenario("numvfs-refused", "malformed and impossible numbers on a PF without VFs", (
        make_vfs(IGB0, 0),
        set_vfs(IGB0, "8", "9", "65535", "65536", "70000", "-1", "x", "3x", " 3", "4 ", "\n", "3\n\n",
        "3.0"),
        Look(IGB0),
    )),
    Scenario("numvfs-spellings", "numbers that the kernel understands", (
        make_vfs(NVME, 0),
        set_vfs(NVME, "0", "0x3", "0", "+3", "0", "03", "3", "3\n", "0x0", "0\n", "1\0", "0\0"),
    )),
    Scenario("numvfs-other-count", "another count while VFs exist; the same count again", (
        make_vfs(IGB0, 4), set_vfs(IGB0, "5", "2", "4", "9", "x"), set_vfs(IGB0, "0", "3", "2", "3", "0"),
    )),
    Scenario("numvfs-all", "all VFs and their facts", (
        make_vfs(IGB0, 7), ListFunctions(), ListVfs(IGB0), *(Look(vf) for vf in VFS), Look(IGB0),
        set_vfs(IGB0, "0"), ListVfs(IGB0), Look(VF), Look(IGB0),
    )),
    Scenario("numvfs-nvme", "another PF: other offsets, a driver that allows them all", (
        make_vfs(NVME, 3), ListVfs(NVME), Look(NVME_VF), Look(NVME), set_vfs(NVME, "128", "127x", "4"),
        set_vfs(NVME, "0"), Look(NVME),
    )),
    Scenario("vf-places", "which VF is where, and that there are no more", (
        each(read_vf(IGB0, 0), read_vf(NOWHERE, 0)),
        make_vfs(IGB0, 7), make_vfs(NVME, 5),
        each(*(read_vf(pf, index) for pf, index in ((IGB0, 0), (IGB0, 6), (IGB0, 7), (NVME, 4), (NVME, 5)))),
    )),
    Scenario("numvfs-elsewhere", "a NVME_VF, a port and nothing asked for VFs", (
        make_vfs(NVME, 1), set_vfs(NVME_VF, "1", "0"), set_vfs(PORT, "1"), set_vfs(NOWHERE, "1"),
        each(set_autoprobe(NVME_VF, "1"), set_autoprobe(PORT, "1")),
    )),
    Scenario("numvfs-again", "VFs have successors, not second lives", (
        make_vfs(NVME, 2), Look(NVME_VF), set_vfs(NVME, "0"), Look(NVME_VF), set_vfs(NVME, "2"),
        Look(NVME_VF),
        set_vfs(NVME, "0", "1"), Look(NVME_VF), Look(NVME_VFS[1]), Look(NVME),
    )),
    Scenario("two-adapters", "the VFs of one adapter are not the other's", (
        make_vfs(IGB0, 2), make_vfs(IGB1, 2), ListFunctions(), ListVfs(IGB1), set_vfs(IGB0, "0"),
        ListVfs(IGB0), ListVfs(IGB1),
    )),
    Scenario("autoprobe-values", "what sriov_drivers_autoprobe takes", tuple(
        action
        for value in ("0", "1", "n", "y", "off", "on", "no", "Y", "N", "00", "1x", "2", "x", "\n", "0\n",
        "-1")
        for action in autoprobe(value)
    )),
    Scenario("autoprobe-on", "the default driver takes new VFs", (
        LinkUp(IGB0), make_vfs(IGB0, 2, "1"), Look(VF), Look(VFS[1]), set_vfs(IGB0, "0"),
    )),
    Scenario("autoprobe-survives", "it belongs to the PF, not to its driver", (
        each(set_autoprobe(IGB0, "0"), unbind(IGB0, "igb"), bind(IGB0, "igb")),
        Look(IGB0), do(remove(IGB0)), do(RESCAN_BUS), Look(IGB0),
    )),
    Scenario("bind-without-override", "no driver for a VF that nobody has said it for", (
        make_vfs(NVME, 1),
        each(bind(NVME_VF, "vfio-pci"), bind(NVME_VF, "nvme"), bind(NVME_VF, "igb"),
             probe(NVME_VF)),
        state(NVME_VF), do(set_autoprobe(NVME, "1")),
        each(bind(NVME_VF, "vfio-pci"), bind(NVME_VF, "igbvf")), state(NVME_VF),
    )),
    Scenario("bind-other-override", "the override admits its driver and nobody else", (
        make_vfs(NVME, 1), override("nvme"), do(bind(NVME_VF, "vfio-pci")), override("vfio-pci"),
        do(bind(NVME_VF, "nvme")), state(NVME_VF),
    )),
    Scenario("bind-bound", "a VF that has a driver", (
        make_vfs(NVME, 1), Do((move(NVME_VF, "vfio-pci"),)), Look(NVME_VF),
        each(bind(NVME_VF, "vfio-pci"), bind(NVME_VF, "nvme"), probe(NVME_VF)),
        override("nvme"),
        each(bind(NVME_VF, "nvme"), bind(NVME_VF, "vfio-pci"), probe(NVME_VF)), state(NVME_VF),
        each(unbind(NVME_VF, "nvme"), unbind(NVME_VF, "vfio-pci"), unbind(NVME_VF, "vfio-pci")),
        state(NVME_VF), Look(NVME_VF),
    )),
    Scenario("bind-no-such-driver", "a driver that is not there", (
        make_vfs(NVME, 1), override("vfio-pcl"),
        each(probe(NVME_VF), bind(NVME_VF, "vfio-pcl"), unbind(NVME_VF, "vfio-pcl")), state(NVME_VF),
    )),
    Scenario("bind-malformed", "what is no address of a device", (
        make_vfs(NVME, 1), do(set_override(NVME_VF, "vfio-pci")),
        *(try_everywhere(text) for text in MALFORMED), state(NVME_VF),
    )),
    Scenario("override-values", "what driver_override keeps of what is written", (
        make_vfs(NVME, 1),
        *(override(value) for value in (
            "nonexistent", "", "vfio-pci\n", "vfio\npci", "\0", "a\0b", " vfio-pci ",
            "x" * (LONGEST_OVERRIDE - 1),
            "y" * LONGEST_OVERRIDE, "z" * 5000, "none", "",
        )),
        each(set_override(NOWHERE, "vfio-pci"), read_override(NOWHERE)),
    )),
    Scenario("override-forgotten", "a VF's override goes with the VF", (
        make_vfs(NVME, 1), override("vfio-pci"), set_vfs(NVME, "0", "1"), state(NVME_VF),
    )),
    Scenario("default-driver", "to vfio-pci, to the default driver and back", (
        LinkUp(IGB0), make_vfs(IGB0, 2), move_all(VFS[:2], "vfio-pci"), Look(VF),
        Do(tuple(release(vf, "vfio-pci") for vf in VFS[:2])), do(probe(VF)), state(VF),
        do(set_autoprobe(IGB0, "1"), probe(VF)), Look(VF), state(VFS[1]),
        do(set_autoprobe(IGB0, "0")), Do((move(VFS[1], "igbvf"),)), Look(VFS[1]),
        Do((release(VF, "igbvf"), release(VFS[1], "igbvf"))), move_all(VFS[:2], "vfio-pci"), Look(VFS[1]),
        set_vfs(IGB0, "0"),
    )),
    Scenario("all-to-vfio", "7 VFs, a group each", (
        make_vfs(IGB0, 7), move_all(VFS, "vfio-pci"), *(Look(vf) for vf in VFS), FindHolders(VFS),
        set_vfs(IGB0, "0"),
    )),
    Scenario("nvme-drivers", "to pci-stub, to vfio-pci, to none, and away", (
        make_vfs(NVME, 5), move_all(NVME_VFS, "pci-stub"), Look(NVME_VFS[4]),
        Do(tuple(release(vf, "pci-stub") for vf in NVME_VFS)), move_all(NVME_VFS, "vfio-pci"),
        Look(NVME_VFS[4]),
        Do(tuple(release(vf, "vfio-pci") for vf in NVME_VFS)), Look(NVME_VFS[4]), set_vfs(NVME, "0"),
    )),
    Scenario("bind-fails", "an NVMe VF without resources refuses the nvme driver, and takes it with them", (
        make_vfs(NVME, 1), Do((move(NVME_VF, "vfio-pci"),)), do(unbind(NVME_VF, "vfio-pci")),
        Do((move(NVME_VF, "nvme"),)), state(NVME_VF), do(probe(NVME_VF)), state(NVME_VF),
        Do((move(NVME_VF, "vfio-pci"),)), Look(NVME_VF), Do((release(NVME_VF, "vfio-pci"),)),
        AssignResources(NVME, NVME_VF), Do((move(NVME_VF, "nvme"),)), Look(NVME_VF),
        Do((release(NVME_VF, "nvme"),)), Look(NVME_VF),
    )),
    Scenario("pf-without-driver", "no VFs, and other limits", (
        do(unbind(IGB1, "igb")), Look(IGB1), set_vfs(IGB1, "2", "8", "9", "x", "0"), state(IGB1),
        do(probe(IGB1)), Look(IGB1), do(unbind(IGB1, "igb"), bind(IGB1, "igb")),
        set_vfs(IGB1, "8", "1", "0"),
    )),
    Scenario("pf-takes-vfs-along", "igb destroys the VFs when it lets go of the PF", (
        make_vfs(IGB0, 2), Do((move(VF, "vfio-pci"),)), do(unbind(IGB0, "igb")), ListFunctions(),
        Look(IGB0), do(bind(IGB0, "igb")), Look(IGB0), set_vfs(IGB0, "1"), Look(VF),
    )),
    Scenario("pf-leaves-vfs-behind", "nvme does not, and then nobody else may have the PF", (
        make_vfs(NVME, 3), do(unbind(NVME, "nvme")), ListFunctions(), Look(NVME_VF),
        set_vfs(NVME, "0", "3", "2", "128"), Do((move(NVME, "vfio-pci"),)), state(NVME),
        do(set_override(NVME, ""), bind(NVME, "nvme")), set_vfs(NVME, "4", "0"),
        ListFunctions(),
    )),
    Scenario("pf-with-vfs-to-vfio", "bound, the PF is not free; let go by igb, it has no VFs any more", (
        make_vfs(IGB0, 2), Do((move(IGB0, "vfio-pci"),)), state(IGB0), do(unbind(IGB0, "igb")),
        Do((move(IGB0, "vfio-pci"),)), Look(IGB0), set_vfs(IGB0, "2", "0", "9"),
        Do((release(IGB0, "vfio-pci"),)), do(probe(IGB0)), Look(IGB0),
    )),
    Scenario("pf-on-vfio-with-sriov", "vfio-pci's enable_sriov, whose VFs it keeps for itself", (
        SetParameter("vfio_pci", "enable_sriov", True), do(unbind(IGB0, "igb")),
        Do((move(IGB0, "vfio-pci"),)), make_vfs(IGB0, 2), ListFunctions(), Look(VF), state(VF),
        state(VFS[1]),
        set_vfs(IGB0, "3"), do(unbind(IGB0, "vfio-pci")), ListFunctions(),
        do(set_override(IGB0, ""), bind(IGB0, "igb")),
        SetParameter("vfio_pci", "enable_sriov", False),
    )),
    Scenario("reset", "of VFs and PFs; a PF keeps its VFs", (
        make_vfs(IGB0, 2), Do((move(VFS[1], "vfio-pci"),)),
        each(reset(VF), reset(VFS[1]), reset(IGB0), reset(NVME),
             reset(PORT), reset(NOWHERE)),
        ListVfs(IGB0), Look(VF), Look(VFS[1]), Look(IGB0), set_vfs(IGB0, "0"),
    )),
    Scenario("reset-methods", "chosen, refused, emptied and restored", (
        make_vfs(IGB0, 1),
        *(action for value in ("", "flr", "bus", "flr bus", "x", "flr\n", " flr ", "default", "")
          for action in method(VF, value)),
        *(action for value in ("bus", "pm flr", "default") for action in method(IGB1, value)),
        each(set_reset_method(PORT, "flr"), set_reset_method(NOWHERE, "")),
    )),
    Scenario("remove-vf", "a VF goes with the count and not alone", (
        make_vfs(NVME, 2), each(remove(NVME_VF), rescan_port(NVME_VF)), ListVfs(NVME),
    )),
    Scenario("remove-and-rescan", "a PF removed with its VFs comes back without", (
        make_vfs(IGB0, 2), Do((move(VF, "vfio-pci"),)), Look(IGB0),
        each(remove(IGB0), remove(IGB0), set_num_vfs(IGB0, "1"),
             bind(IGB0, "igb"), read_driver(IGB0)),
        ListFunctions(), Look(IGB0), Look(VF), ListVfs(IGB0), do(RESCAN_BUS), Look(IGB0),
        set_vfs(IGB0, "1"), do(remove(IGB0)), do(rescan_port(PORT)), Look(IGB0),
    )),
    Scenario("rescan-nothing", "a rescan that finds nothing says nothing", (
        make_vfs(NVME, 1), each(RESCAN_BUS, rescan_port(PORT), rescan_port(NVME),
                                rescan_port(NOWHERE)), ListVfs(NVME),
    )),
    Scenario("held-unbind", "unbinding a VF that a process has open waits for the process", (
        make_vfs(IGB0, 2), move_all(VFS[:2], "vfio-pci"), FindHolders(VFS[:2]), Open(VF),
        FindHolders(VFS[:2]),
        begin("unbind", unbind(VF, "vfio-pci"), read_driver(VF)), Hangs("unbind", IN_VFIO),
        Look(VF), do(reset(VFS[1])), Look(VFS[1]), ListVfs(IGB0), make_vfs(NVME, 1),
        FindHolders(VFS[:2]), Close(VF), Finish("unbind"), Look(VF), FindHolders(VFS[:2]),
    )),
    Scenario("held-destroy", "so does destroying it; and until then no adapter gets other VFs", (
        do(set_autoprobe(NVME, "0")), make_vfs(IGB0, 2), move_all(VFS[:2], "vfio-pci"), Open(VFS[1]),
        begin("destroy", set_num_vfs(IGB0, "0"), count_vfs(IGB0)), Hangs("destroy", IN_VFIO),
        ListVfs(IGB0), Look(VFS[1]), set_vfs(NVME, "0", "128", "x"),
        begin("create", set_num_vfs(NVME, "1"), count_vfs(NVME)), Hangs("create", "sriov_numvfs_store"),
        begin("rescan", RESCAN_BUS), Hangs("rescan", "rescan_store"),
        do(reset(IGB1)), Close(VFS[1]), Finish("destroy"), Finish("create"), Finish("rescan"),
        ListFunctions(),
    )),
    Scenario("scripts", "a failure ends its chain, and the script only if that is asked for", (
        make_vfs(NVME, 3),
        Do((move(NVME_VF, "vfio-pcl"), move(NVME_VFS[1], "vfio-pci"), Chain(NVME_VF, (read_driver(NVME_VF,
        expect="nvme"),
            unbind(NVME_VFS[1], "vfio-pci"))))),
        Do((move(NVME_VF, "vfio-pcl"), move(NVME_VFS[2], "vfio-pci")), stop_on_failure=True),
        Do((move(NVME_VFS[2], "vfio-pci"), move(NVME_VF, "vfio-pcl"), release(NVME_VFS[2], "vfio-pci")),
        stop_on_failure=True),
        state(NVME_VF), state(NVME_VFS[1]), state(NVME_VFS[2]),
    )),
    *LINK_SCENARIOS,
    *CONFIG_SCENARIOS,
    Scenario("never-tried", "what is no file of the PCI bus, and empty writes", (
        each(set_num_vfs(malformed("../../x"), "1"), set_num_vfs(malformed("."), "1"),
             set_num_vfs(malformed(""), "1"), set_num_vfs(IGB0, ""),
             set_autoprobe(IGB0, ""), bind(IGB0, "../igb"), probe(malformed("")),
             read_driver(malformed("..")), count_vfs(malformed("../..")),
             set_num_vfs(malformed("b\xe4d"), "1")),
        Look(IGB0),
    )),
)  # fmt: skip
