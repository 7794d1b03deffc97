"""`python -m sriovd.trace`: what it shows, what it says of bad files, and how it ends."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sriovd.trace.__main__ import main
from sriovd.trace.layout import CONSUMER, Flag
from sriovd.trace.record import RecordType, Status
from tests.unit.trace.buffers import PLAIN, Buffer, replace

ROOT = Path(__file__).parent.parent.parent.parent
FIRST = "[   12.345678] #1 <2 0000:01:10.2 write to-kernel bind ok 1234 us vfio-pci"


def save(path: Path, buffer: Buffer) -> str:
    path.write_bytes(buffer.memory)
    return str(path)


@pytest.fixture
def saved(tmp_path: Path) -> str:
    """Four records: three of a tree, one of them failed, and a kernel's."""
    buffer = Buffer(8)
    buffer.write(replace(PLAIN, type=RecordType.BEGIN, status=Status.BEGUN, transaction=1, parent=0))
    buffer.write(replace(PLAIN, transaction=1, parent=0))
    buffer.write(replace(PLAIN, status=Status.FAILED, errno=5, transaction=2, parent=1))
    buffer.write(replace(PLAIN, type=RecordType.UEVENT, transaction=3, parent=0))
    return save(tmp_path / "saved", buffer)


def show(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """The lines that `arguments` print, with nothing on standard error."""
    assert main([*arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out.splitlines()


def test_text_is_the_default(capsys: pytest.CaptureFixture[str], saved: str) -> None:
    lines = show(capsys, saved)
    assert len(lines) == 4
    assert lines[0].endswith("#1 0000:01:10.2 begin to-kernel bind begun 1234 us vfio-pci")
    assert lines == show(capsys, "--text", saved)


def test_filters(capsys: pytest.CaptureFixture[str], saved: str) -> None:
    assert [line.split()[2] for line in show(capsys, "--since-transaction", "2", saved)] == ["#2", "#3"]
    assert [line.split()[2] for line in show(capsys, "--failed", saved)] == ["#2"]
    types = [line.split()[4] for line in show(capsys, "--type", "begin", "--type", "uevent", saved)]
    assert types == ["begin", "uevent"]
    assert show(capsys, "--failed", "--type", "uevent", saved) == []


def test_a_tree_is_told_of_what_is_filtered_out(capsys: pytest.CaptureFixture[str], saved: str) -> None:
    (line,) = show(capsys, "--tree", "--failed", saved)
    assert "0000:01:10.2   write" in line


def test_json_lines(capsys: pytest.CaptureFixture[str], saved: str) -> None:
    assert [json.loads(line)["sequence"] for line in show(capsys, "--json", saved)] == [1, 2, 3, 4]


def test_chrome_is_one_array_of_all_files(
    capsys: pytest.CaptureFixture[str], saved: str, tmp_path: Path
) -> None:
    buffer = Buffer(4)
    buffer.fill(1)
    other = save(tmp_path / "other", buffer)
    events = json.loads("\n".join(show(capsys, "--chrome", saved, other)))
    assert {event["pid"] for event in events} == {1, 2}
    assert json.loads("\n".join(show(capsys, "--chrome", "--type", "grant", saved))) == []


def test_what_is_missing_is_told_of(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    buffer = Buffer(4)
    buffer.fill(10)
    buffer.store(buffer.offset_of(8), 0)
    path = save(tmp_path / "lossy", buffer)
    assert main([path]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 2
    assert captured.err == f"{path}: 2 records, 7 lost, 1 damaged\n"


def test_a_bad_file_is_named_and_the_others_are_shown(
    capsys: pytest.CaptureFixture[str], saved: str, tmp_path: Path
) -> None:
    bad = tmp_path / "bad"
    bad.write_bytes(b"no trace" * 1000)
    assert main([str(bad), saved, f"{tmp_path}/none"]) == 1
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 4
    assert captured.err.splitlines() == [
        f"{bad}: it begins with b'no trace' and not with b'SRIOVTRC'",
        f"{tmp_path}/none: it cannot be opened: No such file or directory; give the path of a saved buffer,"
        " or /proc/PID/fd/N of a process that has one",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--type", "nonsense", "x"],
        ["--json", "--chrome", "x"],
        ["--tree", "--json", "x"],
        ["--bogus", "x"],
    ],
)
def test_a_command_line_that_makes_no_sense(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: sriovd-trace" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "said"), [("--version", "trace format 1.0"), ("--help", "--follow")])
def test_questions(capsys: pytest.CaptureFixture[str], option: str, said: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main([option])
    assert ended.value.code == 0
    assert said in capsys.readouterr().out


class Live:
    """A sealed memfd that `python -m sriovd.trace` follows, as another process of the same user."""

    def __init__(self, flags: Flag, *options: str) -> None:
        self.buffer = Buffer(4, flags)
        self.descriptor = os.memfd_create("trace", os.MFD_ALLOW_SEALING)
        self.publish(0)
        fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        path = f"/proc/{os.getpid()}/fd/{self.descriptor}"
        command = [sys.executable, "-m", "sriovd.trace", "--follow", *options, path]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def publish(self, count: int) -> None:
        """Write `count` records; the consumer is the follower's."""
        if self.buffer.producer:
            self.buffer.store(CONSUMER, self.consumer)
        self.buffer.fill(count)
        os.pwrite(self.descriptor, self.buffer.memory[136:], 136)
        os.pwrite(self.descriptor, self.buffer.memory[:128], 0)

    @property
    def consumer(self) -> int:
        return int.from_bytes(os.pread(self.descriptor, 8, CONSUMER), "little")

    def read_line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def read_rest(self) -> str:
        """What it still says until it ends, as it has to, well and without a complaint."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        rest = self.process.stdout.read()
        assert (self.process.wait(), self.process.stderr.read()) == (0, "")
        return rest


@pytest.fixture
def live(request: pytest.FixtureRequest) -> Iterator[Live]:
    follower = Live(*request.param)
    yield follower
    follower.process.kill()
    follower.process.communicate()
    os.close(follower.descriptor)


@pytest.mark.parametrize("live", [(Flag.ACTIVE,)], indirect=True)
def test_following_shows_what_happens_and_ends_with_the_tracing(live: Live) -> None:
    live.publish(1)
    assert live.read_line() == FIRST
    live.publish(1)
    assert "#2" in live.read_line()
    live.buffer.memory[24] = 0
    live.publish(1)
    assert live.read_rest().count("\n") == 1


@pytest.mark.parametrize("live", [(Flag.ACTIVE, "--chrome")], indirect=True)
def test_an_interrupt_ends_it_well(live: Live) -> None:
    live.publish(1)
    line = live.read_line()
    assert line == "["
    live.process.send_signal(signal.SIGINT)
    assert json.loads(line + live.read_rest())


@pytest.mark.parametrize("live", [(Flag.DROP | Flag.ACTIVE, "--consume")], indirect=True)
def test_a_consumer_makes_room(live: Live) -> None:
    for burst in range(3):
        live.publish(4)
        for _ in range(4):
            assert "#" in live.read_line()
        live.publish(0)
        while live.consumer != 4 * (burst + 1):  # the test's time limit ends this
            assert live.process.poll() is None
    live.buffer.memory[24] = Flag.DROP
    live.publish(0)
    assert live.read_rest() == ""


def test_a_pipe_that_is_closed_is_no_error(saved: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "sriovd.trace", saved]
    done = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
