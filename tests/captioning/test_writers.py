"""Each format, to the letter."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from captioner.captioning.records import Record, digest_of
from captioner.captioning.sidecar_files import FORMS
from captioner.captioning.sidecar_journal import JOURNAL
from captioner.captioning.sidecars import Sidecars
from captioner.captioning.sources import Item
from captioner.captioning.writers import FORMATS, as_dict, write_output
from captioner.cli.caption import command
from captioner.errors import ConfigError, DataError, ImageError
from captioner.scoring.caption_rows import read_captions
from captioner.system.escapes import unescape
from captioner.system.ownership import JOURNAL_ID, JOURNAL_SUFFIX, SQLITE, check
from captioner.text import Caption, Word

DOG = Caption("a dog runs", log_prob=-1.25, score=-0.75, finished=True)
CAT = Caption("a cat", log_prob=-2.0000004, score=-1.123456789, finished=False)
GOOD = Record("photos/COCO_val2014_000000000042.jpg", (DOG, CAT))
QUOTED = Record('say "hi", you.png', (CAT,))
BAD = Record("broken.jpg", error="empty file")
BLANK = Record("black.png", (CAT,), blank=True)
RECORDS = [GOOD, BAD, QUOTED]


def confident(probability: float, *texts: str) -> Caption:
    """A caption whose words all have one probability."""
    words = tuple(Word(text, math.log(probability)) for text in (*texts, "<eos>"))
    log_prob = len(words) * math.log(probability)
    return Caption(" ".join(texts), log_prob, -1.0, True, words)


SURE, UNSURE = confident(0.75, "a", "dog"), confident(0.25, "cat")


def written(records: list[Record], format: str, n_best: int = 1) -> str:
    file = io.StringIO()
    with FORMATS[format](file, n_best=n_best) as writer:
        assert [*map(writer.write, records)] == records
    return file.getvalue()


def test_a_record_knows_its_parts() -> None:
    assert (GOOD.image_id, GOOD.caption, GOOD.status) == (
        "COCO_val2014_000000000042",
        "a dog runs",
        "ok",
    )
    assert (BAD.image_id, BAD.caption, BAD.status) == ("broken", "", "error")


def test_text_is_path_tab_caption_of_what_worked() -> None:
    assert written(RECORDS, "text") == (
        'photos/COCO_val2014_000000000042.jpg\ta dog runs\nsay "hi", you.png\ta cat\n'
    )


def test_text_n_best_has_the_scores_that_rank() -> None:
    name = "photos/COCO_val2014_000000000042.jpg"
    assert written([GOOD], "text", n_best=2) == (
        f"{name}\ta dog runs\t-0.7500\n{name}\ta cat\t-1.1235\n"
    )


def test_text_keeps_one_line_per_caption_whatever_the_name() -> None:
    record = Record("tab\tnew\nline\\slash 🦊.jpg", (DOG,))
    assert written([record], "text") == "tab\\tnew\\nline\\\\slash 🦊.jpg\ta dog runs\n"


def test_jsonl_has_all_fields() -> None:
    rows = [json.loads(line) for line in written(RECORDS, "jsonl").splitlines()]
    assert rows == [
        {
            "file_name": "photos/COCO_val2014_000000000042.jpg",
            "image_id": "COCO_val2014_000000000042",
            "caption": "a dog runs",
            "score": -0.75,
            "status": "ok",
        },
        {
            "file_name": "broken.jpg",
            "image_id": "broken",
            "caption": "",
            "score": None,
            "status": "error",
            "error": "empty file",
        },
        {
            "file_name": 'say "hi", you.png',
            "image_id": 'say "hi", you',
            "caption": "a cat",
            "score": -1.123457,
            "status": "ok",
        },
    ]
    assert list(rows[0]) == ["file_name", "image_id", "caption", "score", "status"]


def test_jsonl_n_best_lists_all_captions() -> None:
    row = json.loads(written([GOOD], "jsonl", n_best=2))
    assert row["n_best"] == [
        {"caption": "a dog runs", "log_prob": -1.25, "score": -0.75},
        {"caption": "a cat", "log_prob": -2.0, "score": -1.123457},
    ]
    assert "n_best" not in as_dict(GOOD)


def test_jsonl_is_one_line_each_and_readable() -> None:
    text = written([Record("new\nline 🦊 é.jpg", (DOG,))], "jsonl")
    assert text.count("\n") == 1
    assert "🦊 é" in text
    assert json.loads(text)["file_name"] == "new\nline 🦊 é.jpg"


def test_csv_to_the_letter() -> None:
    assert written(RECORDS, "csv") == (
        "file_name,image_id,caption,score,status\n"
        "photos/COCO_val2014_000000000042.jpg,COCO_val2014_000000000042,a dog runs,-0.75,ok\n"
        "broken.jpg,broken,,,error\n"
        '"say ""hi"", you.png","say ""hi"", you",a cat,-1.123457,ok\n'
    )


def test_csv_reads_back_whatever_the_name() -> None:
    names = ['qu"ote,comma.jpg', "new\nline.jpg", "🦊.jpg", "semi;colon'.jpg"]
    text = written([Record(name, (DOG,)) for name in names], "csv")
    assert [unescape(row["file_name"]) for row in csv.DictReader(io.StringIO(text))] == names


def test_coco_results_have_numbers_for_ids_and_captions_of_what_worked() -> None:
    text = written([GOOD, BAD, Record("000000391895.jpg", (CAT,)), QUOTED], "coco")
    assert json.loads(text) == [
        {"image_id": 42, "caption": "a dog runs"},
        {"image_id": 391895, "caption": "a cat"},
        {"image_id": 'say "hi", you', "caption": "a cat"},
    ]


@pytest.mark.parametrize("records", [[], [BAD]])
def test_coco_of_nothing_is_an_empty_list(records: list[Record]) -> None:
    assert json.loads(written(records, "coco")) == []


def test_txt_lies_beside_each_image(tmp_path: Path) -> None:
    record = Record(str(tmp_path / "a.photo.jpg"), (DOG, CAT))
    assert written([record, BAD], "txt", n_best=2) == ""
    assert {path.name for path in tmp_path.iterdir()} == {"a.photo.txt", JOURNAL}
    assert (tmp_path / "a.photo.txt").read_bytes() == b"a dog runs\n"


def test_txt_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    record = Record(str(tmp_path / "file" / "a.jpg"), (DOG,))
    with pytest.raises(
        DataError, match=r"file/a\.txt: cannot be written: .*choose another --format$"
    ):
        written([record], "txt")


@pytest.mark.parametrize("format", ["text", "jsonl", "csv", "coco"])
def test_a_name_that_is_not_utf_8_can_be_written(format: str, tmp_path: Path) -> None:
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    path = tmp_path / "out"
    with path.open("w", encoding="utf-8") as file, FORMATS[format](file) as writer:
        writer.write(Record(name, (DOG,)))
    text = (tmp_path / "out").read_text(encoding="utf-8")
    assert "caf" in text
    assert "udce9" in text


@pytest.mark.parametrize("format", [each for each in FORMATS if each != "parquet"])
def test_each_record_is_written_before_the_next_is_made(format: str, tmp_path: Path) -> None:
    path = tmp_path / "out"
    good = Record(str(tmp_path / "0.jpg"), (DOG,))
    with path.open("w", encoding="utf-8") as file, FORMATS[format](file) as writer:
        assert writer.write(good) is good
        file.flush()
        seen = tmp_path / f"0.{format}" if format in FORMS else path
        assert "a dog runs" in seen.read_text()


def test_a_list_that_was_broken_off_does_not_look_whole() -> None:
    file = io.StringIO()
    with pytest.raises(KeyboardInterrupt), FORMATS["coco"](file) as writer:
        writer.write(GOOD)
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="Expecting"):
        json.loads(file.getvalue())


@pytest.mark.parametrize("n_best", [1, 2])
def test_parquet_has_the_columns_of_json_lines(
    n_best: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra `ray`")
    monkeypatch.setattr("captioner.captioning.writers.ROW_GROUP", 2)
    output = tmp_path / "out.parquet"
    totals = write_output(iter(RECORDS), output, "parquet", n_best=n_best)
    assert (totals.images, totals.failed, totals.captioned) == (3, 1, 2)
    assert parquet.ParquetFile(output).num_row_groups == 2
    absent = {"error": None} | ({"n_best": None} if n_best > 1 else {})
    rows = [absent | as_dict(record, n_best) for record in RECORDS]
    assert parquet.read_table(output).to_pylist() == rows


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_an_output_that_is_moved_away_is_missed(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow", reason="needs the extra `ray`")
    monkeypatch.setattr("captioner.captioning.writers.LOOK_EVERY", 2)
    output = tmp_path / "folder" / "out"
    output.parent.mkdir()

    def records() -> Iterator[Record]:
        yield GOOD
        shutil.rmtree(output.parent)
        yield from RECORDS

    with pytest.raises(FileNotFoundError):
        write_output(records(), output, format)


def test_the_command_line_offers_every_format() -> None:
    (option,) = (each for each in command.params if each.name == "format")
    assert isinstance(option.type, click.Choice)
    assert [*option.type.choices] == [*FORMATS]


@pytest.mark.parametrize("format", [each for each in FORMATS if each not in FORMS])
def test_the_output_of_every_format_may_be_replaced_beside_its_journal(
    format: str, tmp_path: Path
) -> None:
    if format == "parquet":
        pytest.importorskip("pyarrow")
    output = tmp_path / "out"
    journal = tmp_path / f"out{JOURNAL_SUFFIX}"
    journal.write_bytes(SQLITE.ljust(68, b"\0") + JOURNAL_ID.to_bytes(4, "big"))
    write_output(RECORDS, output, format)
    check(output, "captions")


def test_blank_images_are_flagged_in_tables_and_counted(tmp_path: Path) -> None:
    records = [GOOD, BLANK, BAD]
    assert [json.loads(line)["status"] for line in written(records, "jsonl").splitlines()] == [
        *("ok", "blank", "error")
    ]
    assert written([BLANK], "csv").splitlines()[1] == "black.png,black,a cat,-1.123457,blank"
    for format in ("csv", "jsonl"):
        output = tmp_path / f"out.{format}"
        totals = write_output(records, output, format)
        assert (totals.images, totals.captioned, totals.failed, totals.blank) == (3, 2, 1, 1)
        check(output, "captions")  # may be replaced: it is captioner's own
        assert [row.captions[0] for row in read_captions(output, [])][1] == "a cat"


def test_json_lines_have_words_that_add_up() -> None:
    file = io.StringIO()
    never = replace(UNSURE, words=(Word("cat", -1e-9), Word("<eos>", -2.0)))
    with FORMATS["jsonl"](file, n_best=2, words=True) as writer:
        for record in (Record("a.png", (SURE, never)), BAD):
            writer.write(record)
    good, bad = map(json.loads, file.getvalue().splitlines())
    assert good["words"] == [["a", -0.287682], ["dog", -0.287682], ["<eos>", -0.287682]]
    assert [list(each) for each in good["n_best"]] == [
        ["caption", "log_prob", "score", "words"]
    ] * 2
    assert sum(number for _, number in good["words"]) == pytest.approx(SURE.log_prob, abs=1e-5)
    assert "-0.0]" not in file.getvalue()
    assert "confident" not in good
    assert not {"words", "confident"} & bad.keys()


def test_a_caption_below_the_confidence_is_marked_and_counted(tmp_path: Path) -> None:
    assert SURE.confidence == pytest.approx(0.75)
    assert UNSURE.confidence == pytest.approx(0.25)
    assert math.isnan(DOG.confidence)
    uneven = replace(SURE, log_prob=math.log(0.9 * 0.1), words=(Word("a", -1.0), Word("b", -1.0)))
    assert uneven.confidence == pytest.approx(0.3)  # the geometric mean, not 0.5
    records = [Record("a.png", (SURE, UNSURE)), Record("b.png", (UNSURE, SURE)), BAD]
    for least, marks in ((0.1, [True, True]), (0.5, [True, False]), (1.0, [False, False])):
        output = tmp_path / "out.jsonl"
        totals = write_output(records, output, "jsonl", min_confidence=least)
        found = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
        assert [row.get("confident") for row in found] == [*marks, None]
        assert [row["status"] for row in found] == ["ok", "ok", "error"]
        assert "words" not in found[0]
        assert totals.unsure == marks.count(False)
        check(output, "captions")
        assert next(row.captions[0] for row in read_captions(output, [])) == "a dog"


def test_parquet_has_words_and_marks(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra `ray`")
    output = tmp_path / "out.parquet"
    records = [Record("a.png", (SURE, UNSURE)), BAD]
    write_output(records, output, "parquet", n_best=2, words=True, min_confidence=0.5)
    good, bad = parquet.read_table(output).to_pylist()
    assert good["words"][0] == {"text": "a", "log_prob": -0.287682}
    assert [word["text"] for word in good["n_best"][1]["words"]] == ["cat", "<eos>"]
    assert good["confident"] is True
    assert bad["words"] is bad["confident"] is None


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("option", [["--words"], ["--min-confidence", "0.5"]])
def test_a_format_without_words_refuses_them_in_one_line(format: str, option: list[str]) -> None:
    result = CliRunner().invoke(command, ["photo.jpg", "--format", format, *option])
    refused = f"{option[0]}: {format} holds only captions; use --format jsonl" in result.output
    assert refused == (not FORMATS[format].detailed)
    assert [name for name in FORMATS if FORMATS[name].detailed] == ["jsonl", "parquet"]


def test_a_record_is_read_back_exactly() -> None:
    for record in (*RECORDS, BLANK, Record("a.png", (SURE, DOG, UNSURE))):
        assert Record.from_json(record.file_name, record.to_json()) == record


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_txt_never_opens_a_pipe_or_a_folder_in_its_place(make, tmp_path: Path) -> None:
    item = Item(str(tmp_path / "a.png"), tmp_path / "a.png")
    make(tmp_path / "a.txt")
    [found] = Sidecars(overwrite=True).missing([item])
    assert isinstance(found.source, ImageError)
    assert found.source.kind == "place_taken"


def missing(folder: Path, **options: bool) -> tuple[list[str], Sidecars]:
    """Return what a run over a folder captions, as `name: error or nothing`."""
    texts = Sidecars(**options)  # type: ignore[arg-type]
    images = sorted(folder.glob("*.[jp][pn]g"))
    found = texts.missing([Item(str(path), path) for path in images])
    return [f"{Path(each.name).name}: {getattr(each.source, 'kind', '')}" for each in found], texts


def caption(folder: Path, *names: str, **options: bool) -> list[str | None]:
    texts = Sidecars(**options)  # type: ignore[arg-type]
    return [
        texts.write(Record(str(path), (DOG,), digest=digest_of(path.read_bytes())))
        for path in (folder / name for name in names)
    ]


def test_a_text_of_the_user_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"picture")
    notes = tmp_path / "a.txt"
    notes.write_text("my notes\n")
    found, texts = missing(tmp_path)
    assert (found, texts.skipped, texts.kept) == ([], 0, [notes])
    assert missing(tmp_path, overwrite=True)[1].kept == [notes]
    assert "did not write" in str(caption(tmp_path, "a.jpg", overwrite=True))
    notes.unlink()
    assert caption(tmp_path, "a.jpg") == [None]
    notes.write_text("my correction\n")
    assert missing(tmp_path)[1].kept == [notes]
    assert missing(tmp_path, overwrite=True)[1].kept == [notes]
    assert "did not write" in str(caption(tmp_path, "a.jpg", overwrite=True))
    assert notes.read_text() == "my correction\n"


def test_a_changed_image_is_captioned_again_and_an_unchanged_one_is_not(tmp_path: Path) -> None:
    image = tmp_path / "a.jpg"
    image.write_bytes(b"picture")
    assert missing(tmp_path)[0] == ["a.jpg: "]
    assert caption(tmp_path, "a.jpg") == [None]
    found, texts = missing(tmp_path)
    assert (found, texts.skipped, texts.kept) == ([], 1, [])
    assert missing(tmp_path, overwrite=True)[0] == ["a.jpg: "]
    image.write_bytes(b"another")
    assert missing(tmp_path)[0] == ["a.jpg: "]
    assert caption(tmp_path, "a.jpg") == [None]
    assert missing(tmp_path)[1].skipped == 1
    image.rename(tmp_path / "a.png")  # a copy in another format has another content
    (tmp_path / "a.png").write_bytes(b"png")
    assert missing(tmp_path)[0] == ["a.png: "]


def test_two_images_with_one_text_fail_in_every_run(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png"):
        (tmp_path / name).write_bytes(name.encode())
    first, second = caption(tmp_path, "a.jpg", "a.png")
    assert first is None
    assert second == (
        f"another image has the same text file, {tmp_path / 'a.txt'}; choose jsonl or csv"
    )
    for _ in range(2):
        found, texts = missing(tmp_path)
        assert (found, texts.skipped) == (["a.png: place_taken"], 1)


def test_two_jobs_at_once_know_the_texts_of_each_other(tmp_path: Path) -> None:
    jobs = Sidecars(), Sidecars()
    for name in "abc":
        (tmp_path / f"{name}.jpg").write_bytes(name.encode())
        for job in jobs:
            digest = digest_of(name.encode())
            assert job.write(Record(str(tmp_path / f"{name}.jpg"), (DOG,), digest=digest)) is None
    with (tmp_path / JOURNAL).open("a") as file:
        file.write('\n{"text": "d.t')  # a line that the other job is writing
    (tmp_path / "d.jpg").write_bytes(b"d")
    assert caption(tmp_path, "d.jpg") == [None]
    assert missing(tmp_path)[1].skipped == 4


def test_texts_of_images_that_are_gone_are_named(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    caption(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    (tmp_path / "a.jpg").unlink()
    (tmp_path / "b.jpg").rename(tmp_path / "b.png")
    (tmp_path / "c.jpg").unlink()
    (tmp_path / "c.txt").write_text("my notes\n")
    caption(tmp_path, "b.png")
    (tmp_path / "d.jpg").write_bytes(b"d")
    caption(tmp_path, "d.jpg")
    assert missing(tmp_path)[1].orphans() == [tmp_path / "a.txt"]


def test_the_journal_of_texts_survives_cut_lines_and_moves(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"picture")
    caption(folder, "a.jpg")
    with (folder / JOURNAL).open("a") as file:
        file.write('\n{"text": "b.tx')
    (folder / "b.jpg").write_bytes(b"second")
    caption(folder, "b.jpg")
    folder = folder.rename(tmp_path / "moved")
    assert missing(folder)[1].skipped == 2
    (folder / JOURNAL).write_text("foreign")
    with pytest.raises(ConfigError, match="not a journal of captioner"):
        missing(folder)
