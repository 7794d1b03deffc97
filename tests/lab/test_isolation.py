"""Two tenants of one card on a real bus with a real polkit: neither learns of the other."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab.client import (
    ADAPTER,
    FUNCTION,
    IGB0,
    IGB1,
    MANAGER,
    NAME,
    ROOT,
    Client,
    Refusal,
    adapter_path,
    function_path,
    refusal_of,
)
from tests.lab.guest import BackgroundCommand
from tests.lab.leasing import Tenant, tenants_may_lease
from tests.lab.waiting import wait_until

ALICE, BOB, OPERATOR = "tenant1", "tenant2", "operator1"
ALICES, BOBS, FREE = "0000:01:10.0", "0000:01:10.2", "0000:01:10.4"
NOWHERE = "0000:01:1f.6"
LISTENING = Path(__file__).with_name("listening.py")
LEASE, RECOVERY = f"{NAME}.Lease", f"{NAME}.Recovery"
MANAGED = ("call", NAME, ROOT, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects")


@pytest.fixture
def tenants(client: Client) -> Iterator[tuple[Tenant, Tenant]]:
    """Alice and Bob, and VFs of one card to lease."""
    client.set_num_vfs(IGB0, 7, driver="vfio-pci")
    with tenants_may_lease(client.guest):
        yield Tenant(client, ALICE), Tenant(client, BOB)
    for path, interfaces in json.loads(client.run(*MANAGED).stdout)["data"][0].items():
        if LEASE in interfaces:  # of a test that has failed
            number, owner = path.rpartition("/")[2], interfaces[LEASE]["Owner"]["data"]
            client.ask("Release", "tsa{sv}", number, owner, 1, "force", "b", "true")


@contextmanager
def listening(client: Client, user: str) -> Iterator[BackgroundCommand]:
    """The signals that the bus delivers to that user."""
    client.guest.put("/run/listening.py", LISTENING.read_bytes())
    # not runuser, which would get the signal that ends it
    become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"]
    heard = client.guest.start([*become, "python3", "/run/listening.py"], timeout_s=120.0)
    wait_until(lambda: "ready" in heard.output().stdout, 30.0, f"{user} to listen")
    yield heard


def signals(heard: BackgroundCommand) -> list[str]:
    """All of them so far: nothing is on its way any more."""
    heard.signal(signal.SIGTERM)
    lines = heard.wait(30.0).stdout.split("\n")
    assert lines[0] == "ready", lines
    assert "end" in lines
    return [line for line in lines[1:] if line and line != "end"]


def paths(client: Client, user: str) -> set[str]:
    """The objects that the user sees."""
    result = client.run(*MANAGED, user=user)
    assert result.status == 0, refusal_of(result)
    return set(json.loads(result.stdout)["data"][0])


def refusal(client: Client, user: str, *words: str | int) -> Refusal:
    result = client.run(*words, user=user)
    assert result.status != 0, (words, result.stdout)
    return refusal_of(result)


def test_a_tenant_sees_what_is_his(client: Client, tenants: tuple[Tenant, Tenant]) -> None:
    alice, bob = tenants
    theirs, own = alice.lease(ALICES), bob.lease(BOBS)
    assert paths(client, BOB) == {function_path(BOBS), f"{ROOT}/lease/{own}"}
    rows = json.loads(client.run("call", NAME, ROOT, MANAGER, "ListFunctions", user=BOB).stdout)["data"][0]
    assert [row[1] for row in rows] == [BOBS]
    tree = client.guest.run(f"runuser -u {BOB} -- busctl --list tree {NAME}").stdout
    assert f"lease/{own}" in tree
    assert f"lease/{theirs}" not in tree
    assert "adapter" not in tree
    read = client.run("get-property", NAME, function_path(BOBS), RECOVERY, "State", user=BOB)
    assert json.loads(read.stdout)["data"] == "online"
    alice.release(theirs)
    bob.release(own)
    assert paths(client, BOB) >= {f"{ROOT}/job/{job}" for job in jobs_of(client, "Release", BOB)}


def jobs_of(client: Client, operation: str, user: str) -> list[str]:
    """The numbers of the jobs that the user has asked for and can read, as root sees them."""
    uid = client.guest.run(f"id -u {user}").stdout.strip()
    managed = json.loads(client.run(*MANAGED).stdout)["data"][0]
    return [
        path.rpartition("/")[2]
        for path, interfaces in managed.items()
        for job in [interfaces.get(f"{NAME}.Job")]
        if job and job["Operation"]["data"] == operation and f"uid {uid} " in job["Requester"]["data"]
    ]


def test_others_are_told_as_nothing(client: Client, tenants: tuple[Tenant, Tenant]) -> None:
    alice, bob = tenants
    theirs, own = alice.lease(ALICES), bob.lease(BOBS)
    none = function_path(NOWHERE)
    for interface, name in ((FUNCTION, "Driver"), (ADAPTER, "Stuck"), (LEASE, "UID"), (RECOVERY, "State")):
        told = {
            path: refusal(client, BOB, "get-property", NAME, path, interface, name)
            for path in (
                none, *map(function_path, (ALICES, FREE, IGB0)), adapter_path("0000:01:00"),
                f"{ROOT}/lease/{theirs}",
            )
        }  # fmt: skip
        assert {each.name for each in told.values()} == {"org.freedesktop.DBus.Error.UnknownObject"}, told
        for path, each in told.items():
            assert f": there is no object '{path}'\n" in each.text, told
    for method, signature, *rest in (
        ("GetFunction", "s"),
        ("GetVFAttributes", "s"),
        ("Unfreeze", "ssa{sv}", BOB, 0),
        ("WaitPermitted", "sst", BOB, 0),
        ("Reset", "sa{sv}", 0),
        ("ListBundles", "s"),
    ):
        texts = {
            str(client.refused(method, signature, vf, *rest, user=BOB)).replace(vf, "HERE")
            for vf in (ALICES, FREE, IGB0, NOWHERE)
        }
        assert len(texts) == 1, texts
    texts = {
        str(client.refused("Lease", "sa{sv}", BOB, 1, "address", "s", vf, user=BOB)).replace(vf, "HERE")
        for vf in (ALICES, IGB0, NOWHERE)
    }
    assert len(texts) == 1, texts
    alice.release(theirs)
    bob.release(own)


def test_signals_reach_operators_only(client: Client, tenants: tuple[Tenant, Tenant]) -> None:
    """A member of the group sriovd hears and sees all; a tenant hears nothing, not even of his own."""
    alice, bob = tenants
    client.guest.run(f"id -u {OPERATOR} >/dev/null 2>&1 || useradd -M -G sriovd {OPERATOR}")
    with (
        listening(client, "root") as by_root,
        listening(client, OPERATOR) as by_operator,
        listening(client, BOB) as by_bob,
    ):
        theirs, own = alice.lease(ALICES), bob.lease(BOBS)
        client.set_num_vfs(IGB1, 1)
        alice.release(theirs)
        bob.release(own)
        heard = signals(by_root)
        assert f"{ROOT} InterfacesAdded" in heard
        assert f"{ROOT}/lease/{theirs} PropertiesChanged" in heard
        assert f"{ROOT} JobEnded" in heard
        assert set(signals(by_operator)) == set(heard)
        assert signals(by_bob) == []
    assert paths(client, OPERATOR) == paths(client, "root")
