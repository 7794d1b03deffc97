"""XML as a small tree that knows its line numbers, as ElementTree does not. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from xml.parsers import expat


class XmlError(ValueError):
    """Something is wrong at one line."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


@dataclass(slots=True)
class Element:
    """One element. line: where it starts, from 1; text: all character data directly inside it."""

    tag: str
    attributes: dict[str, str]
    line: int
    text: str = ""
    children: list[Element] = field(default_factory=list)


def parse_xml(data: bytes) -> Element:
    """The outermost element of a document. Raises XmlError."""
    parser, open_elements = expat.ParserCreate(), [Element("", {}, 0)]

    def start(tag: str, attributes: dict[str, str]) -> None:
        element = Element(tag, attributes, parser.CurrentLineNumber)
        open_elements[-1].children.append(element)
        open_elements.append(element)

    def end(_tag: str) -> None:
        open_elements.pop()

    def add_text(text: str) -> None:
        open_elements[-1].text += text

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = add_text
    parser.buffer_text = True  # a call for each text and not for each of its lines
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise XmlError(expat.errors.messages[error.code], error.lineno) from None
    return open_elements[0].children[0]
