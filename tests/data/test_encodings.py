"""Texts in other encodings: told by their byte order mark or by `data.encoding`, never guessed."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.captioning.sources.tables import table_images
from captioner.config import Config, load_config
from captioner.data.load import load_dataset
from captioner.errors import ConfigError, DataError
from captioner.scoring.caption_rows import read_captions
from captioner.system.text_encodings import (
    EXAMPLES,
    LONE,
    bad_encoding,
    decode,
    decode_head,
    reading_as,
    readings,
)
from captioner.system.text_files import is_utf8

TEXTS = {
    "windows-1252": "Un café à la crème, « déjà vu »",
    "windows-1251": "Собака бежит по зелёной траве",
    "shift_jis": "犬が草の上を走っている。",
    "euc_kr": "개 한 마리가 풀밭을 달린다",
    "gb18030": "一只棕色的狗在草地上奔跑，人们在看。",
    "big5": "一隻棕色的狗在草地上奔跑，人們在看。",
    "windows-1250": "Żółta łódka płynie po jeziorze",
    "koi8-r": "собака бежит по зелёной траве",
}
MARKED = ("utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-32-be")


def marked(text: str, encoding: str) -> bytes:
    mark = {"utf-16-be": codecs.BOM_UTF16_BE, "utf-32-be": codecs.BOM_UTF32_BE}.get(encoding, b"")
    return mark + text.encode(encoding)


def _flickr(root: Path, save: Callable[[str, str], None], text: str) -> None:
    save("x.token.txt", f"a.jpg#0\t{text}\r\na.jpg#1\tdog\r\n")
    save("x.trainImages.txt", "a.jpg\r\n")


# Every format of texts, in one miniature each: with the caption `text` and the caption "dog".
LAYOUTS: dict[str, Callable[[Path, Callable[[str, str], None], str], None]] = {
    "csv": lambda root, save, text: save("x.csv", f"image,caption\r\na.jpg,{text}\r\na.jpg,dog"),
    "headless csv": lambda root, save, text: save("x.csv", f"a.jpg;{text}\r\na.jpg;dog"),
    "tsv": lambda root, save, text: save("x.tsv", f"image\tcaption\na.jpg\t{text}\na.jpg\tdog\n"),
    "jsonl": lambda root, save, text: save(
        "x.jsonl", json.dumps({"image": "a.jpg", "text": [text, "dog"]}, ensure_ascii=False)
    ),
    "list": lambda root, save, text: save(
        "x.json", json.dumps([{"image": "a.jpg", "text": [text, "dog"]}], ensure_ascii=False)
    ),
    "map": lambda root, save, text: save(
        "x.json", json.dumps({"a.jpg": [text, "dog"]}, ensure_ascii=False)
    ),
    "coco": lambda root, save, text: save(
        "captions_train.json",
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "a.jpg"}],
                "annotations": [{"image_id": 1, "caption": each} for each in (text, "dog")],
            },
            ensure_ascii=False,
        ),
    ),
    "karpathy": lambda root, save, text: save(
        "dataset_x.json",
        json.dumps(
            {
                "images": [
                    {
                        "filename": "a.jpg",
                        "split": "train",
                        "sentences": [{"raw": text}, {"raw": "dog"}],
                    }
                ]
            },
            ensure_ascii=False,
        ),
    ),
    "flickr tokens": _flickr,
    "flickr table": lambda root, save, text: save(
        "captions.txt", f"image,caption\na.jpg,{text}\na.jpg,dog\n"
    ),
    "sidecars": lambda root, save, text: save("a.txt", f"{text}\ndog\n"),
}


def build(root: Path, layout: str, text: str, encode: Callable[[str], bytes]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / "a.jpg").touch()
    LAYOUTS[layout](root, lambda name, content: _write(root / name, encode(content)), text)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


@pytest.mark.parametrize("encoding", MARKED)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_byte_order_mark_tells_the_encoding(tmp_path: Path, layout: str, encoding: str) -> None:
    text = "Собака 犬 café"
    build(tmp_path, layout, text, lambda content: marked(content, encoding))
    for told in (None, "windows-1251"):  # the mark is stronger than the setting
        dataset = load_dataset(tmp_path, holdout=0, encoding=told, strict=True)
        assert [example.captions for example in dataset.examples] == [(text, "dog")]
        assert not [note for note in dataset.notes if "UTF-8" in note]


@pytest.mark.parametrize("encoding", [*TEXTS, "utf-16-le", "utf-32", "cp037", "latin-1"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_data_encoding_reads_every_format(tmp_path: Path, layout: str, encoding: str) -> None:
    text = TEXTS.get(encoding, "naïve fiancé")
    text = text.replace(",", "") if "table" in layout or "csv" in layout else text
    order = "-le" if encoding == "utf-32" else ""
    build(tmp_path, layout, text, lambda content: content.encode(encoding + order))
    dataset = load_dataset(tmp_path, holdout=0, encoding=encoding, strict=True)
    assert [example.captions for example in dataset.examples] == [(text, "dog")]


@pytest.mark.parametrize("encoding", TEXTS)
@pytest.mark.parametrize("layout", [each for each in LAYOUTS if each != "headless csv"])
def test_text_that_is_not_utf8_is_never_guessed(tmp_path: Path, layout: str, encoding: str) -> None:
    text = TEXTS[encoding].replace(",", "")
    build(tmp_path, layout, text, lambda content: content.encode(encoding))
    try:
        dataset = load_dataset(tmp_path, holdout=0)
        assert [example.captions for example in dataset.examples] == [("dog",)]
        (problem,) = (each for each in dataset.problems if each.kind == "not UTF-8")
        said = f"{problem.where}: {problem.detail}"
    except DataError as error:  # one line has all captions
        assert layout == "jsonl"
        said = str(error)
    assert "set data.encoding" in said
    assert encoding in said
    assert "\n" not in said


@pytest.mark.parametrize("encoding", TEXTS)
def test_readings_name_the_right_encoding_among_the_first(encoding: str) -> None:
    text = TEXTS[encoding]
    found = readings(text.encode(encoding))
    assert f"{encoding} reads {text[:5]!r}"[:-1] in found
    assert found.count(" reads ") <= 3


def test_the_hint_shows_the_line_with_the_first_odd_character() -> None:
    found = readings("a dog\nb.jpg, die Tür\n".encode("latin-1"))
    assert found.startswith("windows-1252 reads 'jpg, die Tür'")


def test_a_wrong_setting_is_counted(tmp_path: Path) -> None:
    build(tmp_path, "csv", TEXTS["windows-1251"], lambda text: text.encode("windows-1251"))
    dataset = load_dataset(tmp_path, holdout=0, encoding="ascii")
    assert [example.captions for example in dataset.examples] == [("dog",)]
    (problem,) = dataset.problems
    assert problem.where == "x.csv:2"
    assert "data.encoding is ascii" in problem.detail


def test_a_setting_for_text_that_is_utf8_is_doubted(tmp_path: Path) -> None:
    build(tmp_path, "csv", "Собака", str.encode)
    (note,) = load_dataset(tmp_path, holdout=0, encoding="latin-1").notes
    assert "1 files are valid UTF-8, but data.encoding is latin-1" in note
    assert "x.csv" in note
    build(tmp_path, "csv", "dog", str.encode)
    assert load_dataset(tmp_path, holdout=0, encoding="latin-1").notes == ()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("windws-1251", "did you mean windows-1251?"),
        ("gb-18030", "did you mean gb18030?"),
        ("base64", EXAMPLES),
        ("idna", EXAMPLES),
        ("unicode_escape", EXAMPLES),
        ("nonsense", EXAMPLES),
        ("", EXAMPLES),
        ("x" * 5000, EXAMPLES),
        ("é\0", EXAMPLES),
    ],
)
def test_an_unknown_encoding_is_one_line_with_a_suggestion(
    tmp_path: Path, name: str, hint: str
) -> None:
    with pytest.raises(ConfigError, match=r"data.encoding: no text encoding of Python") as error:
        load_config(None, [f"data.encoding={json.dumps(name)}"])
    assert hint in str(error.value)
    with pytest.raises(ConfigError, match=r"encoding: no text encoding of Python"):
        load_dataset(tmp_path, encoding=name)


def test_known_encodings_are_accepted() -> None:
    for name in (*TEXTS, *EXAMPLES.split(", "), "latin1", "UTF-8", "sjis", "Windows 1251"):
        assert bad_encoding(name) is None
    assert Config().data.encoding is None


@given(st.binary(max_size=60), st.sampled_from([*TEXTS, "utf-8", "utf-16", "utf-32", "cp037"]))
def test_bytes_are_never_lost_without_a_sign(data: bytes, encoding: str) -> None:
    with reading_as(encoding):
        text = decode(data)
        decode_head(data)
        readings(data)
    try:
        mark = next(m for m in (codecs.BOM_UTF8, b"\xff\xfe", b"\xfe\xff") if data.startswith(m))
    except StopIteration:
        mark = b""
    if not mark and not data.startswith(codecs.BOM_UTF32_BE):
        try:
            assert text == data.decode(encoding)
        except UnicodeDecodeError:
            assert not is_utf8(text)


def test_a_cut_character_at_the_end_is_a_sign() -> None:
    for encoding in ("utf-16-le", "gb18030", "shift_jis"):
        with reading_as(encoding):
            assert not is_utf8(decode("犬犬".encode(encoding)[:-1]))
    assert b"\xff".decode("ascii", LONE) == "\udcff"


@pytest.mark.parametrize("encoding", MARKED)
def test_tables_to_caption_and_files_to_score_take_the_mark(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "ü.jpg").touch()
    rows = json.dumps([{"file_name": "ü.jpg", "caption": "犬"}], ensure_ascii=False)
    files = {
        "a.csv": "file_name,caption\nü.jpg,犬\n",
        "b.jsonl": rows[1:-1] + "\n",
        "c.json": rows,
        "d.jsonl": rows,
        "e.txt": "ü.jpg\t犬\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_bytes(marked(text, encoding))
        (row,) = read_captions(tmp_path / name, [])
        assert (row.captions, row.path) == (("犬",), "ü.jpg")
        if not name.endswith(".txt"):
            assert [each.source for each in table_images(str(tmp_path / name))] == [
                tmp_path / "ü.jpg"
            ]


def test_a_file_to_score_that_is_not_utf8_says_what_it_may_be(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("a dog\nun café noir\n".encode("windows-1252"))
    with pytest.raises(DataError, match=r"a.txt:2: not UTF-8: .*; save .*windows-1252 reads 'un c"):
        list(read_captions(file, []))


@pytest.mark.parametrize("text", ["Собака", "σκύλος", "כלב", "كلب", "Собака бежит"])
def test_utf16_without_a_mark_is_told_by_its_control_characters(tmp_path: Path, text: str) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jpg").touch()
    (tmp_path / "a.txt").write_bytes(text.encode("utf-16-le"))
    (tmp_path / "b.txt").write_text("one\x07 bell\n")  # a stray one is no sign
    dataset = load_dataset(tmp_path, holdout=0)
    assert [example.image_id for example in dataset.examples] == ["b.jpg"]
    [wrong, *_] = dataset.problems
    assert (wrong.kind, wrong.where) == ("not UTF-8", "a.txt")
    assert wrong.detail.startswith("not a text in UTF-8: it holds ")
    assert "data.encoding=utf-16-le" in wrong.detail
    (tmp_path / "b.txt").write_bytes("two".encode("utf-16-le"))
    dataset = load_dataset(tmp_path, holdout=0, encoding="utf-16-le")
    assert [example.captions for example in dataset.examples] == [(text,), ("two",)]
