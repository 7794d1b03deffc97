"""The live introspection XML of an object: the contract's interfaces that it has, the standard ones, its
children.

Pure. The text of an interface never changes, so it is made once. The standard interfaces are those of the
D-Bus specification, "Standard Interfaces"; busctl and GDBus take only elements of the introspection format,
so documentation travels as DocString annotations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sriovd.bus.contract import (
    DOC_ANNOTATION,
    EMITS_ANNOTATION,
    Argument,
    Contract,
    EmitsChanged,
    Interface,
    Method,
    Property,
    Signal,
)

PROPERTIES = "org.freedesktop.DBus.Properties"
INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
PEER = "org.freedesktop.DBus.Peer"
OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"

_HEAD = """<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">
<node>
"""


def _method(name: str, in_args: Iterable[tuple[str, str]], out_args: Iterable[tuple[str, str]]) -> Method:
    return Method(name, "", _arguments(in_args), _arguments(out_args), {})


def _signal(name: str, *args: tuple[str, str]) -> Signal:
    return Signal(name, "", _arguments(args), {})


def _arguments(args: Iterable[tuple[str, str]]) -> tuple[Argument, ...]:
    return tuple(Argument(name, signature, "") for name, signature in args)


def _standard(name: str, methods: Iterable[Method], signals: Iterable[Signal] = ()) -> Interface:
    return Interface(name, "", {m.name: m for m in methods}, {}, {s.name: s for s in signals}, {})


STANDARD_INTERFACES: Mapping[str, Interface] = {
    interface.name: interface
    for interface in (
        _standard(PEER, [_method("Ping", (), ()), _method("GetMachineId", (), [("machine_uuid", "s")])]),
        _standard(INTROSPECTABLE, [_method("Introspect", (), [("xml_data", "s")])]),
        _standard(
            PROPERTIES,
            [
                _method("Get", [("interface_name", "s"), ("property_name", "s")], [("value", "v")]),
                _method("GetAll", [("interface_name", "s")], [("properties", "a{sv}")]),
                _method("Set", [("interface_name", "s"), ("property_name", "s"), ("value", "v")], ()),
            ],
            [
                _signal(
                    "PropertiesChanged",
                    ("interface_name", "s"),
                    ("changed_properties", "a{sv}"),
                    ("invalidated_properties", "as"),
                )
            ],
        ),
        _standard(
            OBJECT_MANAGER,
            [_method("GetManagedObjects", (), [("objects", "a{oa{sa{sv}}}")])],
            [
                _signal("InterfacesAdded", ("object_path", "o"), ("interfaces", "a{sa{sv}}")),
                _signal("InterfacesRemoved", ("object_path", "o"), ("interfaces", "as")),
            ],
        ),
    )
}
"""Every object has the first three; the object manager's root has the fourth."""


class Introspector:
    """Makes introspection documents for one contract."""

    def __init__(self, contract: Contract) -> None:
        interfaces = {**STANDARD_INTERFACES, **contract.interfaces}
        self._texts = {name: _interface_text(interface) for name, interface in interfaces.items()}

    def describe(self, interfaces: Iterable[str], children: Iterable[str]) -> str:
        """The document of an object. interfaces: their names, standard ones too; children: last path
        elements.
        """
        nodes = (f" <node name={quote(child)}/>\n" for child in children)
        return "".join((_HEAD, *(self._texts[name] for name in interfaces), *nodes, "</node>\n"))


def _interface_text(interface: Interface) -> str:
    return "".join(
        (
            f" <interface name={quote(interface.name)}>\n",
            _annotations(interface.doc, interface.annotations, 2),
            *(_method_text(method) for method in interface.methods.values()),
            *(_signal_text(signal) for signal in interface.signals.values()),
            *(_property_text(prop) for prop in interface.properties.values()),
            " </interface>\n",
        )
    )


def _method_text(method: Method) -> str:
    return "".join(
        (
            f"  <method name={quote(method.name)}>\n",
            _annotations(method.doc, method.annotations, 3),
            *(_argument_text(argument, ' direction="in"') for argument in method.in_args),
            *(_argument_text(argument, ' direction="out"') for argument in method.out_args),
            "  </method>\n",
        )
    )


def _signal_text(signal: Signal) -> str:
    return "".join(
        (
            f"  <signal name={quote(signal.name)}>\n",
            _annotations(signal.doc, signal.annotations, 3),
            *(_argument_text(argument, "") for argument in signal.args),
            "  </signal>\n",
        )
    )


def _property_text(prop: Property) -> str:
    annotations = dict(prop.annotations)
    if prop.emits is not EmitsChanged.TRUE:
        annotations[EMITS_ANNOTATION] = prop.emits.value
    inner = _annotations(prop.doc, annotations, 3)
    start = f'  <property name={quote(prop.name)} type={quote(prop.signature)} access="read">\n'
    return f"{start}{inner}  </property>\n"


def _argument_text(argument: Argument, direction: str) -> str:
    start = f"   <arg name={quote(argument.name)} type={quote(argument.signature)}{direction}"
    if not argument.doc:
        return f"{start}/>\n"
    return f"{start}>\n{_annotations(argument.doc, {}, 4)}   </arg>\n"


def _annotations(doc: str, others: Mapping[str, str], indent: int) -> str:
    texts = {DOC_ANNOTATION: doc, **others} if doc else others
    pad = " " * indent
    return "".join(
        f"{pad}<annotation name={quote(name)} value={quote(value)}/>\n" for name, value in texts.items()
    )


def quote(text: str) -> str:
    """`text` as an attribute's value, in quotes. xml.sax.saxutils has one, which costs importing urllib: a
    tenth of the daemon's start on a slow machine."""
    import html  # when the first client asks: its table of entities is large

    return f'"{html.escape(text)}"'
