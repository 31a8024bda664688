"""The journal alone: what is noted in it, found in it, merged from it, and what it refuses."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from captioner.captioning import journal as module
from captioner.captioning.journal import (
    Done,
    Journal,
    check_journals,
    forget,
    journals_of,
)
from captioner.captioning.records import Record
from captioner.errors import ConfigError, DataError
from captioner.text import Caption

A, B = b"a" * 16, b"b" * 16


def good(name: str, text: str = "a red square", digest: bytes = A) -> Done:
    return Done(
        name,
        digest,
        Record(name, (Caption(text, -1.5, -3.25, True), Caption("a square", -2.0, -4.0, False))),
    )


def bad(name: str, digest: bytes = A) -> Done:
    return Done(name, digest, Record(name, error="no picture", kind="not_an_image"))


def test_only_journals_of_this_output_are_its_journals(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    mine = {"out.jsonl.journal", "out.jsonl.journal.1", "out.jsonl.journal.12"}
    others = {"out.jsonl.journal.damaged", "out.jsonl.journal.01", "out.jsonl.journal-wal"}
    others |= {"about.jsonl.journal", "outXjsonl.journal", "out.jsonl.journal.1.2", "out.jsonl"}
    for name in mine | others:
        (tmp_path / name).touch()
    for ending in ("-wal", "-shm", "-journal"):
        (tmp_path / f"out.jsonl.journal.12{ending}").touch()
    assert [path.name for path in journals_of(output)] == sorted(mine)
    assert journals_of(tmp_path / "missing" / "out.jsonl") == []
    forget(output)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == others - {"out.jsonl.journal-wal"}


def test_each_process_has_a_journal_and_reads_all(tmp_path: Path) -> None:
    output = tmp_path / "new" / "folder" / "out.jsonl"
    first = Journal(output, 0, {"model": "m"})
    second = Journal(output, 2, {"model": "m"})
    assert [path.name for path in journals_of(output)] == [
        "out.jsonl.journal",
        "out.jsonl.journal.2",
    ]
    first.add([0, 3], [good("a.png"), bad("d.png")])
    second.add([1, 2], [good("b.png", digest=B), good("a.png", "another", B)])
    assert second.digests("a.png") == {A, B}
    assert first.digests("a.png") == {A}  # it was opened before the other
    assert second.digests("d.png") == {A}
    assert second.digests("d.png", failures=False) == frozenset()
    assert second.digests("c.png") == frozenset()
    for journal in (first, second):
        journal.close()
        journal.check_place()
    expected = [good("a.png"), good("b.png"), good("a.png", "another"), bad("d.png")]
    assert list(first.merged(4)) == [done.record for done in expected]


def test_what_was_said_first_stays_but_a_failure_does_not(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "out.jsonl", 0, {})
    journal.add([0, 1], [good("a.png", "first"), bad("b.png")])
    journal.add([0, 1], [good("a.png", "second"), good("b.png", "mended")])
    journal.add([2], [Done("a.png", A, None)])  # done before: only its place is noted
    journal.close()
    records = list(journal.merged(3))
    assert [record.captions[0].text for record in records] == ["first", "mended", "first"]


def test_a_new_run_forgets_positions_and_keeps_records(
    tmp_path: Path,
) -> None:
    output = tmp_path / "out.jsonl"
    for rank in (0, 1):
        journal = Journal(output, rank, {}, b"1")
        journal.add([rank], [good(f"{rank}.png")])
        journal.close()
    Journal(output, 1, {}, b"2").close()
    assert [listed(path) for path in journals_of(output)] == [1, 0]  # each forgets its own
    journal = Journal(output, 0, {}, b"2")
    assert [listed(path) for path in journals_of(output)] == [0, 0]  # the first one all
    assert journal.digests("0.png") == journal.digests("1.png") == {A}
    journal.add([0, 1], [Done("1.png", A, None), Done("0.png", A, None)])
    journal.close()
    assert [record.file_name for record in journal.merged(2)] == ["1.png", "0.png"]


def listed(path: Path) -> int:
    with sqlite3.connect(path) as db:
        [[count]] = db.execute("SELECT count(*) FROM listing")
    db.close()
    return count


def test_settings_are_the_same_in_any_order_and_others_are_named(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    Journal(output, 0, {"model": "m", "beam_size": 3, "top_p": 1.0}).close()
    Journal(output, 0, {"top_p": 1.0, "beam_size": 3, "model": "m"}).close()
    for rank in (0, 1):
        with pytest.raises(ConfigError) as error:
            Journal(output, rank, {"model": "n", "beam_size": 4, "top_p": 1.0})
        assert str(error.value) == (
            f"{output}.journal: this job was started with different settings (another model; "
            f"beam_size was 3, is 4); choose another --output, or --overwrite to discard 0 "
            f"finished images"
        )


def test_an_image_that_is_in_no_journal_is_an_error(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "out.jsonl", 0, {})
    journal.add([0, 1], [good("a.png"), Done("b.png", A, None)])
    journal.close()
    merged = journal.merged(2)
    assert next(merged) == good("a.png").record
    with pytest.raises(
        DataError, match="not written: 2 images were listed, and the journals hold 1"
    ):
        next(merged)


def test_positions_and_images_must_pair_up(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "out.jsonl", 0, {})
    for positions in ([0], [0, 1, 2]):
        with pytest.raises(ValueError, match="argument"):
            journal.add(positions, [good("a.png"), good("b.png")])
    assert journal.digests("a.png") == frozenset()
    journal.close()


def test_a_row_that_is_no_text_any_more_is_damage(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "out.jsonl", 0, {})
    journal.add([0], [good("a.png")])
    with journal.journals[journal.own] as db:
        db.execute("UPDATE records SET row = CAST(x'ff00ff' AS TEXT)")
    for read in (lambda: journal.digests("a.png"), lambda: list(journal.merged(1))):
        with pytest.raises(
            DataError, match=r"damaged journal \(the checksum of a row does not match\)"
        ):
            read()
    journal.close()


@pytest.mark.parametrize("ending", ["-wal", "-shm", "-journal"])
def test_what_belongs_to_no_journal_is_not_taken_for_the_rest_of_one(
    tmp_path: Path, ending: str
) -> None:
    output = tmp_path / "out.jsonl"
    stranger = tmp_path / f"out.jsonl.journal{ending}"
    check_journals(output)
    stranger.write_text("mine")
    with pytest.raises(ConfigError, match=f"{stranger.name}: belongs to no journal; move it away"):
        check_journals(output)
    stranger.unlink()
    Journal(output, 0, {}).close()
    stranger.write_text("what a killed process left")
    check_journals(output)


FULL = sqlite3.OperationalError("database or disk is full")
FULL.sqlite_errorcode = sqlite3.SQLITE_FULL
BUSY = sqlite3.OperationalError("database is locked")
BUSY.sqlite_errorcode = sqlite3.SQLITE_BUSY | 2 << 8  # an extended code: SQLITE_BUSY_SNAPSHOT
CORRUPT = sqlite3.DatabaseError("database disk image is malformed")
CORRUPT.sqlite_errorcode = sqlite3.SQLITE_CORRUPT


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FULL, "cannot be used as this job's journal (the disk is full); results so far"),
        (
            BUSY,
            "cannot be used as this job's journal (database is locked); results so far are kept",
        ),
        (OSError(13, "Permission denied"), "journal (Permission denied); results so far are kept"),
        (CORRUPT, "damaged journal (database disk image is malformed); --salvage keeps"),
        (ValueError("no number"), "damaged journal (no number); --salvage keeps"),
    ],
)
def test_damage_is_told_from_what_only_stands_in_the_way(error: Exception, said: str) -> None:
    path = Path("out.jsonl.journal")
    with pytest.raises(DataError) as told, module._usable(path):
        raise error
    assert str(told.value).startswith(f"{path}: ")
    assert said in str(told.value)
    assert module._is_damage(error) == ("--salvage" in said)


@pytest.mark.parametrize("where", ["sqlite_master", "integrity_check", "FROM records"])
@pytest.mark.parametrize("error", [FULL, BUSY, CORRUPT])
def test_salvage_gives_no_row_up_because_of_a_lock_or_a_full_disk(
    tmp_path: Path, where: str, error: sqlite3.Error
) -> None:
    journal = Journal(tmp_path / "out.jsonl", 0, {})
    journal.add([0], [good("a.png")])
    journal.close()

    class Failing(sqlite3.Connection):
        def execute(self, query: str, *values: Any) -> sqlite3.Cursor:
            if where in query:
                raise error
            return super().execute(query, *values)

    with closing(sqlite3.connect(journal.own, factory=Failing)) as db:
        if error is CORRUPT:
            rows, problem = module._intact_rows(journal.own, db, {})
            assert problem == str(error)
            assert len(rows) == (where != "FROM records")
        else:
            with pytest.raises(type(error)):
                module._intact_rows(journal.own, db, {})


@pytest.mark.parametrize("place", [*range(16, 100)])
def test_a_flipped_bit_in_the_header_loses_no_row_and_no_file(tmp_path: Path, place: int) -> None:
    output = tmp_path / "out.jsonl"
    with closing(Journal(output, 0, {"model": "m"})) as journal:
        journal.add(range(2), [good("a.png"), bad("b.png")])
    content = bytearray(journal.own.read_bytes())
    content[place] ^= 2
    journal.own.write_bytes(content)
    try:
        check_journals(output)
        with closing(Journal(output, 0, {"model": "m"})) as journal:
            assert journal.digests("a.png") == journal.digests("b.png") == {A}
    except (ConfigError, DataError) as error:
        assert str(error).startswith(f"{journal.own}: ")
        assert len(str(error).splitlines()) == 1
        assert journal.own.read_bytes()[100:] == content[100:]


def test_a_damaged_name_is_no_other_name(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    with closing(Journal(output, 0, {})) as journal:
        journal.add(range(3), [good("a.png"), good("b.png", digest=B), good("c.png", digest=b"")])
    with closing(Journal(output, 0, {}, b"later")) as journal:
        journal.add([0], [good("z.png")])
        assert [*journal.absent(1)] == [("a.png", "z.png"), ("b.png", None), ("c.png", None)]
        assert [*journal.absent(4)] == []
        with journal.journals[journal.own] as db:
            db.execute("UPDATE records SET name = x'78' WHERE name < x'62'")
        assert [*journal.absent(1)] == [("b.png", None), ("c.png", None)]
