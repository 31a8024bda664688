"""Tables name plain files; each bad row costs itself and says where it stands."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.captioning.sources import Item, list_images, tables
from captioner.captioning.sources.tables import table_images
from captioner.errors import ImageError
from captioner.system.text_files import read_rows

from source_toys import listed, memory_below, tar_bytes, write


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("here.jpg", "t/a.jpg", "t/b.jpg", "t/sub/c.jpg", "both.jpg", "t/both.jpg"):
        write(name, b"x")
    return tmp_path


def test_paths_begin_at_the_table_or_else_here(here: Path) -> None:
    write(
        "t/list.csv", f"image,caption\nb.jpg,x\nsub/c.jpg,y\nhere.jpg,\nboth.jpg,\n{here}/here.jpg,"
    )
    assert list(list_images(["t/list.csv"])) == [
        Item(name, Path(name))
        for name in ("t/b.jpg", "t/sub/c.jpg", "here.jpg", "t/both.jpg", f"{here}/here.jpg")
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.csv", "image\na.jpg\nb.jpg\n"),
        ("list.CSV", '\ufeffid;File_Name\r\n1;"a.jpg"\r\n\r\n2;b.jpg\r\n'),
        ("list.tsv", "caption\tpath\nx\ta.jpg\ny\t b.jpg \n"),
        ("list.csv", 'caption,image\n"two\nlines",a.jpg\n"so, she said" loudly,a.jpg,\n"",b.jpg'),
        ("list.jsonl", '{"file_name": "a.jpg"}\n\n{"x": 1, "file_name": "b.jpg"}'),
        ("list.ndjson", '\ufeff{"image": "a.jpg"}\r\n{"image": "b.jpg"}\r\n'),
    ],
)
def test_tables_as_people_write_them(name: str, text: str) -> None:
    write(f"t/{name}", text)
    found = [row for row in listed(f"t/{name}") if "!" not in row]
    assert found == ["t/a.jpg", "t/b.jpg"]


@pytest.mark.parametrize(
    ("written", "on_disk"),
    [
        ("SUB\\C.JPG", "t/sub/c.jpg"),
        ("sub/C", "t/sub/c.jpg"),
        ("D:\\photos\\A.jpg", "t/a.jpg"),
        ("./other/b.JPG", "t/b.jpg"),
        ("a", "t/a.jpg"),
        ("HERE.jpg", "here.jpg"),
    ],
)
def test_a_name_of_another_system_is_found_and_said(written: str, on_disk: str) -> None:
    write("t/list.jsonl", json.dumps({"image": written}))
    assert list(list_images("t/list.jsonl")) == [Item(on_disk, Path(on_disk), written)]


def test_a_name_that_fits_two_files_is_missing(here: Path) -> None:
    write("t/A.JPG", b"x")
    (here / "t/a.jpg").rename(here / "t/A.jpg")
    write("t/list.csv", "image\na.jpg\n")
    [item] = list_images("t/list.csv")
    assert isinstance(item.source, ImageError)


def test_the_column_may_be_named() -> None:
    write("t/list.csv", "image,thumb\na.jpg,b.jpg\n")
    write("t/list.jsonl", '{"image": "a.jpg", "thumb": "b.jpg"}')
    for name in ("t/list.csv", "t/list.jsonl"):
        assert listed(name) == ["t/a.jpg"]
        assert listed(name, image_column="thumb") == ["t/b.jpg"]
        [found] = listed(name, image_column="photo")
        assert found == f"{name}! no column 'photo' (--image-column); columns: 'image', 'thumb'"


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        (
            "list.csv",
            "subject,x\na,b\n",
            "cannot guess the column of paths; set --image-column; columns: ",
        ),
        ("list.jsonl", '{"subject": 1}\n', "cannot guess the column of paths"),
        ("list.csv", "image,image\na,b\n", "two columns are named 'image'"),
        ("list.csv", "", "cannot guess the column of paths; set --image-column; columns: none"),
        ("list.csv", "image\n", "no rows in this table"),
        ("list.jsonl", "", "no rows in this table"),
        ("list.csv", b"i\0m\0a\0", "not a text in UTF-8: it holds zero bytes; if it is UTF-16"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_failure(
    name: str, text: str | bytes, reason: str
) -> None:
    write(name, text)
    failed, good = listed(name, "here.jpg")
    assert failed.startswith(f"{name}! {reason}")
    assert good == "here.jpg"


@pytest.mark.parametrize(
    ("name", "text", "ids"),
    [
        ("t/list.csv", "id,image\n7,a.jpg\nx9,b.jpg\n", ["7", "x9"]),
        ("t/list.csv", "Image ID,image\n7.0,a.jpg\n,b.jpg\n", ["7", ""]),
        ("t/list.csv", "id,image,caption\n7,a.jpg,one\n8,b.jpg,two\n", ["", ""]),
        ("t/list.jsonl", '{"image_id": 7, "file": "a.jpg"}\n{"file": "b.jpg"}\n', ["7", ""]),
        ("t/list.json", '{"image_id": 7, "file": "a.jpg"}\n{"file": "b.jpg"}\n', ["7", ""]),
        ("t/list.json", '[{"id": 0, "image": "a.jpg"}, {"id": true, "image": "b.jpg"}]', ["0", ""]),
        (
            "t/info.json",
            '{"images": [{"id": 0, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}]}',
            ["0", "1"],
        ),
        (
            "annotations/info.json",
            '{"images": [{"id": 3, "file_name": "a.jpg"}, {"id": "q", "file_name": "b.jpg"}]}',
            ["3", "q"],
        ),
        (
            "karpathy.json",
            '{"images": [{"filepath": "t", "filename": "a.jpg", "imgid": 0, "cocoid": 9},'
            '{"filepath": "t", "filename": "b.jpg", "imgid": 1, "cocoid": 8}]}',
            ["9", "8"],
        ),
    ],
)
def test_a_table_may_give_image_ids(name: str, text: str, ids: list[str]) -> None:
    write("t/b.jpg", b"x")
    write(name, text)
    items = list(list_images(name))
    assert [(Path(item.name).name, item.image_id) for item in items] == [
        ("a.jpg", ids[0]),
        ("b.jpg", ids[1]),
    ]
    assert all(isinstance(item.source, Path) for item in items)


def test_json_without_images_is_one_failure() -> None:
    for text in ("{}", '{"images": []}', "[]", '{"annotations": [1]}', "3"):
        write("list.json", text)
        assert listed("list.json") == [
            "list.json! not a table: expected a list of objects, or one in images, as in COCO"
        ]


def test_bad_rows_cost_themselves() -> None:
    write("list.csv", "image,id\nhere.jpg,1\n,2\nhere.jpg\nnone.jpg,4\nt,5\nboth.jpg,6\n")
    assert listed("list.csv") == [
        "here.jpg",
        "list.csv:3! not a path: ''",
        "list.csv:4! 1 cells, expected 2",
        "none.jpg! no such file (list.csv:5)",
        "t! a folder, not a file (list.csv:6)",
        "both.jpg",
    ]
    rows = ['{"image": "here.jpg"}', "{", "[1]", '{"x": 1}', '{"image": 5}', '{"image": "\\ud83d"}']
    write(
        "list.jsonl",
        "\n".join([*rows, "[" * 5000, '{"image": "a\\u0000"}', '{"image": "both.jpg"}']),
    )
    found = listed("list.jsonl")
    assert found[0] == "here.jpg"
    assert found[1].startswith("list.jsonl:2! not JSON: ")
    assert found[2:5] == [
        "list.jsonl:3! not a JSON object: [1]",
        "list.jsonl:4! not a path: None",
        "list.jsonl:5! not a path: 5",
    ]
    assert found[5] == "list.jsonl:6! not a valid file name: '\\ud83d'"
    assert found[6].startswith("list.jsonl:7! not JSON: ")
    assert found[7] == "a\0! no such file (list.jsonl:8)"
    assert found[8] == "both.jpg"


def test_rows_name_plain_files_only() -> None:
    write("t/s.tar", tar_bytes([("in.jpg", b"x")]))
    write("other.csv", "image\nhere.jpg\n")
    os.mkfifo("pipe.jpg")
    Path("zero.jpg").symlink_to("/dev/zero")
    names = [
        "*.jpg",
        "-",
        "t/s.tar",
        "other.csv",
        "{a,b}.jpg",
        "pipe.jpg",
        "zero.jpg",
        "t/s.tar/in.jpg",
    ]
    write("list.jsonl", "\n".join(json.dumps({"image": name}) for name in names))
    assert listed("list.jsonl") == [
        "*.jpg! no such file (list.jsonl:1)",
        "-! no such file (list.jsonl:2)",
        "t/s.tar",  # a file like any other: it will be no image
        "other.csv",
        "{a,b}.jpg! no such file (list.jsonl:5)",
        "pipe.jpg! a pipe or a device, not a file (list.jsonl:6)",
        "zero.jpg! a pipe or a device, not a file (list.jsonl:7)",
        "t/s.tar/in.jpg! no such file (list.jsonl:8)",
    ]


@pytest.mark.parametrize(
    "name", ["🦊.jpg", "\udce9.jpg", "new\nline.jpg", 'qu"ote.jpg', "com,ma.jpg"]
)
def test_odd_names(name: str) -> None:
    write(f"odd/{name}", b"x")
    quoted = name.replace('"', '""')
    write("odd/list.csv", f'image\n"{quoted}"\n')
    assert listed("odd/list.csv") == [f"odd/{name}"]
    write("odd/list.jsonl", json.dumps({"image": name}, ensure_ascii=False))
    assert listed("odd/list.jsonl") == [f"odd/{name}"]


def test_addresses_stay_what_they_are() -> None:
    write("list.csv", "image\nnobody://bucket/1.jpg\nzip://2.jpg::s3://bucket/2.zip\n")
    assert listed("list.csv") == [
        f"{name}! no such file; read are s3, gs, az, hf, http, https, hdfs"
        for name in ("nobody://bucket/1.jpg", "zip://2.jpg::s3://bucket/2.zip")
    ]


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_rows_are_read_as_they_are_asked_for(ending: str) -> None:
    row = "here.jpg\n" if ending == "csv" else '{"image": "here.jpg"}\n'
    write(f"list.{ending}", "image\n" * (ending == "csv") + row * 20_000)
    with memory_below(2**18):
        items = list_images([f"list.{ending}"])
        assert next(items).name == "here.jpg"
        assert sum(1 for _ in zip(items, range(5000), strict=False)) == 5000


def test_a_line_without_end_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_LINE", 1000)
    write("list.jsonl", '{"image": "here.jpg"}\n' + "x" * 5000)
    good, failed = listed("list.jsonl")
    assert good == "here.jpg"
    assert failed == "list.jsonl! not a table: a line has more than 1,000 characters"


LINES = st.lists(st.text(alphabet='ab,"', max_size=6).map(lambda t: t + "\n"), max_size=6)


@given(LINES, st.integers(0, 2))
def test_rows_come_alike_from_a_list_and_from_a_stream(lines: list[str], first: int) -> None:
    assert list(read_rows(iter(lines), ",", first)) == list(read_rows(lines, ",", first))
    assert list(read_rows(lines, ",", first)) == list(
        read_rows(["skipped\n"] * first + lines[first:], ",", first)
    )
    numbers = [number for number, _ in read_rows(lines, ",", first)]
    assert numbers == sorted(set(numbers))
    assert all(first < number <= len(lines) for number in numbers)


def test_a_stray_quote_swallows_no_rows() -> None:
    lines = ["a,b\n", '"stray,1\n', "c,2\n", '"d","3"\n', '"two\n', 'lines",4\n']
    assert list(read_rows(iter(lines), ",")) == [
        (1, ["a", "b"]),
        (2, ['"stray', "1"]),
        (3, ["c", "2"]),
        (4, ["d", "3"]),
        (5, ["two\nlines", "4"]),
    ]


def test_results_that_name_images_by_number_are_one_line(tmp_path: Path) -> None:
    table = tmp_path / "out.json"
    table.write_text(json.dumps([{"image_id": n, "caption": "a dog"} for n in (7, 8)]))
    (item,) = table_images(str(table))
    assert (item.name, "by number (7)" in str(item.source)) == (str(table), True)
    for n in (7, 8):
        (tmp_path / f"{n}.jpg").touch()
    assert [Path(item.name).name for item in table_images(str(table))] == ["7.jpg", "8.jpg"]
