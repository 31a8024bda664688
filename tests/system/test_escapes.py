"""What outputs hold harms nobody who opens them, and is read back as it was."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from captioner.captioning.records import Record
from captioner.captioning.sources.tables import table_images
from captioner.captioning.writers import FORMATS
from captioner.data.load import load_dataset
from captioner.scoring.caption_rows import base_name, read_captions
from captioner.system.escapes import (
    COLUMNS,
    escape,
    own_cells,
    own_fields,
    to_json,
    unescape,
    utf8_name,
)
from captioner.system.text_files import is_missing
from captioner.text import Caption

OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f]")
FORMULA = re.compile(r"[=+\-@\t\r＝＋－＠]")
PIECES = [
    "\x1b",
    "\x9b",
    "\r",
    "\n",
    "\t",
    "\\",
    "\\n",
    "\\x1b",
    "\\udcff",
    "\\x5c",
    "'",
    '"',
    ",",
    ";",
]
PIECES += [
    "\u202e",
    "\u2066",
    "\u2028",
    "\ufeff",
    "\xa0",
    "=",
    "+",
    "-",
    "@",
    "＝",
    "#1",
    "a",
    "é",
    "🦊",
    " ",
]
TEXTS = st.one_of(st.text(max_size=20), st.lists(st.sampled_from(PIECES), max_size=6).map("".join))
CAPTIONS = TEXTS.map(lambda text: text.encode("utf-8", "ignore").decode())
BYTES = st.one_of(
    st.binary(min_size=1, max_size=20),
    st.lists(st.sampled_from(PIECES).map(os.fsencode) | st.sampled_from([b"\xff", b"\x80"])).map(
        b"".join
    ),
)
NAMES = BYTES.map(lambda name: os.fsdecode(name.replace(b"\0", b"").replace(b"/", b""))).filter(
    lambda name: name not in ("", ".", "..")
)


def written(name: str, caption: str, format: str) -> str:
    file = io.StringIO()
    record = Record(name, (Caption(caption, log_prob=-1.25, score=-0.53, finished=True),))
    with FORMATS[format](file) as writer:
        assert writer.write(record) == record
    return file.getvalue()


@pytest.mark.parametrize(
    ("format", "suffix"), [("text", ".txt"), ("text", ".tsv"), ("csv", ".csv"), ("jsonl", ".jsonl")]
)
@given(name=NAMES, caption=CAPTIONS)
@example("photo#1", "a dog")
@example("\\udcff", "a \\ dog")
@example("\udcff\\", "'=1+1")
@example("\\\udcff", "")
@example("[1]", '["a", "b"]')
@example(" a ", " b ")
@example("<html", "")
@example("GIF87a", "")
@example("photo", "NULL")
def test_scoring_reads_back_every_name_and_caption(
    tmp_path_factory: pytest.TempPathFactory, format: str, suffix: str, name: str, caption: str
) -> None:
    path = tmp_path_factory.mktemp("out") / f"captions{suffix}"
    path.write_text(written(name, caption, format), encoding="utf-8")
    notes: list[str] = []
    [row] = read_captions(path, notes)
    empty = bool(caption.strip()) and is_missing(caption)  # as pandas writes what is missing
    assert (row.file, row.captions) == (base_name(name), ("" if empty else caption,))
    assert any("count as empty" in note for note in notes) == empty


@pytest.mark.parametrize("format", ["text", "csv", "jsonl", "coco"])
@given(name=NAMES, caption=CAPTIONS)
def test_what_is_written_holds_nothing_that_a_terminal_obeys(
    format: str, name: str, caption: str
) -> None:
    text = written(name, caption, format)
    assert not OBEYED.search(text)
    assert text.encode().decode() == text
    if format == "text":
        assert (text.count("\n"), text.count("\t")) == (1, 1)
    if format == "csv":
        assert (text.count("\n"), text.count("\t")) == (2, 0)


@given(name=NAMES, caption=CAPTIONS)
def test_no_cell_is_a_formula_and_a_score_stays_a_number(name: str, caption: str) -> None:
    for line in written(name, caption, "text").splitlines():
        assert not any(map(FORMULA.match, line.split("\t")))
    _, cells = csv.reader(io.StringIO(written(name, caption, "csv")))
    row = dict(zip(COLUMNS, cells, strict=True))
    assert row.pop("score") == "-0.53"
    assert not any(map(FORMULA.match, row.values()))


@given(TEXTS)
def test_escapes_are_undone_exactly(text: str) -> None:
    assert unescape(escape(text)) == text


@pytest.mark.parametrize("text", ["a\\b.jpg", "C:\\photos\\1.jpg", "'quoted'", "a-b = c@d", "é🦊"])
def test_what_harms_nobody_is_written_as_it_is(text: str) -> None:
    assert escape(text) == unescape(text) == utf8_name(text) == text


@pytest.mark.parametrize("text", ["'=1", "\\x3d1", "\\\\server\\new", "[1]", "\\udcff"])
def test_tables_of_others_mean_what_they_say(tmp_path: Path, text: str) -> None:
    for columns in (("file_name", "caption"), (*COLUMNS, "mine"), COLUMNS[::-1]):
        assert own_cells(columns, [text] * len(columns)) is None
    fields = {"caption": text, "file_name": text}
    assert own_fields(fields) == fields
    table = tmp_path / "theirs.csv"
    table.write_text(f"file_name,caption\n{text},{text} \n", encoding="utf-8")
    [row] = read_captions(table, [])
    assert row.file == base_name(text)


@pytest.mark.parametrize(("format", "suffix"), [("csv", ".csv"), ("jsonl", ".jsonl")])
@pytest.mark.parametrize(
    "name", ["=1.png", "a\x1b\n\\n.png", " a\u202e.png", "b\udcff.png", "\\udcff.png"]
)
def test_our_own_tables_name_the_pictures_they_were_made_of(
    tmp_path: Path, format: str, suffix: str, name: str
) -> None:
    table = tmp_path / f"captions{suffix}"
    table.write_text(written(name, "=a dog", format), encoding="utf-8")
    (tmp_path / name).touch()
    [item] = table_images(str(table))
    assert item.source == tmp_path / name
    if name.isprintable() or "\udcff" not in name:
        [made] = load_dataset(table, holdout=0).examples
        assert (made.image, made.captions) == (tmp_path / name, ("=a dog",))


@given(st.recursive(TEXTS | st.none(), lambda part: st.lists(part) | st.dictionaries(TEXTS, part)))
def test_json_holds_no_control_character_and_means_the_same(value: object) -> None:
    for options in ({}, {"indent": 1}):
        text = to_json(value, **options)
        assert not OBEYED.search(text)
        assert text.encode()
        assert json.loads(text) == value
