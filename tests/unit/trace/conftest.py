"""A reader of traces in C, compiled from the header that is installed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
HEADERS = HERE.parent.parent.parent / "sriovd/trace"
FLAGS = ("-std=c11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pedantic", f"-I{HEADERS}")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")

Compile = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def compile_c() -> Compile:
    """compile_c(source, program, *options): what the compiler says. Skips where there is none."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("no gcc: traces are not read from C")

    def compile_one(source: Path, program: Path, *options: str) -> subprocess.CompletedProcess[str]:
        command = [compiler, *FLAGS, *options, str(source), "-o", str(program)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    return compile_one


@pytest.fixture(scope="session")
def c_reader(compile_c: Compile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """reader.c as a program; with sanitizers where the compiler has them."""
    program = tmp_path_factory.mktemp("reader") / "reader"
    if compile_c(HERE / "reader.c", program, *SANITIZERS).returncode:
        done = compile_c(HERE / "reader.c", program)
        assert (done.returncode, done.stderr) == (0, "")
    return program
