"""Many VFs: the cost of one must not depend on how many there are."""

from __future__ import annotations

import gc
import time

import pytest

from .support import Sim

ADAPTERS = 16
VFS = 256
FACTOR = 1.5
REPEATS = 3


@pytest.mark.alone
def test_cost_of_a_vf_is_flat(root: str) -> None:
    """256 VFs on an empty host against the 256 that make it 4,096; the best of some, since others use the
    machine too."""
    cards = [f"0000:{2 * number + 2:02x}:00.0" for number in range(ADAPTERS)]
    sim = Sim(root, machine=tuple(("dlb", card) for card in cards))
    for card in cards:
        sim.must(f"{card}/sriov_drivers_autoprobe", "0")
    first = min(measure(sim, cards[0]) for _ in range(REPEATS))
    for card in cards[:-1]:
        sim.must(f"{card}/sriov_numvfs", str(VFS))
    last = min(measure(sim, cards[-1]) for _ in range(REPEATS))
    sim.must(f"{cards[-1]}/sriov_numvfs", str(VFS))
    assert len(sim.names()) == ADAPTERS * (VFS + 1)
    assert last < first * FACTOR, f"{first / VFS * 1e6:.0f} us per VF grew to {last / VFS * 1e6:.0f} us"


def measure(sim: Sim, card: str) -> float:
    """Seconds to make and destroy all VFs of one adapter; the collector, whose cost is the host's size,
    rests."""
    gc.collect()
    gc.disable()
    try:
        began = time.process_time()
        sim.must(f"{card}/sriov_numvfs", str(VFS))
        sim.must(f"{card}/sriov_numvfs", "0")
        return time.process_time() - began
    finally:
        gc.enable()
        sim.events()
