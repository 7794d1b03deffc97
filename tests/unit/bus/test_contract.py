"""The contract file: what it becomes, what is refused and where, and the live XML that is made of it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from sriovd.bus.contract import ContractError, EmitsChanged, load_contract
from sriovd.bus.introspect import PROPERTIES, STANDARD_INTERFACES, Introspector

from .support import CONTRACT, PART, THING

_DOC = "<doc>d</doc>"
_METHOD = f'<method name="M">{_DOC}</method>'
_SIGNAL = f'<signal name="S">{_DOC}<arg name="a" type="s" direction="in">{_DOC}</arg></signal>'


def test_records_have_what_the_file_says() -> None:
    contract = load_contract(CONTRACT)
    thing = contract.interfaces[THING]
    echo = thing.methods["Echo"]
    assert (echo.in_signature, echo.out_signature) == ("sa{sv}", "su")
    assert [(arg.name, arg.doc) for arg in echo.in_args] == [
        ("text", "Any text."), ("options", 'Options: "count" (u).'),
    ]  # fmt: skip
    assert thing.signals["Poked"].signature == "u"
    assert {name: str(prop.emits) for name, prop in thing.properties.items()} == {
        "Name": "const", "Driver": "true", "Count": "true",
        "Blob": "invalidates", "Clock": "false", "Details": "true",
    }  # fmt: skip
    assert contract.interfaces[PART].annotations == {"org.freedesktop.DBus.Deprecated": "false"}


def test_an_annotation_documents_as_well(tmp_path: Path) -> None:
    annotation = '<annotation name="org.freedesktop.DBus.DocString" value="Said so."/>'
    contract = load_contract(_write(tmp_path, f'<interface name="a.B">{annotation}</interface>'))
    assert contract.interfaces["a.B"].doc == "Said so."


def _write(directory: Path, inside: str) -> Path:
    path = directory / "c.xml"
    path.write_text(f"<node>\n{inside}\n</node>")
    return path


def _in_interface(text: str) -> str:
    return f'<interface name="a.B">{_DOC}\n{text}</interface>'


def _property(attributes: str) -> str:
    return _in_interface(f'<property name="P" {attributes}>{_DOC}</property>')


def _method(arguments: str) -> str:
    return _in_interface(f'<method name="M">{_DOC}{arguments}</method>')


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ('<interface name="a.B"/>', 2, "'a.B' has no documentation"),
        ('<interface name="a.B"><doc> </doc></interface>', 2, "has no documentation"),
        (f'<interface name="a.B">{_DOC}{_DOC}</interface>', 2, "is documented twice"),
        (f'<interface name="B">{_DOC}</interface>', 2, "not 'B'"),
        (f'<interface name="org.freedesktop.DBus.Peer">{_DOC}</interface>', 2, "is standard"),
        (f"{_in_interface('')}\n{_in_interface('')}", 4, "interface 'a.B' is there twice"),
        ("<thing/>", 2, "<thing> is not possible in <node>"),
        (_in_interface('<method name="M"/>'), 3, "<method> 'M' has no documentation"),
        (_in_interface(f"<method>{_DOC}</method>"), 3, "not ''"),
        (_method(f'<arg type="s">{_DOC}</arg>'), 3, "<arg> needs a name"),
        (_method('<arg name="a" type="s"/>'), 3, "<arg> 'a' has no doc"),
        (_method(f'<arg name="a" type="ss">{_DOC}</arg>'), 3, "exactly one"),
        (_method(f'<arg name="a" type="a">{_DOC}</arg>'), 3, "the end"),
        (_method(f'<arg name="a" type="s" direction="up">{_DOC}</arg>'), 3, "'up'"),
        (_in_interface(_SIGNAL), 3, "'in'"),
        (_in_interface(f"{_METHOD}\n{_METHOD}"), 4, "method 'M' is there twice"),
        (_property('type="s" access="readwrite"'), 3, "only 'read'"),
        (_property('access="read"'), 3, "exactly one complete type"),
        ("<interface", 3, "not well-formed"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_file_and_line(tmp_path: Path, text: str, line: int, said: str) -> None:
    path = _write(tmp_path, text)
    with pytest.raises(ContractError) as refused:
        load_contract(path)
    assert str(refused.value).startswith(f"{path}:{line}: ")
    assert said in str(refused.value)


def test_an_argument_name_is_there_once(tmp_path: Path) -> None:
    argument = f'<arg name="a" type="s">{_DOC}</arg>'
    with pytest.raises(ContractError, match="argument 'a' is there twice"):
        load_contract(
            _write(tmp_path, _in_interface(f'<method name="M">{_DOC}{argument}{argument}</method>'))
        )


def test_an_unknown_emits_value_lists_the_known_ones(tmp_path: Path) -> None:
    annotation = '<annotation name="org.freedesktop.DBus.Property.EmitsChangedSignal" value="maybe"/>'
    prop = f'<property name="P" type="s" access="read">{_DOC}{annotation}</property>'
    with pytest.raises(ContractError, match=f"'maybe' is not one of {', '.join(EmitsChanged)}"):
        load_contract(_write(tmp_path, _in_interface(prop)))


def test_the_live_xml_says_what_the_file_says() -> None:
    text = Introspector(load_contract(CONTRACT)).describe([*STANDARD_INTERFACES, THING, PART], ["_1", "_2"])
    root = ET.fromstring(text)
    assert [node.get("name") for node in root.findall("node")] == ["_1", "_2"]
    assert [i.get("name") for i in root.findall("interface")] == [*STANDARD_INTERFACES, THING, PART]
    emits = "annotation[@name='org.freedesktop.DBus.Property.EmitsChangedSignal']"
    marked = {p.get("name"): p.find(emits) for p in root.iter("property")}
    assert {n: None if a is None else a.get("value") for n, a in marked.items()} == {
        "Name": "const", "Driver": None, "Count": None,
        "Blob": "invalidates", "Clock": "false", "Details": None,
        "Level": None, "Paths": None,
    }  # fmt: skip
    assert root.find(f"interface[@name='{PROPERTIES}']/signal[@name='PropertiesChanged']") is not None
