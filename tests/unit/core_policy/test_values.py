"""What a VF attribute can be is the same over D-Bus and in a policy file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sriovd.backend.vf_attributes import FIELD_NAMES
from sriovd.core.attributes import check_value
from sriovd.core.policy.policy_set import PolicySet
from tests.unit.core_policy.broken import in_vf

MACS = (
    "02:00:00:00:00:01", "0A:00:00:00:00:0F", "00:00:00:00:00:00", "01:00:00:00:00:01", "FF:FF:FF:FF:FF:FF",
    "02:00:00:00:00", "02-00-00-00-00-01", "02:00:00:00:00:01\n", "02:00:00:00:00:0g",
    "02:00:00:00:00:01:02",
)  # fmt: skip
GUIDS = ("02:00:00:00:00:00:00:01", "AB:CD:EF:00:00:00:00:01", "02:00:00:00:00:01", "0200000000000001")
NUMBERS = (-1, 0, 1, 7, 8, 4094, 4095, 4096, 2**32 - 1, 2**32, 1.0)
WORDS = ("", "802.1Q", "802.1ad", "802.1q", "auto", "enable", "disable", "Auto", "on", "true", "stable ")
VALUES = (*MACS, *GUIDS, *NUMBERS, *WORDS, True, False)
NEEDS = {"qos": "vlan = 1\n", "vlan_protocol": "vlan = 1\n"}  # to be said at all


@pytest.mark.parametrize("name", FIELD_NAMES)
@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_is_right_in_both_or_in_none(name: str, value: str | float, tmp_path: Path) -> None:
    line = f"{NEEDS.get(name, '')}{name.replace('_', '-')} = {json.dumps(value)}"
    (tmp_path / "10-nic.toml").write_text(in_vf("0", line))
    problems = PolicySet.load([str(tmp_path)], {}).problems
    assert bool(problems) is bool(check_value(name, value)), (problems, check_value(name, value))
