"""The choice of a VF: it fits, it spreads, it does not depend on the order, and a refusal says why."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sriovd.core.errors import InvalidArgument, PoolExhausted
from sriovd.core.lease.choose import Candidate, Spread, Wish, choose, class_digits, matches
from sriovd.pci import PciAddress, PciSlot, vf_address

PFS = [PciAddress.parse(f"0000:0{bus}:00.{function}") for bus in (1, 2) for function in (0, 1)]


def make(pf: PciAddress, index: int, **changes: object) -> Candidate:
    """A NIC's VF on the NUMA node that its PF's bus says."""
    address = vf_address(pf, 0x80, 2, index)
    names = (f"ens{pf.bus}f{pf.function}",)
    vf = Candidate(address, pf, index, pf.bus - 1, "igbvf", 0x8086, 0x10CA, 0x020000, "igb", names)
    return replace(vf, **changes)  # type: ignore[arg-type]


POOL = [make(pf, index) for pf in PFS for index in range(4)]
NVME = make(PFS[3], 5, class_code=0x010802, driver="", vendor_id=0x1B36, pf_driver="nvme", pf_netdevs=())

WISHES = [
    (Wish(address=POOL[9].address), POOL[9].address),
    (Wish(pf=PFS[2]), POOL[8].address),
    (Wish(slot=PciSlot.parse("0000:02:00")), POOL[8].address),
    (Wish(vendor=0x1B36), NVME.address),
    (Wish(device=0x10CA), POOL[0].address),
    (Wish(pci_class="network"), POOL[0].address),
    (Wish(pci_class="nvme"), NVME.address),
    (Wish(pci_class="0x0108"), NVME.address),
    (Wish(pci_class="01"), NVME.address),
    (Wish(driver="igbvf"), POOL[0].address),
    (Wish(driver="none"), NVME.address),
    (Wish(pf_driver="nvme"), NVME.address),
    (Wish(netdev="ens2f*"), POOL[8].address),
    (Wish(netdev="ens1f1"), POOL[4].address),
    (Wish(numa_node=1), POOL[8].address),
    (Wish(vendor=0x8086, netdev="*f1", numa_node=1), POOL[12].address),
]


@pytest.mark.parametrize(("wish", "expected"), WISHES)
def test_each_criterion_counts(wish: Wish, expected: PciAddress) -> None:
    assert choose([*POOL, NVME], wish, {}) == expected


def test_a_glob_that_would_take_for_ever_is_refused() -> None:
    """fnmatch looks for the end of every bracket; this one came from any tenant."""
    assert Wish(netdev="[" * 64)
    with pytest.raises(InvalidArgument, match="too many for a network interface"):
        Wish(netdev="[" * 65)


@pytest.mark.parametrize("text", ["", "0", "020", "0x", "02000000", "disk", "02\n", "0x0x02"])
def test_a_class_that_is_none_is_refused_with_the_wish(text: str) -> None:
    with pytest.raises(InvalidArgument, match="is not a PCI class"):
        Wish(pci_class=text)


def test_a_class_may_be_written_in_capitals() -> None:
    assert class_digits("0X0B40") == "0b40"


def lend(count: int, spread: Spread, pool: list[Candidate] = POOL) -> list[Candidate]:
    """The VFs that `count` leases get, one after the other, of a pool that is all free at first."""
    free = list(pool)
    lent: list[Candidate] = []
    load: Counter[PciAddress] = Counter()
    for _ in range(count):
        address = choose(free, Wish(spread=spread), load, lent)
        chosen = next(vf for vf in free if vf.address == address)
        free.remove(chosen)
        lent.append(chosen)
        load[chosen.pf] += 1
    return lent


def test_pack_fills_a_pf_before_the_next() -> None:
    assert [vf.pf for vf in lend(8, Spread.PACK)] == [PFS[0]] * 4 + [PFS[1]] * 4


def test_pack_goes_on_with_the_fullest_pf() -> None:
    assert choose(POOL, Wish(spread=Spread.PACK), {PFS[0]: 1, PFS[2]: 3}) == POOL[8].address


def test_numa_alternates_nodes_and_then_pfs() -> None:
    assert [vf.pf for vf in lend(5, Spread.NUMA)] == [PFS[0], PFS[2], PFS[1], PFS[3], PFS[0]]


def test_numa_counts_leases_on_pfs_that_have_no_free_vf() -> None:
    taken = [vf for vf in POOL if vf.pf == PFS[0]]
    free = [vf for vf in POOL if vf.pf != PFS[0]]
    assert (
        choose(free, Wish(spread=Spread.NUMA), {PFS[0]: 4, PFS[2]: 3, PFS[3]: 0}, taken) == POOL[12].address
    )


@given(st.integers(2, 5), st.integers(1, 8), st.data())
def test_with_spread_pf_loads_differ_by_one_at_most(pfs: int, vfs: int, data: st.DataObject) -> None:
    places = [PciAddress(0, 1 + number, 0, 0) for number in range(pfs)]
    pool = [make(pf, index) for pf in places for index in range(vfs)]
    count = data.draw(st.integers(1, len(pool)))
    load = Counter(vf.pf for vf in lend(count, Spread.PF, pool))
    assert max(load.values()) - min(load[pf] for pf in places) <= 1


wishes = st.builds(
    Wish,
    address=st.none() | st.sampled_from([vf.address for vf in POOL]),
    pf=st.none() | st.sampled_from(PFS),
    slot=st.none() | st.sampled_from([pf.slot for pf in PFS]),
    vendor=st.none() | st.sampled_from([0x8086, 0x1B36]),
    pci_class=st.none() | st.sampled_from(["network", "nvme", "0200"]),
    driver=st.none() | st.sampled_from(["igbvf", "none", "vfio-pci"]),
    netdev=st.none() | st.sampled_from(["ens*", "ens2*", "eth0"]),
    numa_node=st.none() | st.integers(-1, 2),
    spread=st.sampled_from(Spread),
)
loads = st.dictionaries(st.sampled_from(PFS), st.integers(0, 5))


@given(st.lists(st.sampled_from([*POOL, NVME]), unique=True), wishes, loads, st.randoms())
def test_the_chosen_one_fits_and_the_order_does_not_matter(
    free: list[Candidate], wish: Wish, load: dict[PciAddress, int], chance: random.Random
) -> None:
    fitting = {vf.address for vf in free if matches(vf, wish)}
    shuffled = chance.sample(free, len(free))
    if fitting:
        assert choose(free, wish, load) in fitting
        assert choose(free, wish, load) == choose(shuffled, wish, load)
    else:
        with pytest.raises(PoolExhausted):
            choose(free, wish, load)


REFUSALS = [
    ([], Wish(), [], r"No VF is free for a lease: there are no VFs\. Create some"),
    ([], Wish(), POOL[:3], r"No VF is free for a lease: the 3 VFs that match are taken\. Release one"),
    (
        POOL[4:],
        Wish(pf=PFS[0], pci_class="network"),
        POOL[:1],
        r"with pf 0000:01:00\.0, class network: the 1 VF that matches is taken\.",
    ),
    (
        POOL,
        Wish(vendor=0x15B3, driver="mlx5_core", numa_node=0),
        [NVME],
        r"with vendor 0x15b3, driver mlx5_core, numa-node 0: "
        r"of 17 VFs none has vendor 0x15b3 and none has driver mlx5_core\.",
    ),
    (POOL, Wish(pf=PFS[0], numa_node=1), [], r"of 16 VFs none has all of that\."),
]


@pytest.mark.parametrize(("free", "wish", "taken", "sentence"), REFUSALS)
def test_a_refusal_says_why(
    free: list[Candidate], wish: Wish, taken: list[Candidate], sentence: str
) -> None:
    with pytest.raises(PoolExhausted, match=sentence):
        choose(free, wish, {}, taken)
