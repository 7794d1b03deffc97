"""How far systemd confines the daemon, and that each protection it lacks has its reason in the unit."""

from __future__ import annotations

import json
import re

from tests.lab.client import Client
from tests.lab.project import PROJECT_ROOT

LIMIT = 2.7  # 2.4 without CAP_SYS_ADMIN, which the kernel wants for reading AER registers


def test_exposure(client: Client) -> None:
    text = client.guest.run("systemd-analyze security --no-pager sriovd").stdout
    (level,) = re.findall(r"Overall exposure level for sriovd.service: ([0-9.]+)", text)
    print(f"exposure {level}")
    assert float(level) <= LIMIT


def test_what_is_dropped_has_its_reason(client: Client) -> None:
    """Every setting that systemd-analyze finds wanting is named in the unit's comments or set there."""
    answer = client.guest.run("systemd-analyze security --no-pager --json=short sriovd").stdout
    unit = (PROJECT_ROOT / "units" / "sriovd.service").read_text()
    wanting = [
        row["name"] for row in json.loads(answer) if not row["set"] and float(row["exposure"] or 0) > 0
    ]
    assert wanting
    for name in wanting:
        setting = re.split(r"[=~/]", name)[0]
        assert re.search(rf"^(# )?.*\b{setting}=", unit, re.MULTILINE), name


def test_helper_has_no_more_rights_than_the_daemon(client: Client) -> None:
    pid = client.unit_property("MainPID")
    capabilities = client.guest.run(f"grep CapEff /proc/{pid}/status").stdout.split()[1]
    # CAP_CHOWN, CAP_DAC_READ_SEARCH, CAP_NET_ADMIN, CAP_SYS_PTRACE, CAP_SYS_ADMIN
    wanted = 1 << 0 | 1 << 2 | 1 << 12 | 1 << 19 | 1 << 21
    assert int(capabilities, 16) == wanted
    helpers = client.guest.run(f"pgrep -P {pid}").stdout.split()
    assert helpers
    for helper in helpers:
        status = client.guest.run(
            f"grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/{helper}/status"
        ).stdout.split()
        assert status[1] == capabilities
        assert status[3] == "1"
        assert status[5] == "2"
