"""The caption in an XMP sidecar: `dc:description` and IPTC's alt text.

The file of another program is changed only in these two properties. Expat, of the standard library,
finds their places, and the text between them stays byte for byte: other properties, comments,
prefixes, padding. A DTD is refused, and with it every entity that could expand.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from xml.parsers import expat

DC = "http://purl.org/dc/elements/1.1/"
IPTC = "http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/"
RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
LANG = "http://www.w3.org/XML/1998/namespace lang"
PREFIXES = {RDF: "rdf", DC: "dc", IPTC: "Iptc4xmpCore"}
PROPERTIES = ((DC, "description"), (IPTC, "AltTextAccessibility"))
MOST_BYTES = 2**26
EMPTY = f"""\
<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="{RDF}">
  <rdf:Description rdf:about="" xmlns:dc="{DC}" xmlns:Iptc4xmpCore="{IPTC}">
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>
""".encode()

_TAG = re.compile(rb"<(?:[^\"'>]|\"[^\"]*\"|'[^']*')*>")
# Characters that XML cannot hold, not even as a reference.
_UNWRITABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class XmpError(ValueError):
    """A file is no XMP, or holds a caption in a form that captioner cannot change."""


@dataclass(slots=True)
class _Element:
    """An element of the file, with the bytes where it begins and ends."""

    name: tuple[str, str]  # namespace and local name
    attributes: dict[str, str]
    start: int
    scope: dict[str, str]  # namespace of each prefix
    parent: _Element | None
    end: int = 0
    text: str = ""
    children: list[_Element] = field(default_factory=list)


def texts_of(content: bytes) -> tuple[str, str]:
    """Return the description and the alt text of an XMP file; empty where there is none.

    Of several languages, the text is that of `x-default`, or else the first one.

    Raises:
        XmpError: if the file is not XMP, or has a property of another form.
    """
    _, (description, alt) = _properties(content)
    return _text(description), _text(alt)


def with_texts(content: bytes, texts: tuple[str, str]) -> bytes:
    """Return an XMP file with another description and alt text; the rest stays byte for byte.

    Raises:
        XmpError: if the file is not XMP, or has a property of another form.
    """
    home, found = _properties(content)
    edits: list[tuple[int, int, bytes]] = []
    added = ""
    for name, element, text in zip(PROPERTIES, found, texts, strict=True):
        if element is None:
            added += f"\n   {_property(name, text, home.scope)}"
        elif _text(element) != text or _default(element) is None:
            edits.append(_edit(element, text))
    if added:
        edits.append(_insertion(content, home, added))
    for start, end, new in sorted(edits, reverse=True):
        content = content[:start] + new + content[end:]
    return content


def _properties(content: bytes) -> tuple[_Element, list[_Element | None]]:
    """Return the element that holds properties, and the two properties or None."""
    root = _parsed(content)
    rdf = root if root.name == (RDF, "RDF") else None
    rdf = rdf or next((each for each in root.children if each.name == (RDF, "RDF")), None)
    homes = [each for each in rdf.children if each.name == (RDF, "Description")] if rdf else []
    if not homes:
        raise XmpError("not an XMP file: no rdf:Description in rdf:RDF")
    found: list[_Element | None] = []
    for namespace, name in PROPERTIES:
        if any(f"{namespace} {name}" in home.attributes for home in homes):
            raise XmpError(f"{name} is an attribute; XMP has it as an element")
        every = [each for home in homes for each in home.children if each.name == (namespace, name)]
        if len(every) > 1:
            raise XmpError(f"{name} occurs {len(every)} times")
        found += every or [None]
    for element in filter(None, found):
        _check(element)
    return homes[0], found


def _check(element: _Element) -> None:
    """Refuse a property that is neither a plain text nor a list of languages."""
    is_text = not element.children and element.attributes.keys() <= {LANG}
    is_list = [child.name for child in element.children] == [(RDF, "Alt")] and all(
        each.name == (RDF, "li") and not each.children and each.attributes.keys() <= {LANG}
        for each in _items(element)
    )
    if not (is_text or (is_list and not element.attributes)):
        raise XmpError(f"{element.name[1]} is not a text in several languages (rdf:Alt)")


def _items(element: _Element) -> list[_Element]:
    return element.children[0].children if element.children else []


def _default(element: _Element) -> _Element | None:
    """Return the item of the language `x-default`."""
    items = (each for each in _items(element) if each.attributes.get(LANG) == "x-default")
    return next(items, None)


def _text(element: _Element | None) -> str:
    if element is None:
        return ""
    item = _default(element) or next(iter(_items(element)), None)
    return item.text if item else element.text if not element.children else ""


def _edit(element: _Element, text: str) -> tuple[int, int, bytes]:
    """Return what replaces which bytes, such that the text of `x-default` becomes another one."""
    item = _default(element)
    if item:
        return item.start, item.end, _item(text, item.scope).encode()
    if element.children and _items(element):
        first = _items(element)[0].start  # x-default comes first
        return first, first, f"{_item(text, element.children[0].scope)}\n     ".encode()
    whole = _property(element.name, text, element.parent.scope if element.parent else {})
    return element.start, element.end, whole.encode()


def _insertion(content: bytes, home: _Element, added: str) -> tuple[int, int, bytes]:
    """Return the edit that adds properties at the end of an `rdf:Description`."""
    tag = _TAG.match(content, home.start)
    assert tag
    if not tag[0].endswith(b"/>"):
        close = content.rindex(b"</", home.start, home.end)
        place = len(content[:close].rstrip(b" \t\r\n"))
        return place, place, added.encode()
    name = re.split(rb"[\s/>]", tag[0][1:], maxsplit=1)[0]
    opened = tag[0][:-2].rstrip() + b">"
    return home.start, home.end, opened + added.encode() + b"\n  </" + name + b">"


def _property(name: tuple[str, str], text: str, scope: dict[str, str]) -> str:
    namespace, local = name
    tag, declared = _name(namespace, local, scope)
    alt, declared_rdf = _name(RDF, "Alt", scope)
    inner = scope | ({PREFIXES[RDF]: RDF} if declared_rdf else {})
    return f"<{tag}{declared}><{alt}{declared_rdf}>{_item(text, inner)}</{alt}></{tag}>"


def _item(text: str, scope: dict[str, str]) -> str:
    tag, declared = _name(RDF, "li", scope)
    return f'<{tag}{declared} xml:lang="x-default">{escaped(text)}</{tag}>'


def _name(namespace: str, local: str, scope: dict[str, str]) -> tuple[str, str]:
    """Return a qualified name, and the declaration of its prefix where none is in scope."""
    own = PREFIXES[namespace]
    known = [prefix for prefix, uri in scope.items() if uri == namespace and prefix]
    if known:
        return f"{own if own in known else known[0]}:{local}", ""
    return f"{own}:{local}", f' xmlns:{own}="{namespace}"'


def escaped(text: str) -> str:
    """Return a text as XML; characters that XML cannot hold become U+FFFD."""
    text = _UNWRITABLE.sub("\ufffd", text)
    for character, reference in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("\r", "&#13;")):
        text = text.replace(character, reference)
    return text


class _Reader:
    """Reads the elements of a file; comments and the like stay in the bytes alone."""

    def __init__(self, content: bytes):
        self.content = content
        self.roots: list[_Element] = []
        self.open: list[_Element] = []
        self.declared: dict[str, str] = {}  # by the next element
        self.parser = parser = expat.ParserCreate(namespace_separator=" ")
        parser.buffer_text = True
        parser.StartNamespaceDeclHandler = self._declare
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        parser.StartDoctypeDeclHandler = self._refuse

    def root(self) -> _Element:
        """Return the root element."""
        self.parser.Parse(self.content, True)
        return self.roots[0]

    def _declare(self, prefix: str | None, uri: str | None) -> None:
        self.declared[prefix or ""] = uri or ""

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        namespace, _, name = tag.rpartition(" ")
        parent = self.open[-1] if self.open else None
        scope = parent.scope if parent else {}
        if self.declared:
            scope, self.declared = scope | self.declared, {}
        place = self.parser.CurrentByteIndex
        element = _Element((namespace, name), attributes, place, scope, parent)
        (parent.children if parent else self.roots).append(element)
        self.open.append(element)

    def _end(self, _: str) -> None:
        element = self.open.pop()
        tag = _TAG.match(self.content, element.start)
        if tag and not tag[0].endswith(b"/>"):
            tag = _TAG.match(self.content, self.parser.CurrentByteIndex)
        assert tag
        element.end = tag.end()

    def _text(self, text: str) -> None:
        self.open[-1].text += text

    def _refuse(self, *_: object) -> None:
        raise XmpError("a DTD, which XMP does not allow")


def _parsed(content: bytes) -> _Element:
    if len(content) > MOST_BYTES:
        raise XmpError(f"more than {MOST_BYTES:,} bytes")
    try:
        content.decode()
        return _Reader(content).root()
    except UnicodeDecodeError:
        raise XmpError("not UTF-8") from None
    except expat.ExpatError as error:
        raise XmpError(f"not XML: {error}") from None
