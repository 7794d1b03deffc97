"""The way into the guest, without one: frames, and the agent served over a socket pair."""

from __future__ import annotations

import base64
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import agent, channel, qemu
from tests.lab.channel import Channel, ChannelClosed, Pending, RequestFailed
from tests.lab.guest import CommandFailed, Result
from tests.lab.project import PROJECT_ROOT
from tests.lab.waiting import DeadlineExceeded, wait_until

REPLY_TIMEOUT_S = 10.0


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


def test_the_most_output_of_both_streams_arrives(link: Channel) -> None:
    """A whole run's journal is that big, and is wanted when a test has failed."""
    size = agent.OUTPUT_LIMIT_BYTES
    frame = send(
        link,
        "run",
        argv=f"head -c {size + 1} /dev/zero; head -c {size + 1} /dev/zero >&2",
        timeout_s=REPLY_TIMEOUT_S,
    ).wait(REPLY_TIMEOUT_S)
    sizes = [len(base64.b64decode(frame[stream])) for stream in ("stdout", "stderr")]
    assert (sizes, frame["dropped_bytes"]) == ([size, size], 2)


def test_stream_of_nonsense_is_called_that() -> None:
    ours, theirs = socket.socketpair()
    connection = Channel(ours, "agent")
    pending = connection.request({"op": "ping"}, "ping")
    theirs.sendall(b"nonsense\n")
    with pytest.raises(
        ChannelClosed, match=r"ping: the stream of the agent broke: not a frame: b'nonsense'"
    ):
        pending.wait(REPLY_TIMEOUT_S)
    theirs.close()
    connection.close()


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
