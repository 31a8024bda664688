"""XMP sidecars: what another program wrote stays, and exiftool reads what we wrote."""

from __future__ import annotations

import json
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.captioning.xmp import DC, EMPTY, IPTC, XmpError, texts_of, with_texts

DARKTABLE = b"""\
<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:darktable="http://darktable.sf.net/"
   xmp:Rating="1"
   darktable:auto_presets_applied="1">
   <darktable:history>
    <rdf:Seq>
     <rdf:li
      darktable:operation="expo>sure"
      darktable:params="gz03eJxjYGiwZ&amp;"/>
    </rdf:Seq>
   </darktable:history>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
"""
LIGHTROOM = """\
<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="Adobe XMP Core 7.0-c000 1.000000, 0000/00/00">
 <!-- a remark of somebody -->
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:crs="http://ns.adobe.com/camera-raw-settings/1.0/"
    xmlns:dc="http://purl.org/dc/elements/1.1/"
   crs:Version="15.0" dc:format='image/jpeg'>
   <dc:subject><rdf:Bag><rdf:li>grass &amp; sky</rdf:li></rdf:Bag></dc:subject>
   <dc:description>
    <rdf:Alt>
     <rdf:li xml:lang="x-default">by hand</rdf:li>
     <rdf:li xml:lang="de">von Hand</rdf:li>
    </rdf:Alt>
   </dc:description>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
                                                  \n<?xpacket end="w"?>""".replace(
    " -- of", " of"
).encode()
EXIFTOOL = b"""<?xpacket begin='\xef\xbb\xbf' id='W5M0MpCehiHzreSzNTczkc9d'?>
<x:xmpmeta xmlns:x='adobe:ns:meta/' x:xmptk='Image::ExifTool 12.57'>
<rdf:RDF xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#'>

 <rdf:Description rdf:about=''
  xmlns:Iptc4xmpCore='http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/'>
  <Iptc4xmpCore:AltTextAccessibility>
   <rdf:Alt>
    <rdf:li xml:lang='fr'>un chien</rdf:li>
   </rdf:Alt>
  </Iptc4xmpCore:AltTextAccessibility>
 </rdf:Description>

 <rdf:Description rdf:about=''
  xmlns:tiff='http://ns.adobe.com/tiff/1.0/'>
  <tiff:ImageWidth>224</tiff:ImageWidth>
 </rdf:Description>
</rdf:RDF>
</x:xmpmeta>
<?xpacket end='w'?>"""
OTHER_PREFIXES = b"""<r:RDF xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:rdf="urn:x">
<r:Description r:about="" xmlns:d="http://purl.org/dc/elements/1.1/" d:format="a/b"/></r:RDF>"""
FILES = [EMPTY, DARKTABLE, LIGHTROOM, EXIFTOOL, OTHER_PREFIXES]
OWN = {f"{{{DC}}}description", f"{{{IPTC}}}AltTextAccessibility"}
LI = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li"
LANG = "{http://www.w3.org/XML/1998/namespace}lang"

# Characters that XML can hold.
TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\ufffe\uffff").filter(
        lambda c: c in "\t\n\r" or c >= " "
    ),
    min_size=1,
)
HOSTILE = [
    "He said \"hi\" & 'bye' <b>&amp;</b> ]]>",
    "two\nlines\r\nand\ttabs",
    "fox 🦊 family 👨‍👩‍👧",
    "كلب يجري في العشب",
    "שלום \u200fabc\u200e",
    "一只狗",
    "-->",
    "<?xpacket end='w'?>",
]


def rest(content: bytes) -> list[object]:
    """Return everything but the two properties: elements in order, attributes, texts, comments."""
    builder = ET.TreeBuilder(insert_comments=True, insert_pis=True)
    root = ET.fromstring(content, ET.XMLParser(target=builder))
    found: list[object] = []

    def walk(element: ET.Element) -> None:
        found.append((element.tag, element.attrib, (element.text or "").strip()))
        for child in element:
            if child.tag not in OWN:
                walk(child)

    walk(root)
    return found


def others(content: bytes) -> list[object]:
    """Return the texts of other languages in the two properties."""
    root = ET.fromstring(content)
    items = (item for name in OWN for each in root.iter(name) for item in each.iter(LI))
    return sorted((item.get(LANG), item.text) for item in items if item.get(LANG) != "x-default")


@given(st.sampled_from(FILES), TEXT, TEXT)
def test_a_merge_keeps_every_other_element(content: bytes, description: str, alt: str) -> None:
    merged = with_texts(content, (description, alt))
    assert texts_of(merged) == (description, alt)
    assert rest(merged) == rest(content)
    assert others(merged) == others(content)
    assert with_texts(merged, (description, alt)) == merged
    again = with_texts(merged, (alt, description))
    assert texts_of(again) == (alt, description)
    assert rest(again) == rest(content)
    assert with_texts(again, (description, alt)) == merged


NAMES = st.sampled_from(["a:b", "a:c", "tiff:x", "b"])
ATTRIBUTES = st.dictionaries(st.sampled_from(["a:k", "k", "a:l"]), st.text("a>/='&\"", max_size=4))


@st.composite
def elements(draw: st.DrawFn, depth: int = 2) -> str:
    """Draw an element of another program, in any notation."""
    name, quote = draw(NAMES), draw(st.sampled_from("'\""))
    attributes = "".join(
        f"{draw(st.sampled_from([' ', chr(10), '  ']))}{key}={quote}"
        + value.replace("&", "&amp;").replace(quote, "&#34;" if quote == '"' else "&#39;")
        + quote
        for key, value in draw(ATTRIBUTES).items()
    )
    inside = draw(
        st.sampled_from(["", "x", "<!-- </rdf:Description> -->", "<![CDATA[</x>]]>", "é"])
    )
    if depth:
        inside += "".join(draw(st.lists(elements(depth=depth - 1), max_size=2)))
    return f"<{name}{attributes}>{inside}</{name}>" if inside else f"<{name}{attributes}/>"


