"""What becomes of a path whose object has gone between a call's arrival and its turn."""

from __future__ import annotations

import pytest

from sriovd.bus.errors import reply_for
from sriovd.bus.objects import Objects, function_path, job_path
from sriovd.bus.tree import NoSuchObject, Tree
from sriovd.bus.visibility import Shares
from sriovd.core.inventory import Inventory
from sriovd.core.jobs import JobRegistry
from sriovd.daemon import _contract_for
from sriovd.pci import PciAddress


def test_an_object_that_has_gone_is_no_defect_of_ours() -> None:
    tree = Tree(_contract_for(simulated=False), lambda *_: None, schedule=lambda _: None)
    objects = Objects(tree, Inventory(), JobRegistry(), Shares())
    function = function_path(PciAddress.parse("0000:01:10.0"))
    job = job_path(7)
    with pytest.raises(NoSuchObject) as function_gone:
        objects.address_at(function)
    with pytest.raises(NoSuchObject) as job_gone:
        objects.job_at(job)
    for refused, path in ((function_gone, function), (job_gone, job)):
        reply = reply_for(refused.value)
        assert reply.name == "org.freedesktop.DBus.Error.UnknownObject"
        assert reply.text == f"there is no object '{path}'"
