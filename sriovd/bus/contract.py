"""The contract: every interface of the daemon, read from one XML file in D-Bus introspection format.

Documentation is part of it: each interface, member and argument has a `<doc>` child, or a DocString
annotation. The four standard interfaces are not in the file: introspect.py adds them to every object. Pure
but for reading the file. Rules: D-Bus specification, "Introspection Data Format" and "Valid Names".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from sriovd.bus.signature import SignatureError, parse_signature, parse_single
from sriovd.bus.xmltree import Element, XmlError, parse_xml

DOC_ANNOTATION = "org.freedesktop.DBus.DocString"
EMITS_ANNOTATION = "org.freedesktop.DBus.Property.EmitsChangedSignal"

_INTERFACE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)+")
_MEMBER_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ARGUMENT_NAME = re.compile(r"[a-z][a-z0-9_]*")


class ContractError(ValueError):
    """The contract file is wrong; the message starts with file and line."""


class ContractMismatch(ValueError):
    """The program does not do what the contract says: a defect of the program, not of its user."""


class EmitsChanged(StrEnum):
    """What PropertiesChanged says about a property."""

    TRUE = "true"
    CONST = "const"
    INVALIDATES = "invalidates"
    FALSE = "false"


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a method or signal. signature: one complete type."""

    name: str
    signature: str
    doc: str


@dataclass(frozen=True, slots=True)
class Method:
    """A method. annotations: those other than documentation, as they are."""

    name: str
    doc: str
    in_args: tuple[Argument, ...]
    out_args: tuple[Argument, ...]
    annotations: Mapping[str, str]

    @property
    def in_signature(self) -> str:
        """The types of all arguments."""
        return "".join(argument.signature for argument in self.in_args)

    @property
    def out_signature(self) -> str:
        """The types of all results."""
        return "".join(argument.signature for argument in self.out_args)


@dataclass(frozen=True, slots=True)
class Signal:
    """A signal, besides the standard ones."""

    name: str
    doc: str
    args: tuple[Argument, ...]
    annotations: Mapping[str, str]

    @property
    def signature(self) -> str:
        """The types of all arguments."""
        return "".join(argument.signature for argument in self.args)


