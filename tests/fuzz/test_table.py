"""No parser is forgotten: whatever of sriovd takes bytes or text apart is in the table, or says why not."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.fuzz.table import EXCEPTIONS, TABLE
from tests.test_architecture import MODULES

# Calls that take something apart, by their last name.
_PARSING = frozenset(
    {
        "from_bytes", "fromhex", "unpack", "unpack_from", "iter_unpack", "decode", "loads", "b64decode",
        "decompress", "decompressobj", "fullmatch", "finditer", "compile", "convert", "Struct",
        "Unmarshaller", "ParserCreate",
    }
)  # fmt: skip
_COVERED = {module for entry in TABLE.values() for module in entry.modules}


def find_parsing(source: str) -> Iterator[str]:
    """The parsing calls of a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in _PARSING:
                yield f"{name} in line {node.lineno}"


def complain(module: str, source: str) -> list[str]:
    """What nobody tries in `module`."""
    return [] if module in _COVERED or module in EXCEPTIONS else list(find_parsing(source))


@pytest.mark.parametrize("module", MODULES)
def test_what_parses_is_tried(module: str) -> None:
    assert complain(module, MODULES[module].read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "int.from_bytes(data)",
        "import struct\nstruct.unpack('<I', x)",
        "json.loads(x)",
        "x.decode()",
        "re.compile('x')",
    ],
)
def test_a_new_parser_is_noticed(source: str) -> None:
    assert len(complain("sriovd.newcomer", source)) == 1


def test_the_table_speaks_of_what_there_is() -> None:
    assert {*_COVERED, *EXCEPTIONS} - set(MODULES) == set()


def test_an_exception_is_one() -> None:
    """It parses something, nobody tries it, and the reason is said."""
    for module, reason in EXCEPTIONS.items():
        assert list(find_parsing(MODULES[module].read_text())), f"{module} parses nothing"
        assert module not in _COVERED
        assert reason
