"""The harness itself, without a guest: layouts, recipes, cache, packing, and the agent served over a socket
pair instead of a virtio-serial port.
"""

from __future__ import annotations

import base64
import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import agent, channel, host, image, qemu
from tests.lab.channel import Channel, ChannelClosed, Pending, RequestFailed
from tests.lab.guest import CommandFailed, Result
from tests.lab.layout import LAYOUTS, LayoutError, device_arguments, load_layout, parse_layout
from tests.lab.project import PROJECT_ROOT, pack_project, project_files
from tests.lab.recipe import HERE, SUITES_OF_KERNEL, TOOLS_RECIPE, UnknownKernel, guest_recipe
from tests.lab.waiting import DeadlineExceeded, wait_until

REPLY_TIMEOUT_S = 10.0


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
    recipes = [TOOLS_RECIPE, *(guest_recipe(kernel) for kernel in SUITES_OF_KERNEL)]
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


# --- the agent


@pytest.fixture
def link() -> Iterator[Channel]:
    """A channel to an agent that runs in a thread of this process."""
    ours, theirs = socket.socketpair()
    server = threading.Thread(target=agent.Agent(theirs.fileno()).serve, daemon=True)
    server.start()
    connection = Channel(ours, "agent")
    yield connection
    connection.close()
    server.join(REPLY_TIMEOUT_S)
    assert not server.is_alive()
    theirs.close()


def send(link: Channel, operation: str, **values: object) -> Pending:
    return link.request({"op": operation} | values, operation)


def run(link: Channel, command: object, timeout_s: float = REPLY_TIMEOUT_S, **values: object) -> Result:
    frame = send(link, "run", argv=command, timeout_s=timeout_s, **values).wait(REPLY_TIMEOUT_S)
    return Result.of(str(command), frame)


def test_frames_survive_any_cut() -> None:
    data = agent.encode_frame({"id": 1, "text": "ä\n"}) + b"\n" + agent.encode_frame({"id": 2})
    for size in range(1, len(data)):
        reader = agent.FrameReader()
        lines = [
            line for start in range(0, len(data), size) for line in reader.feed(data[start : start + size])
        ]
        assert [reader.decode(line) for line in lines] == [{"id": 1, "text": "ä\n"}, {"id": 2}]


@pytest.mark.parametrize("line", [b"{", b"[1]", b"\xff", b"7"])
def test_line_that_is_no_frame_is_named(line: bytes) -> None:
    with pytest.raises(ValueError, match="not a frame: "):
        agent.FrameReader.decode(line)


def test_frame_without_end_is_refused_and_forgotten() -> None:
    reader = agent.FrameReader()
    with pytest.raises(ValueError, match="frame longer than"):
        reader.feed(b"x" * (agent.FRAME_LIMIT_BYTES + 1))
    assert reader.feed(b'{"id":3}\n') == [b'{"id":3}']


def test_command_returns_status_output_and_input(link: Channel) -> None:
    assert run(link, "cat; echo oops >&2; exit 3", input=base64.b64encode(b"fed").decode()) == Result(
        "cat; echo oops >&2; exit 3", 3, "fed", "oops\n", timed_out=False
    )
    assert run(link, ["printf", "%s|", "a b", "$HOME"]).stdout == "a b|$HOME|"


def test_commands_run_side_by_side(link: Channel) -> None:
    waiting = send(link, "run", argv="read -r line", timeout_s=REPLY_TIMEOUT_S, input="")
    sleeper = send(link, "run", argv="sleep 60", timeout_s=60.0)
    assert waiting.wait(REPLY_TIMEOUT_S)["status"] == 1
    assert run(link, "echo free").stdout == "free\n"
    assert not sleeper.done
    send(link, "signal", command=sleeper.number, signal=int(signal.SIGTERM)).wait(REPLY_TIMEOUT_S)
    assert sleeper.wait(REPLY_TIMEOUT_S)["status"] == -signal.SIGTERM


def test_output_so_far_can_be_read(link: Channel) -> None:
    command = send(link, "run", argv="echo begun; sleep 60", timeout_s=60.0)

    def output() -> str:
        return Result.of("", send(link, "peek", command=command.number).wait(REPLY_TIMEOUT_S)).stdout

    assert wait_until(output, REPLY_TIMEOUT_S, "output") == "begun\n"
    send(link, "signal", command=command.number, signal=int(signal.SIGKILL)).wait(REPLY_TIMEOUT_S)
    command.wait(REPLY_TIMEOUT_S)
    with pytest.raises(RequestFailed, match=f"command {command.number} is not running"):
        output()


def test_deadline_kills_the_whole_process_group(link: Channel) -> None:
    result = run(link, "sleep 61 & echo $!; wait", timeout_s=0.3)
    assert (result.timed_out, result.status) == (True, -signal.SIGKILL)
    assert (
        not Path(f"/proc/{result.stdout.strip()}").exists()
        or "zombie" in Path(f"/proc/{result.stdout.strip()}/status").read_text()
    )