@dataclass(frozen=True, slots=True)
class Property:
    """A property; all are read-only: what changes something is a method, which can fail with a reason."""

    name: str
    signature: str
    doc: str
    emits: EmitsChanged
    annotations: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface with its members by name."""

    name: str
    doc: str
    methods: Mapping[str, Method]
    properties: Mapping[str, Property]
    signals: Mapping[str, Signal]
    annotations: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Contract:
    """All interfaces by name, in the order of the file."""

    interfaces: Mapping[str, Interface]


def load_contract(path: Path) -> Contract:
    """Read and check the contract. Raises ContractError with file and line, OSError."""
    try:
        root = parse_xml(path.read_bytes())
        if root.tag != "node":
            raise XmlError(f"the outermost element is <{root.tag}>, where <node> is expected", root.line)
        _check_children(root, {"interface"})
        return Contract(_by_name(root, "interface", _read_interface))
    except XmlError as error:
        raise ContractError(f"{path}:{error.line}: {error}") from None


_Record = TypeVar("_Record", Interface, Method, Signal, Property)


def _by_name(parent: Element, tag: str, read: Callable[[Element], _Record]) -> Mapping[str, _Record]:
    records: dict[str, _Record] = {}
    for element in parent.children:
        if element.tag != tag:
            continue
        record = read(element)
        if record.name in records:
            raise XmlError(f"{tag} '{record.name}' is there twice", element.line)
        records[record.name] = record
    return MappingProxyType(records)


def _read_interface(element: Element) -> Interface:
    _check_children(element, {"method", "property", "signal", "annotation", "doc"})
    name = _read_name(element, _INTERFACE_NAME)
    if name.startswith("org.freedesktop.DBus."):
        raise XmlError(f"'{name}' is standard, every object has it: leave it out", element.line)
    return Interface(
        name,
        _read_doc(element),
        _by_name(element, "method", _read_method),
        _by_name(element, "property", _read_property),
        _by_name(element, "signal", _read_signal),
        _read_annotations(element),
    )


def _read_method(element: Element) -> Method:
    _check_children(element, {"arg", "annotation", "doc"})
    name, arguments = _read_name(element, _MEMBER_NAME), _read_arguments(element, {"in", "out"})
    return Method(
        name,
        _read_doc(element),
        tuple(arg for direction, arg in arguments if direction == "in"),
        tuple(arg for direction, arg in arguments if direction == "out"),
        _read_annotations(element),
    )


def _read_signal(element: Element) -> Signal:
    _check_children(element, {"arg", "annotation", "doc"})
    name, arguments = _read_name(element, _MEMBER_NAME), _read_arguments(element, {"out"})
    return Signal(name, _read_doc(element), tuple(arg for _, arg in arguments), _read_annotations(element))


def _read_property(element: Element) -> Property:
    _check_children(element, {"annotation", "doc"})
    name, annotations = _read_name(element, _MEMBER_NAME), dict(_read_annotations(element))
    if (access := element.attributes.get("access")) != "read":
        raise XmlError(f"property '{name}': access is '{access}', only 'read' is possible", element.line)
    emits = annotations.pop(EMITS_ANNOTATION, EmitsChanged.TRUE.value)
    if emits not in set(EmitsChanged):
        raise XmlError(f"property '{name}': '{emits}' is not one of {', '.join(EmitsChanged)}", element.line)
    return Property(
        name, _read_type(element), _read_doc(element), EmitsChanged(emits), MappingProxyType(annotations)
    )


def _read_arguments(element: Element, directions: set[str]) -> list[tuple[str, Argument]]:
    arguments: list[tuple[str, Argument]] = []
    for child in element.children:
        if child.tag != "arg":
            continue
        _check_children(child, {"annotation", "doc"})
        default = "in" if "in" in directions else "out"
        direction = child.attributes.get("direction", default)
        if direction not in directions:
            raise XmlError(f"direction '{direction}' is not possible here", child.line)
        argument = Argument(_read_name(child, _ARGUMENT_NAME), _read_type(child), _read_doc(child))
        if any(argument.name == other.name for _, other in arguments):
            raise XmlError(f"argument '{argument.name}' is there twice", child.line)
        arguments.append((direction, argument))
    _check_total_signature(arguments, element)
    return arguments


def _check_total_signature(arguments: list[tuple[str, Argument]], element: Element) -> None:
    for direction in ("in", "out"):
        try:
            parse_signature("".join(arg.signature for way, arg in arguments if way == direction))
        except SignatureError as error:
            raise XmlError(str(error), element.line) from None


def _read_name(element: Element, form: re.Pattern[str]) -> str:
    name = element.attributes.get("name", "")
    if not form.fullmatch(name) or len(name) > 255:
        raise XmlError(f"<{element.tag}> needs a name like {form.pattern}, not '{name}'", element.line)
    return name


def _read_type(element: Element) -> str:
    try:
        return parse_single(element.attributes.get("type", "")).text
    except SignatureError as error:
        raise XmlError(
            f"<{element.tag}> '{element.attributes.get('name')}': {error}", element.line
        ) from None


def _read_doc(element: Element) -> str:
    texts = [child.text for child in element.children if child.tag == "doc"]
    texts += [
        child.attributes.get("value", "")
        for child in element.children
        if child.tag == "annotation" and child.attributes.get("name") == DOC_ANNOTATION
    ]
    if len(texts) != 1 or not (text := " ".join(texts[0].split())):
        problem = "is documented twice" if len(texts) > 1 else "has no documentation"
        raise XmlError(f"<{element.tag}> '{element.attributes.get('name')}' {problem}", element.line)
    return text


def _read_annotations(element: Element) -> Mapping[str, str]:
    annotations: dict[str, str] = {}
    for child in element.children:
        if child.tag != "annotation" or child.attributes.get("name") == DOC_ANNOTATION:
            continue
        if child.attributes.keys() != {"name", "value"}:
            raise XmlError("<annotation> needs exactly a name and a value", child.line)
        annotations[child.attributes["name"]] = child.attributes["value"]
    return MappingProxyType(annotations)


def _check_children(element: Element, allowed: set[str]) -> None:
    for child in element.children:
        if child.tag not in allowed:
            raise XmlError(f"<{child.tag}> is not possible in <{element.tag}>", child.line)
