"""The harness itself, without a guest: layouts, recipes, cache, packing."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.lab import host, image
from tests.lab.guest import LOST_TIMER, Guest, LostTimer
from tests.lab.layout import LAYOUTS, LayoutError, device_arguments, load_layout, parse_layout
from tests.lab.project import pack_project, project_files
from tests.lab.recipe import HERE, KERNELS, TOOLS_RECIPE, UnknownKernel, guest_recipe
from tests.lab.waiting import DeadlineExceeded

# --- layouts


@pytest.mark.parametrize("name", sorted(file.stem for file in LAYOUTS.glob("*.toml")))
def test_every_layout_in_the_tree_has_room_to_plug(name: str) -> None:
    layout = load_layout(name)
    assert layout.physical_functions
    assert layout.empty_ports()


def test_layout_becomes_qemu_arguments_behind_their_ports() -> None:
    text = (
        '[[port]]\nid = "a"\n[[switch]]\nid = "s"\nport = "a"\ndownstream = ["d"]\n'
        '[[igb]]\nid = "i"\nport = "d"\nnetwork = 4\n'
    )
    argv = device_arguments(parse_layout(text, "x.toml"))
    assert argv == [
        *("-device", "pcie-root-port,id=a,bus=pcie.0,addr=0x3,chassis=1,slot=1"),
        *("-device", "x3130-upstream,id=s,bus=a"),
        *("-device", "xio3130-downstream,id=d,bus=s,chassis=100,slot=100"),
        *("-netdev", "hubport,id=i-net,hubid=4"),
        *("-device", "igb,id=i,bus=d,netdev=i-net"),
    ]


def test_nvme_gets_queues_and_interrupts_for_every_vf() -> None:
    (argument,) = (item for item in device_arguments(load_layout("default")) if item.startswith("nvme,"))
    assert (
        "sriov_max_vfs=127,sriov_vq_flexible=254,sriov_vi_flexible=127,max_ioqpairs=264,msix_qsize=145"
        in argument
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[port]\n", r"x\.toml: not TOML: "),
        ("[ports]\n", r"x\.toml: ports: unknown table; known: machine, port, "),
        ('[port]\nid = "a"\n', r"x\.toml: port: write it as \[\[port\]\]"),
        ("machine = 3\n", r"x\.toml: machine: a table is expected, not 3"),
        ('[[port]]\nid = "a"\nslot = 3\n', r"x\.toml: port\[0\]\.slot: unknown key; known: id"),
        ("[[port]]\n", r"x\.toml: port\[0\]\.id: missing"),
        ('[[port]]\nid = ""\n', r"x\.toml: port\[0\]\.id: a non-empty string is expected, not ''"),
        ("[machine]\ncpus = true\n", r"x\.toml: machine\.cpus: a number from 0 up is expected, not True"),
        (
            "[machine]\nmemory-mib = -1\n",
            r"x\.toml: machine\.memory-mib: a number from 0 up is expected, not -1",
        ),
        ("[machine]\nmemory-mib = 64\n", r"x\.toml: machine: memory-mib from 512"),
        (
            "[machine]\nkernel-arguments = [1]\n",
            r"x\.toml: machine\.kernel-arguments: a list of strings is expected",
        ),
        ('[[port]]\nid = "a"\n[[port]]\nid = "a"\n', r"x\.toml: port a: the id 'a' is taken"),
        (
            '[[port]]\nid = "a"\n[[igb]]\nid = "i"\nport = "b"\n',
            r"x\.toml: igb i\.port: 'b' is no port; ports: a",
        ),
        (
            '[[port]]\nid = "a"\n[[igb]]\nid = "i"\nport = "a"\n[[nvme]]\nid = "n"\nport = "a"\nvfs = 1\n',
            r"x\.toml: nvme n\.port: 'a' already holds i",
        ),
        (
            '[[port]]\nid = "a"\n[[nvme]]\nid = "n"\nport = "a"\nvfs = 128\n',
            r"x\.toml: nvme n\.vfs: 1 to 127 .* not 128",
        ),
        (
            "".join(f'[[port]]\nid = "p{n}"\n' for n in range(28)),
            r"x\.toml: port: 28 root ports do not fit, 27 do",
        ),
    ],
)
def test_wrong_layout_is_refused_with_file_and_key(text: str, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        parse_layout(text, "x.toml")


def test_missing_layout_names_those_there_are() -> None:
    with pytest.raises(
        LayoutError, match=r"nowhere\.toml: cannot be read: .*layouts there are: default, switch"
    ):
        load_layout("nowhere")


# --- recipes and cache


def test_cache_keys_differ_between_artefacts_and_repeat() -> None:
    recipes = [TOOLS_RECIPE, *(guest_recipe(kernel) for kernel in KERNELS)]
    assert len({recipe.cache_key() for recipe in recipes}) == len(recipes)
    assert [recipe.cache_key() for recipe in recipes] == [recipe.cache_key() for recipe in recipes]


def test_cache_key_changes_with_a_package_and_with_a_file_of_the_guest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = guest_recipe("6.12")
    assert dataclasses.replace(recipe, packages=(*recipe.packages, "vim")).cache_key() != recipe.cache_key()
    shutil.copytree(HERE, tmp_path / "lab")
    monkeypatch.setattr("tests.lab.recipe.HERE", tmp_path / "lab")
    assert (before := recipe.cache_key()) == guest_recipe("6.12").cache_key()
    with open(tmp_path / "lab/customize-guest.sh", "a", encoding="utf-8") as file:
        file.write("# changed\n")
    assert recipe.cache_key() != before


def test_unknown_kernel_names_the_known_ones() -> None:
    with pytest.raises(UnknownKernel, match=r"LAB_KERNEL='5\.10' is unknown; known: 6\.1, 6\.12, 7\.2"):
        guest_recipe("5.10")


def test_failed_build_leaves_log_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRIOVD_LAB_CACHE", str(tmp_path))
    monkeypatch.setattr(
        image,
        "bootstrap_argv",
        lambda recipe, root: ["sh", "-c", f"mkdir {root}; echo no such suite >&2; exit 25"],
    )
    with pytest.raises(image.BuildFailed, match=r"(?s)no such suite.*the whole log: .*tools\.log"):
        image.ensure_artefact(TOOLS_RECIPE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tools.lock", "tools.log"]


def test_artefact_is_built_once_and_old_keys_are_pruned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SRIOVD_LAB_CACHE", str(tmp_path))
    builds: list[str] = []

    def record_build(recipe: object, root: Path) -> list[str]:
        builds.append(root.name)
        return ["mkdir", str(root)]

    monkeypatch.setattr(image, "bootstrap_argv", record_build)
    paths = []
    for generation in range(3):
        recipe = dataclasses.replace(TOOLS_RECIPE, packages=(f"package{generation}",))
        paths.append(image.ensure_artefact(recipe))
        assert image.ensure_artefact(recipe) == paths[-1]
        os.utime(paths[-1], (generation, generation))
    assert len(builds) == 3
    assert [path.exists() for path in paths] == [False, True, True]


def test_missing_machine_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "find_program", lambda name: None)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert host.missing_reason() == "packages are missing; run: apt-get install mmdebstrap e2fsprogs git"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert host.missing_reason() == "it builds Debian roots and needs root; run it as root or with sudo"
    monkeypatch.setattr(host, "FREE_SPACE_BYTES", 1 << 60)
    assert "SRIOVD_LAB_CACHE= names another place" in (
        host.disk_reason(tmp_path / "not" / "there" / "yet") or ""
    )


# --- packing


def test_packed_project_has_untracked_files_and_no_ignored_ones(tmp_path: Path) -> None:
    def git(*argv: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path / "tree"), *argv], check=True, capture_output=True)

    (tmp_path / "tree").mkdir()
    git("init", "--quiet")
    for name, text in {
        "tracked": "a",
        "deleted": "b",
        "untracked": "c",
        "ignored": "d",
        ".gitignore": "ignored\n",
    }.items():
        (tmp_path / "tree" / name).write_text(text)
    git("add", "tracked", "deleted", ".gitignore")
    (tmp_path / "tree/deleted").unlink()
    pack_project(tmp_path / "project.tar", tmp_path / "tree")
    with tarfile.open(tmp_path / "project.tar") as tar:
        assert tar.getnames() == [".gitignore", "tracked", "untracked"]
        assert {member.uname for member in tar} == {"root"}
    assert (tmp_path / "project.tar").stat().st_size % 512 == 0


def test_tree_outside_git_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"cannot be packed for the guest: .*not a git repository"):
        project_files(tmp_path)


# --- boot


@pytest.mark.parametrize("stalls", [1, 2])
def test_a_boot_without_its_timer_is_begun_anew_once(monkeypatch: pytest.MonkeyPatch, stalls: int) -> None:
    ends: list[Exception | object] = [LostTimer("ping: no reply")] * stalls + [object()]
    booted = ends[-1]

    def boot(*_: object) -> object:
        if isinstance(end := ends.pop(0), Exception):
            raise end
        return end

    monkeypatch.setattr(Guest, "_boot", boot)
    with pytest.warns(UserWarning, match="boots again: ping"):
        if stalls == 1:
            assert Guest.boot(load_layout("default")) is booted
        else:
            with pytest.raises(LostTimer):
                Guest.boot(load_layout("default"))


@pytest.mark.parametrize(
    ("serial", "error"),
    [
        (f"[   46.797966] rcu: \t{LOST_TIMER} for 5251 jiffies! g-1071 f0x0", LostTimer),
        ("[    3.1] systemd[1]: Started something that takes long", DeadlineExceeded),
    ],
)
def test_only_a_lost_timer_is_no_fault_of_the_guest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, serial: str, error: type[Exception]
) -> None:
    def ask(*_: object, **__: object) -> None:
        raise DeadlineExceeded("ping: no reply")

    guest = object.__new__(Guest)
    guest.directory = tmp_path
    (tmp_path / "serial.log").write_text(serial)
    monkeypatch.setattr(guest, "qmp", lambda _: None)
    monkeypatch.setattr(guest, "request", ask)
    with pytest.raises(DeadlineExceeded) as caught:
        guest.await_boot()
    assert caught.type is error