def test_command_that_cannot_be_killed_is_left_behind(
    link: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[agent.Command] = []
    really_send = agent.Command.send_signal
    monkeypatch.setattr(
        agent.Command, "send_signal", lambda self, number: started.append(self)
    )  # as a task in D state takes SIGKILL
    stuck = send(link, "run", argv="echo before; sleep 60", timeout_s=0.2)
    assert run(link, "echo free").stdout == "free\n"
    result = Result.of("", stuck.wait(REPLY_TIMEOUT_S))
    assert (result.timed_out, result.status, result.stdout) == (True, None, "before\n")
    really_send(started[0], signal.SIGKILL)


def test_daemonised_grandchild_does_not_hold_the_reply(link: Channel) -> None:
    result = run(link, "setsid sleep 60 & echo $!")
    os.kill(int(result.stdout), signal.SIGKILL)
    assert (result.status, result.timed_out) == (0, False)


def test_output_is_bounded(link: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "OUTPUT_LIMIT_BYTES", 1000)
    frame = send(link, "run", argv="head -c 5000 /dev/zero", timeout_s=REPLY_TIMEOUT_S).wait(REPLY_TIMEOUT_S)
    assert (len(base64.b64decode(frame["stdout"])), frame["dropped_bytes"]) == (1000, 4000)


def test_errors_of_requests_are_replies(link: Channel) -> None:
    for frame, message in (
        ({"op": "dance"}, "op 'dance' is unknown; known: ping, run"),
        ({"op": "run", "argv": ["/no/such/program"], "timeout_s": 1}, "FileNotFoundError.*/no/such/program"),
        ({"op": "get", "path": "/no/such/file", "offset": 0}, "FileNotFoundError.*/no/such/file"),
        ({"op": "run", "timeout_s": 1}, "KeyError: 'argv'"),
    ):
        with pytest.raises(RequestFailed, match=message):
            link.request(frame, "request").wait(REPLY_TIMEOUT_S)
    assert send(link, "ping").wait(REPLY_TIMEOUT_S)["pid"] == os.getpid()


def test_files_are_written_and_read(link: Channel, tmp_path: Path) -> None:
    path = str(tmp_path / "folder" / "file")
    for offset, part in ((0, b"abc"), (3, b"def"), (0, b"xy")):
        send(link, "put", path=path, data=base64.b64encode(part).decode(), offset=offset, mode=0o600).wait(
            REPLY_TIMEOUT_S
        )
        assert Path(path).read_bytes() == {3: b"abcdef"}.get(offset, part)
    assert base64.b64decode(send(link, "get", path=path, offset=1).wait(REPLY_TIMEOUT_S)["data"]) == b"y"
    assert Path(path).stat().st_mode & 0o777 == 0o600


# --- the streams into QEMU, and its end


def test_end_of_stream_wakes_everybody() -> None:
    ours, theirs = socket.socketpair()
    link = Channel(ours, "agent")
    pending = send(link, "ping")
    theirs.close()
    with pytest.raises(ChannelClosed, match="ping: QEMU has ended"):
        pending.wait(REPLY_TIMEOUT_S)
    with pytest.raises(ChannelClosed):
        send(link, "ping")
    link.close()


def test_reader_that_sleeps_does_not_block_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "SEND_TIMEOUT_S", 0.2)
    ours, theirs = socket.socketpair()
    link = Channel(ours, "agent")
    with pytest.raises(DeadlineExceeded, match="put: agent does not read"):
        send(link, "put", data="x" * (16 << 20))
    link.close()
    theirs.close()


def test_qemu_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    """The parent is killed by SIGKILL, so nothing but the kernel can end the child."""
    script = (
        "import pathlib, time; from tests.lab.qemu import start_qemu;"
        "process = start_qemu(['sleep', '600'], [], pathlib.Path('log'));"
        "print(process.pid, flush=True); time.sleep(600)"
    )
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE, env=environment, text=True
    ) as parent:
        assert parent.stdout is not None
        child = Path(f"/proc/{int(parent.stdout.readline())}")
        wait_until(
            lambda: (child / "comm").read_text() == "sleep\n", REPLY_TIMEOUT_S, "the child to become itself"
        )
        parent.kill()
    wait_until(
        lambda: not child.exists() or ") Z " in (child / "stat").read_text(),
        REPLY_TIMEOUT_S,
        "the child's end",
    )


def test_killing_qemu_is_certain_and_repeatable(tmp_path: Path) -> None:
    process = qemu.start_qemu(["sh", "-c", "trap '' TERM INT; sleep 600"], [], tmp_path / "log")
    qemu.kill_qemu(process)
    qemu.kill_qemu(process)
    assert process.returncode == -signal.SIGKILL


# --- waiting and results


def test_wait_until_returns_the_value_or_says_what_was_missing() -> None:
    values = iter((0, "", "third"))
    assert wait_until(lambda: next(values), 5.0, "a value") == "third"
    started_s = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"the third VF: not within 0\.3 s; last seen: \[\]"):
        wait_until(list, 0.3, "the third VF")
    assert time.monotonic() - started_s < 2.0


def test_failed_command_shows_status_and_output() -> None:
    with pytest.raises(CommandFailed, match=r"(?s)false: ended with status 1\nout\nwhy"):
        Result("false", 1, "out\n", "why\n", timed_out=False).check()
    with pytest.raises(CommandFailed, match="hang: did not end in time"):
        Result("hang", None, "", "", timed_out=True).check()