@given(st.lists(elements(), max_size=4), st.integers(0, 4), TEXT)
def test_a_merge_keeps_every_other_byte(inside: list[str], place: int, text: str) -> None:
    """Whatever stands before and after a property stays as it was."""
    begin = (
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:a="a" '
        'xmlns:tiff="t"><rdf:Description xmlns:dc="http://purl.org/dc/elements/1.1/">'
    )
    for old in ("<dc:description/>", "<dc:description>é</dc:description>", ""):
        before, after = begin + "".join(inside[:place]), "".join(inside[place:])
        content = f"{before}{old}{after}</rdf:Description></rdf:RDF>".encode()
        merged = with_texts(content, (text, "alt"))
        assert texts_of(merged) == (text, "alt")
        assert rest(merged) == rest(content)
        assert merged.startswith((before if old else before + after).encode())
        assert after.encode() in merged


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("content", FILES)
def test_hostile_texts_are_read_back_by_another_parser(text: str, content: bytes) -> None:
    root = ET.fromstring(with_texts(content, (text, text)))
    for name in OWN:
        [item] = [
            item
            for own in root.iter(name)
            for item in own.iter(LI)
            if item.get(LANG) == "x-default"
        ]
        assert item.text == text


def test_what_stands_outside_of_the_properties_stays_byte_for_byte() -> None:
    merged = with_texts(LIGHTROOM, ("a dog", "a dog"))
    changed = merged.replace(b">a dog</rdf:li>\n     <rdf:li", b">by hand</rdf:li>\n     <rdf:li")
    start = changed.index(b"\n   <Iptc4xmpCore:AltText")
    end = changed.index(b"</Iptc4xmpCore:AltTextAccessibility>") + 36
    assert changed[:start] + changed[end:] == LIGHTROOM
    padding = EMPTY.replace(b"</x:xmpmeta>", b"</x:xmpmeta>" + b" " * 2000)
    assert b" " * 2000 in with_texts(padding, ("a", "b"))


def test_characters_that_xml_cannot_hold_become_a_mark() -> None:
    assert texts_of(with_texts(EMPTY, ("a\0\x1b\ud800\ufffeb", ""))) == (
        "a\ufffd\ufffd\ufffd\ufffdb",
        "",
    )


LAUGHS = b'<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not XML: no element found"),
        (b"garbage", "not XML: syntax error"),
        (b"<a>", "not XML: no element found"),
        (LAUGHS + DARKTABLE.partition(b"\n")[2], "a DTD, which XMP does not allow"),
        (b'<!DOCTYPE x SYSTEM "file:///etc/passwd"><x/>', "a DTD"),
        (DARKTABLE.replace(b"expo&gt;sure", b"&b;").replace(b"&amp;", b"&b;"), "undefined entity"),
        (DARKTABLE.decode().encode("utf-16"), "not UTF-8"),
        (b"<html/>", "not an XMP file: no rdf:Description in rdf:RDF"),
        (DARKTABLE.replace(b"rdf-syntax-ns#", b"other"), "not an XMP file"),
        (
            LIGHTROOM.replace(b"rdf:Alt>", b"rdf:Bag>"),
            "description is not a text in several languages (rdf:Alt)",
        ),
        (
            LIGHTROOM.replace(b"dc:format=", b"dc:description="),
            "description is an attribute; XMP has it as an element",
        ),
        (
            LIGHTROOM.replace(b"<dc:subject>", b"<dc:description/><dc:subject>"),
            "description occurs 2 times",
        ),
        (b"<a>" * 10**6, "not XML"),
    ],
    ids=range(13),
)
def test_a_file_that_cannot_be_merged_is_refused(content: bytes, message: str) -> None:
    for call in (texts_of, lambda content: with_texts(content, ("a", "b"))):
        with pytest.raises(XmpError) as error:
            call(content)
        assert message in str(error.value)


@pytest.mark.parametrize("content", FILES)
def test_the_languages_are_read_in_their_order(content: bytes) -> None:
    expected = {LIGHTROOM: ("by hand", ""), EXIFTOOL: ("", "un chien")}
    assert texts_of(content) == expected.get(content, ("", ""))


@pytest.mark.skipif(not shutil.which("exiftool"), reason="needs exiftool")
@pytest.mark.parametrize("content", FILES[:4])
def test_exiftool_reads_the_caption(content: bytes, tmp_path: Path) -> None:
    for number, text in enumerate(HOSTILE):
        (tmp_path / f"{number}.xmp").write_bytes(with_texts(content, (text, text)))
    done = subprocess.run(
        ["exiftool", "-j", "-struct", "-XMP:all", *sorted(map(str, tmp_path.iterdir()))],
        check=True,
        capture_output=True,
        encoding="utf-8",
    )
    rows = json.loads(done.stdout)
    assert [row["Description"] for row in rows] == HOSTILE
    assert [row["AltTextAccessibility"] for row in rows] == HOSTILE
    others = {LIGHTROOM: ("Subject", "grass & sky"), DARKTABLE: ("Rating", 1)}
    key, value = others.get(content, ("SourceFile", None))
    assert all(row[key] in (value, [value]) or value is None for row in rows)
