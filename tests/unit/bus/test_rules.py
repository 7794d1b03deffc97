"""The small pure parts: the error table, options, limits, paths."""

from __future__ import annotations

import ast
import asyncio
import inspect
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sriovd
from sriovd.bus.errors import ERRORS, LimitsExceeded, reply_for
from sriovd.bus.limits import CallLimiter, Limits
from sriovd.bus.options import parse_options
from sriovd.bus.paths import encode_path_element, is_object_path, parent_of
from sriovd.bus.signature import Variant
from sriovd.core import errors as core


def test_one_module_alone_imports_the_bus_library() -> None:
    folder = Path(sriovd.__file__).parent
    users = {
        str(path.relative_to(folder)) for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, (ast.Import, ast.ImportFrom)) and "dbus_next" in ast.unparse(node)
    }  # fmt: skip
    assert users == {"bus/transport.py"}


def test_every_error_of_core_is_in_the_table_under_its_own_name() -> None:
    classes = {
        cls for _, cls in inspect.getmembers(core, inspect.isclass)
        if issubclass(cls, core.SriovdError) and cls is not core.SriovdError
    }  # fmt: skip
    assert {row.cls: row.name for row in ERRORS} == {
        cls: f"org.sriovd1.Error.{cls.__name__}" for cls in classes
    }
    assert len(ERRORS) == len(classes)


def test_the_errors_own_hint_comes_before_the_tables() -> None:
    assert reply_for(core.InUse("it is open", "Close it.")).text == "it is open (Close it.)"
    assert reply_for(core.InUse("it is open")).text == "it is open (Let the holder close it first.)"
    assert reply_for(core.Cancelled("it was cancelled")).text == "it was cancelled"


def test_a_subclass_has_the_name_of_its_class_and_the_base_that_of_a_failure() -> None:
    class Special(core.Stuck):
        pass

    assert reply_for(Special("x")).name == "org.sriovd1.Error.Stuck"
    assert reply_for(core.SriovdError("x")).name == "org.sriovd1.Error.BackendFailed"
    assert reply_for(asyncio.CancelledError(), "Thing.Wait").text == "Thing.Wait was cancelled"


def test_options_come_out_plain() -> None:
    table = {"wait-usec": "t", "force": "b", "names": "as"}
    given_options = {
        "wait-usec": Variant("u", 5),
        "force": Variant("b", True),
        "names": Variant("as", ["a"]),
    }
    assert parse_options(given_options, table) == {"wait-usec": 5, "force": True, "names": ["a"]}
    assert parse_options({}, {}) == {}


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (
            "Force",
            Variant("b", True),
            "unknown option 'Force' (Known options: 'force' (a boolean), 'wait-usec'",
        ),
        ("force", Variant("u", 1), "option 'force' has type 'u' (It takes a boolean ('b').)"),
        ("wait-usec", Variant("d", 1.0), "It takes an unsigned 64-bit integer ('t')."),
        ("wait-usec", Variant("i", -1), "option 'wait-usec': -1 does not fit"),
        ("wait-usec", Variant("b", True), "has type 'b'"),
    ],
)
def test_a_wrong_option_is_named_with_what_would_be_right(key: str, value: Variant, said: str) -> None:
    with pytest.raises(core.InvalidArgument) as refused:
        parse_options({key: value}, {"force": "b", "wait-usec": "t"})
    assert said in reply_for(refused.value).text


def test_no_options_at_all_says_so() -> None:
    with pytest.raises(core.InvalidArgument) as refused:
        parse_options({"x": Variant("u", 1)}, {})
    assert refused.value.hint == "Known options: none."


def test_the_bucket_refills_with_time_and_large_calls_cost_more() -> None:
    limiter = CallLimiter(Limits(rate_per_s=10, burst=20))
    for _ in range(20):
        limiter.admit("a", 100, 0.0)
    with pytest.raises(LimitsExceeded):
        limiter.admit("a", 100, 0.0)
    limiter.admit("b", 100, 0.0)
    limiter.admit("a", 100, 0.1)
    limiter.admit("a", 9 * 1024, 1.2)
    with pytest.raises(LimitsExceeded):
        limiter.admit("a", 9 * 1024, 1.3)


def test_tenants_together_never_keep_the_administrator_out() -> None:
    limiter = CallLimiter(Limits(max_calls_per_user=2, max_calls=3))
    with ExitStack() as running:
        for uid in (1001, 1001, 1002):
            running.enter_context(limiter.running_for(uid))
        with pytest.raises(LimitsExceeded, match="2 calls of yours are running"), limiter.running_for(1001):
            pass
        with (
            pytest.raises(LimitsExceeded, match="too many calls are running: try again"),
            limiter.running_for(1003),
        ):
            pass
        for _ in range(5):
            running.enter_context(limiter.running_for(0))
    with limiter.running_for(1003):
        pass


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3000), st.floats(0, 0.01)), max_size=300))
def test_callers_that_are_done_are_forgotten(steps: list[tuple[int, float]]) -> None:
    limiter, now_s = CallLimiter(Limits(rate_per_s=1000, burst=10)), 0.0
    limiter.start("busy", now_s)
    for sender, step_s in steps:
        now_s += step_s
        limiter.admit(f":1.{sender}", 10, now_s)
    for number in range(5000):
        now_s += 0.02
        limiter.admit(f":2.{number}", 10, now_s)
    assert len(limiter) <= 65
    limiter.finish("busy")


@pytest.mark.parametrize(
    ("text", "is_path"),
    [("/", True), ("/a/_1", True), ("", False), ("a", False), ("/a/", False),
     ("//", False), ("/a\n", False), ("/é", False)],
)  # fmt: skip
def test_object_paths_have_one_form(text: str, is_path: bool) -> None:
    assert is_object_path(text) is is_path


def test_addresses_become_path_elements() -> None:
    assert encode_path_element("0000:01:00.0") == "_0000_01_00_0"
    assert is_object_path("/" + encode_path_element("ünï/ \n"))
    assert (parent_of("/a/b"), parent_of("/a"), parent_of("/")) == ("/a", "/", "/")
