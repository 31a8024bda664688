"""Jobs that write a file: exactly once, in order, whatever happens to them."""

from __future__ import annotations

import errno
import itertools
import json
import multiprocessing
import os
import random
import shutil
import sqlite3
import sys
import time
from io import StringIO
from pathlib import Path

import pytest
import torch

from captioner.captioner import Captioner
from captioner.captioning.job import JobOptions, caption_to_file, how_to_continue
from captioner.captioning.journal import Done, Journal, journals_of
from captioner.captioning.records import CaptioningOptions, Record, caption_files
from captioner.captioning.sources import list_images
from captioner.captioning.writers import as_dict
from captioner.errors import ConfigError, DataError
from captioner.system.memory import Memory
from captioner.system.workers import WithinMemory

import toys

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["captioner.captioner", "captioner.captioning.job", "torchvision", "toys"]
)
IMAGES = 60


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    toys.captioner().save(folder / "model")
    return folder / "model"


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    for number in range(IMAGES):
        colour = list(toys.COLOURS)[number % len(toys.COLOURS)]
        toys.draw(folder / f"{number:03}.png", colour, number)
    (folder / "007.png").write_bytes(b"no picture")
    return folder


def run(
    folder,
    pictures,
    output,
    *,
    model="toy",
    tell=print,
    say=print,
    world=None,
    count=lambda: None,
    **wish,
):
    captioner = Captioner.load(folder, "cpu")
    options = toys.options(captioner, **{"batch_size": 4, "beam_size": 2} | wish)
    items = list_images([str(pictures)])
    others = {"tell": tell, "say": say, "world": world, "count": count}
    return caption_to_file(lambda: captioner, items, output, *options, model=model, **others)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def same_captions(one: Path, other: Path) -> None:
    """Hold outputs against each other of which images met others in their batches.

    The last digit of a score may then be another; nothing else is.
    """
    for row, wanted in zip(rows(one), rows(other), strict=True):
        if wanted["score"] is not None:
            assert row.pop("score") == pytest.approx(wanted.pop("score"), abs=2e-6)
        assert row == wanted


def work(model, pictures, output) -> None:
    torch.set_num_threads(1)
    sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    run(model, pictures, output)


@pytest.mark.slow
def test_a_job_killed_at_twenty_random_moments_ends_with_the_same_bytes(model, pictures, tmp_path):
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed" / "out.jsonl"
    for _ in range(2):  # the first also loads the fork server
        whole.unlink(missing_ok=True)
        for path in journals_of(whole):
            path.unlink()
        began = time.monotonic()
        process = PROCESSES.Process(target=work, args=(model, pictures, whole), daemon=True)
        process.start()
        process.join()
        length = time.monotonic() - began
    assert process.exitcode == 0
    dice, reached = random.Random(0), []
    for _ in range(20):
        process = PROCESSES.Process(target=work, args=(model, pictures, killed), daemon=True)
        process.start()
        process.join(dice.uniform(0.2, 0.9) * length)
        process.kill()
        process.join()
        if journals_of(killed):
            with sqlite3.connect(journals_of(killed)[0]) as db:
                tables = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'records'").fetchone()
                reached.append(
                    db.execute("SELECT count(*) FROM records").fetchone()[0] if tables else 0
                )
    assert max(reached) > 0  # it got far enough to have something to lose
    assert reached == sorted(reached)  # and lost nothing
    made: list[Record] = []
    totals = run(model, pictures, killed, tell=made.append)
    assert len(made) == IMAGES - reached[-1]  # nothing is captioned twice
    assert killed.read_bytes() == whole.read_bytes()
    assert (totals.images, totals.failed) == (IMAGES, 1)
    names = [row["file_name"] for row in rows(killed)]
    assert names == sorted(map(str, pictures.iterdir()))
    assert not list(killed.parent.glob(".*"))


def test_done_once_it_costs_nothing_and_only_what_is_new_or_changed_is_done(
    model, pictures, tmp_path
):
    output = tmp_path / "out.jsonl"
    assert run(model, pictures, output).fresh == IMAGES
    before = output.read_bytes()
    assert run(model, pictures, output).fresh == 0
    assert output.read_bytes() == before
    toys.draw(pictures / "999.png", "red", 99)
    toys.draw(pictures / "003.png", "white", 77)
    (pictures / "004.png").unlink()
    made: list[Record] = []
    totals = run(model, pictures, output, tell=made.append)
    assert [Path(record.file_name).name for record in made] == ["003.png", "999.png"]
    assert totals.images == IMAGES
    assert [Path(row["file_name"]).name for row in rows(output)] == sorted(
        path.name for path in pictures.iterdir()
    )


def test_renamed_and_deleted_images_are_told(model, pictures, tmp_path):
    output, said = tmp_path / "out.jsonl", []
    for number in range(3, IMAGES):
        (pictures / f"{number:03}.png").unlink()
    run(model, pictures, output, say=said.append)
    run(model, pictures, output, say=said.append)
    assert said == []
    (pictures / "000.png").unlink()
    (pictures / "001.png").rename(pictures / "one.png")
    toys.draw(pictures / "002.png", "blue", 9)  # has other content under the same name
    for _ in range(2):
        said.clear()
        run(model, pictures, output, say=said.append)
        assert said == [
            f"1 image(s) of earlier runs are not among the images of this run, such as "
            f"{pictures / '000.png'}; the output does not have them any more",
            f"1 image(s) have another name than before, such as {pictures / 'one.png'}, once "
            f"{pictures / '001.png'}",
        ]
    assert len(rows(output)) == 2


def test_a_terminal_shows_the_time_that_is_left(model, pictures, tmp_path, monkeypatch):
    terminal = StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", terminal)
    run(model, pictures, tmp_path / "out.jsonl", count=lambda: 60)
    assert "60/60 [" in terminal.getvalue()


def test_captioning_without_a_journal_makes_no_digests(model, pictures, monkeypatch):
    captioner = Captioner.load(model, "cpu")
    monkeypatch.setattr("hashlib.blake2b", None)
    assert len(list(caption_files(captioner, list_images([str(pictures)])))) == IMAGES


def test_the_output_is_what_captioning_without_a_journal_gives(model, pictures, tmp_path):
    output = tmp_path / "out.jsonl"
    run(model, pictures, output)
    captioner = Captioner.load(model, "cpu")
    options = toys.options(captioner, batch_size=4, beam_size=2)
    plain = caption_files(captioner, list_images([str(pictures)]), *options)
    assert rows(output) == [as_dict(record) for record in plain]


def test_failures_are_listed_and_tried_again_when_asked(model, pictures, tmp_path):
    output = tmp_path / "out.jsonl"
    totals = run(model, pictures, output)
    assert totals.errors == tmp_path / "errors.jsonl"
    (failure,) = rows(totals.errors)
    assert failure["path"] == str(pictures / "007.png")
    assert failure["kind"] == "not_an_image"
    assert failure["message"]
    assert run(model, pictures, output).fresh == 0
    assert run(model, pictures, output, retry_errors=True).fresh == 1
    toys.draw(pictures / "007.png", "red")  # mended: seen without being asked
    totals = run(model, pictures, output)
    assert (totals.fresh, totals.failed, totals.errors) == (1, 0, None)
    assert not (tmp_path / "errors.jsonl").exists()


def test_jobs_of_one_folder_keep_their_own_failures(model, pictures, tmp_path):
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    for output in (first, second, first):
        run(model, pictures, output)
    listed = rows(tmp_path / "errors.jsonl")
    assert sorted(row["output"] for row in listed) == ["first.jsonl", "second.jsonl"]
    toys.draw(pictures / "007.png", "red")
    assert run(model, pictures, first).errors is None
    assert [row["output"] for row in rows(tmp_path / "errors.jsonl")] == ["second.jsonl"]
    run(model, pictures, second)
    assert not (tmp_path / "errors.jsonl").exists()


def test_asked_to_it_stops_at_the_first_failure_and_keeps_what_was_done(model, pictures, tmp_path):
    output = tmp_path / "out.jsonl"
    for _ in range(2):  # and again, until it is mended
        with pytest.raises(DataError, match=r"007\.png.*--on-error fail"):
            run(model, pictures, output, stop_on_error=True)
    assert not output.exists()
    toys.draw(pictures / "007.png", "red")
    assert run(model, pictures, output, stop_on_error=True).fresh == IMAGES - 7


@pytest.mark.parametrize("good", [0, 3, 4, 11])
def test_a_list_that_breaks_loses_no_image_before_the_break(model, pictures, tmp_path, good):
    """As stdin or a store that fails: each image before is in the journal."""
    captioner = Captioner.load(model, "cpu")
    options = toys.options(captioner, batch_size=4, beam_size=2)

    def start(most):
        def items():
            for number, item in enumerate(list_images([str(pictures)])):
                if number == most:
                    raise OSError(errno.EIO, "the store is gone")
                yield item

        output = tmp_path / "out.jsonl"
        return caption_to_file(lambda: captioner, items(), output, *options, model="toy")

    with pytest.raises(OSError, match="the store is gone"):
        start(good)
    with pytest.raises(OSError, match="the store is gone"):
        start(good)  # what the journal knows is not lost either
    assert start(None).fresh == IMAGES - good


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "other"}, r"\(another model\)"),
        ({"beam_size": 3}, "beam_size was 2, is 3"),
        ({"n_best": 2}, "n_best was 1, is 2"),
    ],
)
def test_another_model_or_setting_is_refused_until_told(change, said, model, pictures, tmp_path):
    output = tmp_path / "out.jsonl"
    run(model, pictures, output)
    before = output.read_bytes()
    with pytest.raises(ConfigError, match=f"{said}.*--overwrite") as caught:
        run(model, pictures, output, **change)
    assert len(str(caught.value).splitlines()) == 1
    assert output.read_bytes() == before
    assert run(model, pictures, output, overwrite=True, **change).fresh == IMAGES


def test_other_arithmetic_is_another_setting(model, pictures, tmp_path, monkeypatch):
    output = tmp_path / "out.jsonl"
    run(model, pictures, output)
    before = output.read_bytes()
    monkeypatch.setattr("captioner.encoder.encoder.arithmetic_of", lambda *_: "fp32 on cuda")
    assert run(model, pictures, output).fresh == 0  # what is done needs no arithmetic
    toys.draw(pictures / "999.png", "red", 99)
    with pytest.raises(ConfigError, match="arithmetic was fp32 on cpu, is fp32 on cuda"):
        run(model, pictures, output)
    assert output.read_bytes() == before


def test_a_file_of_somebody_else_is_not_overwritten(model, pictures, tmp_path):
    output = tmp_path / "out.jsonl"
    output.write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="not a captions file that captioner wrote"):
            run(model, pictures, output, overwrite=overwrite)
        assert output.read_text() == "mine"


def test_an_output_without_its_journal_is_given_up_only_when_told(model, pictures, tmp_path):
    output = tmp_path / "new" / "folder" / "out.jsonl"
    run(model, pictures, output)
    before = output.read_bytes()
    for path in journals_of(output):
        path.unlink()
    size = f"{len(before):,}"
    with pytest.raises(ConfigError, match=rf"already exists \({size} bytes\) and has no journal"):
        run(model, pictures, output)
    assert output.read_bytes() == before
    assert run(model, pictures, output, overwrite=True).fresh == IMAGES
    assert output.read_bytes() == before
    assert not list(output.parent.glob(".*"))


def test_a_failed_start_leaves_no_folders(model, pictures, tmp_path):
    (tmp_path / "file").touch()
    for name in (f"new/deep/{'x' * 250}.jsonl", f"new/{'x' * 300}/o.jsonl", "new/errors.jsonl"):
        with pytest.raises((ConfigError, OSError)):
            run(model, pictures, tmp_path / name)
        assert not (tmp_path / "new").exists()
    with pytest.raises(NotADirectoryError, match="not a folder; choose another path"):
        run(model, pictures, tmp_path / "file" / "o.jsonl")


def test_a_lock_that_holds_something_is_not_ours(model, pictures, tmp_path):
    lock = tmp_path / ".out.jsonl.captioner.lock"
    lock.write_text("mine")
    with pytest.raises(ConfigError, match="not a lock file of captioner"):
        run(model, pictures, tmp_path / "out.jsonl")
    assert lock.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [lock.name]


def test_as_many_captions_are_written_as_were_asked_for(model, pictures, tmp_path):
    output = tmp_path / "out.jsonl"
    run(model, pictures, output, n_best=2)
    captioner = Captioner.load(model, "cpu")
    options = toys.options(captioner, batch_size=4, beam_size=2, n_best=2)
    plain = caption_files(captioner, list_images([str(pictures)]), *options)
    assert rows(output) == [as_dict(record, n_best=2) for record in plain]
    assert len(rows(output)[0]["n_best"]) == 2


def test_how_a_job_goes_on():
    assert how_to_continue(False) == "results so far are kept; run the same command to continue"
    assert how_to_continue(True) == (
        "results so far are kept; run the same command without --overwrite to continue"
    )


def test_a_damaged_journal_is_one_clear_error(model, pictures, tmp_path):
    output = tmp_path / "out.jsonl"
    run(model, pictures, output)
    with journals_of(output)[0].open("r+b") as file:
        file.seek(4096)
        file.write(b"nonsense" * 1000)
    with pytest.raises(DataError, match=r"out\.jsonl\.journal: damaged journal.*--salvage"):
        run(model, pictures, output)


@pytest.mark.parametrize("change", ["UPDATE records SET row = 'x'", "UPDATE job SET identity = 1"])
def test_a_row_of_nonsense_is_one_clear_error(model, pictures, tmp_path, change):
    output = tmp_path / "out.jsonl"
    run(model, pictures, output)
    with sqlite3.connect(journals_of(output)[0]) as db:
        db.execute(change)
    with pytest.raises(DataError, match="checksum of a row does not match"):
        run(model, pictures, output)
    assert not list(tmp_path.glob(".*"))


def test_a_list_of_failures_that_cannot_be_read_is_said_at_once(model, pictures, tmp_path):
    (tmp_path / "errors.jsonl").write_bytes(b"\xff\xfe")
    made = []
    with pytest.raises(
        ConfigError, match=r"errors\.jsonl: already exists and is not a list of failures"
    ):
        run(model, pictures, tmp_path / "out.jsonl", tell=made.append)
    assert not made


def test_images_are_not_lost_by_an_impossible_batch(model, pictures):
    captioner = Captioner.load(model, "cpu")
    for size in (0, -1, 2.5):
        with pytest.raises(ConfigError, match="batch_size: must be 1 to"):
            how = CaptioningOptions(batch_size=size)
            list(caption_files(captioner, list_images(pictures), how=how))


def test_two_jobs_do_not_write_one_output_at_a_time(model, pictures, tmp_path):
    output = tmp_path / "out.jsonl"
    refused = []

    def meanwhile(_):
        if not refused:
            with pytest.raises(ConfigError, match="in use by another process"):
                run(model, pictures, output)
            refused.append(True)

    run(model, pictures, output, tell=meanwhile)
    assert refused
    assert len(rows(output)) == IMAGES
    assert not list(tmp_path.glob(".*"))


def test_what_is_written_is_held_against_what_was_listed(tmp_path):
    journal = Journal(tmp_path / "out.jsonl", 0, {})
    batch = [Done(f"{n}.png", b"digest", Record(f"{n}.png", error="no picture")) for n in range(3)]
    journal.add((0, 1, 3), batch)
    journal.close()
    assert [record.file_name for record in itertools.islice(journal.merged(3), 2)] == [
        "0.png",
        "1.png",
    ]
    for listed in (0, 2, 3, 4):
        words = f"{listed} images were listed, and the journals hold 2 of them in order: .*again"
        with pytest.raises(DataError, match=words):
            list(journal.merged(listed))
    journals_of(tmp_path / "out.jsonl")[0].unlink()
    with pytest.raises(DataError, match="3 images were listed, and the journals hold 0"):
        list(journal.merged(3))


def test_rows_of_another_job_or_run_are_refused(tmp_path):
    output = tmp_path / "out.jsonl"
    batch = [Done("a.png", b"digest", Record("a.png", error="no picture"))]

    def written(identity, sitting):
        journal = Journal(output, 0, identity, sitting)
        journal.add([0], batch)
        journal.close()
        return journal, journals_of(output)[0].read_bytes()

    mine, own = written({"model": "a"}, b"1")
    journals_of(output)[0].unlink()
    _, other = written({"model": "b"}, b"1")
    journals_of(output)[0].unlink()
    _, earlier = written({"model": "a"}, b"0")
    for content in (other, earlier):
        journals_of(output)[0].write_bytes(content)
        with pytest.raises(DataError, match="checksum of a row does not match"):
            list(mine.merged(1))
    journals_of(output)[0].write_bytes(own)
    assert [record.file_name for record in mine.merged(1)] == ["a.png"]


def move_folder(output, aside):
    output.parent.rename(aside)


def replace_folder(output, aside):
    output.parent.rename(aside)
    output.parent.mkdir()


def move_journal(output, aside):
    aside.mkdir()
    for path in output.parent.glob("out.jsonl.journal*"):
        path.rename(aside / path.name)


def replace_journal(output, aside):
    move_journal(output, aside)
    for path in aside.iterdir():
        shutil.copy(path, output.parent)


@pytest.mark.parametrize("harm", [move_folder, replace_folder, move_journal, replace_journal])
def test_a_journal_that_is_moved_in_mid_job_is_said_and_goes_on_once_it_is_back(
    harm, model, pictures, tmp_path
):
    whole, output = tmp_path / "whole.jsonl", tmp_path / "place" / "out.jsonl"
    run(model, pictures, whole)
    made, aside = [], tmp_path / "aside"

    def tell(record):
        made.append(record)
        if len(made) == IMAGES // 2:
            harm(output, aside)

    with pytest.raises(DataError, match="while the job ran") as stopped:
        run(model, pictures, output, tell=tell)
    assert len(str(stopped.value).splitlines()) == 1
    assert len(made) < IMAGES  # it is noticed soon
    assert not output.exists()
    if harm in (move_folder, replace_folder):
        shutil.rmtree(output.parent, ignore_errors=True)
        aside.rename(output.parent)
    else:
        for path in aside.iterdir():
            path.rename(output.parent / path.name)
    assert run(model, pictures, output).fresh <= IMAGES // 2
    assert output.read_bytes() == whole.read_bytes()


def test_a_journal_that_is_removed_in_mid_job_is_an_error(model, pictures, tmp_path):
    output = tmp_path / "out.jsonl"

    def tell(_):
        for path in tmp_path.glob("out.jsonl.journal*"):
            path.unlink()

    with pytest.raises(DataError, match="removed or replaced while the job ran"):
        run(model, pictures, output, tell=tell)
    assert not output.exists()


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_an_output_whose_place_was_taken_in_mid_job_is_kept_in_the_journal(
    make, model, pictures, tmp_path
):
    output = tmp_path / "out.jsonl"
    made = []

    def tell(record):
        made.append(record)
        if len(made) == 1:
            make(output)

    with pytest.raises(DataError, match="became a folder or a pipe"):
        run(model, pictures, output, tell=tell)
    output.rmdir() if output.is_dir() else output.unlink()
    assert run(model, pictures, output).fresh == 0
    assert len(rows(output)) == IMAGES


@pytest.mark.parametrize("name", ["errors.jsonl", "folder"])
def test_an_output_that_cannot_be_is_refused_at_once(model, pictures, tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match=r"choose another name|not a regular file"):
        run(model, pictures, tmp_path / name)
    assert not (tmp_path / f"{name}.journal").exists()


def test_a_journal_damaged_inside_is_one_clear_error(model, pictures, tmp_path):
    output = tmp_path / "out.jsonl"
    run(model, pictures, output)
    path = journals_of(output)[0]
    data = bytearray(path.read_bytes())
    data[4096 * 2 :] = b"\xff" * (len(data) - 4096 * 2)  # all but the schema
    path.write_bytes(data)
    with pytest.raises(DataError, match="damaged journal"):
        run(model, pictures, output)


def flip(path: Path, dice: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    path.write_bytes(data)


@pytest.mark.parametrize("ending", ["", "-wal"])
@pytest.mark.slow
def test_a_flipped_bit_never_ends_in_other_captions_and_salvage_goes_on(
    ending, model, pictures, tmp_path
):
    whole, output = tmp_path / "whole.jsonl", tmp_path / "at work" / "out.jsonl"
    kept, made = tmp_path / "kept", []

    def tell(record):
        made.append(record)
        if len(made) == IMAGES - 8:  # as a kill would leave it
            kept.mkdir()
            for path in whole.parent.glob("whole.jsonl.journal*"):
                shutil.copy(path, kept / path.name.replace("whole", "out"))

    run(model, pictures, whole, tell=tell)
    if not ending:  # all in the one file
        with sqlite3.connect(kept / "out.jsonl.journal") as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.close()
    dice, said = random.Random(3), []
    for _ in range(30):
        shutil.rmtree(output.parent, ignore_errors=True)
        shutil.copytree(kept, output.parent)
        flip(output.parent / f"out.jsonl.journal{ending}", dice)
        try:
            run(model, pictures, output)
        except DataError as error:
            said.append(str(error))
            assert "out.jsonl.journal: damaged journal" in said[-1]
            assert len(said[-1].splitlines()) == 1
            assert not output.exists()
            run(model, pictures, output, salvage=True)
        same_captions(output, whole)
    assert len(said) > 3 or ending  # SQLite itself drops what its log holds from a flip on


def test_salvage_keeps_the_sound_rows_and_the_damaged_file(model, pictures, tmp_path):
    output = tmp_path / "out.jsonl"
    run(model, pictures, output)
    [journal], whole = journals_of(output), output.read_bytes()
    for number in range(2):
        with sqlite3.connect(journal) as db:
            db.execute(
                "UPDATE records SET row = row || ' ' WHERE name = ?",
                (os.fsencode(pictures / f"00{number}.png"),),
            )
        db.close()
        damaged, said = journal.read_bytes(), []
        totals = run(model, pictures, output, salvage=True, say=said.append)
        aside = tmp_path / f"out.jsonl.journal.damaged{'.1' if number else ''}"
        assert aside.read_bytes() == damaged
        assert said == [
            f"{journal}: damaged (the checksum of a row does not match): 59 intact row(s) kept; "
            f"the damaged file is now {aside}"
        ]
        assert totals.fresh == 1
        assert output.read_bytes() == whole
    said.clear()
    assert run(model, pictures, output, salvage=True, say=said.append).fresh == 0
    assert not said


def test_around_a_damaged_page_rows_are_kept(model, pictures, tmp_path):
    output = tmp_path / "out.jsonl"
    run(model, pictures, output)
    whole, [journal] = output.read_bytes(), journals_of(output)
    data = bytearray(journal.read_bytes())
    middle = data.find(os.fsencode(pictures / "030.png")) // 4096 * 4096
    data[middle : middle + 4096] = bytes(4096)
    journal.write_bytes(data)
    with pytest.raises(DataError, match="damaged journal"):
        run(model, pictures, output)
    said: list[str] = []
    totals = run(model, pictures, output, salvage=True, say=said.append)
    assert 0 < totals.fresh < IMAGES // 2
    assert f"{IMAGES - totals.fresh} intact row(s) kept" in said[0]
    assert output.read_bytes() == whole


def test_salvage_takes_no_rows_of_another_job(model, pictures, tmp_path):
    output = tmp_path / "out.jsonl"
    run(model, pictures, output)
    before = journals_of(output)[0].read_bytes()
    with pytest.raises(ConfigError, match="another model"):
        run(model, pictures, output, model="other", salvage=True)
    assert journals_of(output)[0].read_bytes() == before


# Draws depend on the place in a batch, so what was named before must keep its place.
def test_drawn_captions_are_the_same_however_often_the_job_is_cut_off(model, pictures, tmp_path):
    paths = sorted(map(str, pictures.iterdir()))[8:20]
    listed = [*paths[:4], paths[4], paths[0], paths[5], paths[6], *paths[:4], *paths[7:], paths[1]]

    def work(output: Path, stop_after: int | None = None, batch_size: int = 4) -> None:
        made = 0

        def tell(_):
            nonlocal made
            made += 1
            if made == stop_after:
                raise KeyboardInterrupt

        captioner = Captioner.load(model, "cpu")
        drawn = toys.options(captioner, batch_size=batch_size, search="sample", temperature=3.0)
        items = list_images(listed)
        caption_to_file(lambda: captioner, items, output, *drawn, model="toy", tell=tell)

    work(tmp_path / "whole.jsonl")
    whole = rows(tmp_path / "whole.jsonl")
    assert len({row["caption"] for row in whole}) > 4
    for stop_after in (1, 5, 9):
        output = tmp_path / f"{stop_after}.jsonl"
        with pytest.raises(KeyboardInterrupt):
            work(output, stop_after)
        work(output)
        assert rows(output) == whole
    with pytest.raises(ConfigError, match="batch_size was 4, is 5"):
        work(output, batch_size=5)


def test_the_same_image_named_twice_is_captioned_once_and_written_twice(model, tmp_path):
    picture = toys.draw(tmp_path / "a.png", "red")
    output = tmp_path / "out.jsonl"
    items = list_images([str(picture)] * 2)
    captioner = Captioner.load(model, "cpu")
    how = JobOptions(batch_size=1, num_workers=1)
    totals = caption_to_file(lambda: captioner, items, output, how=how, model="toy")
    assert totals.images == 2
    assert len(set(output.read_text().splitlines())) == 1


def test_where_memory_is_short_batches_are_halved_and_stay_so():
    asked = []

    def two_fit(batch):
        asked.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return batch * 10

    within = WithinMemory(two_fit)
    for _ in range(2):
        parts = within(torch.arange(9))
        assert torch.equal(torch.cat(parts), torch.arange(9) * 10)
    assert asked == [9, 4, 2, 2, 2, 2, 1, 2, 2, 2, 2, 1]
    with pytest.raises(torch.OutOfMemoryError):
        WithinMemory(lambda batch: (_ for _ in ()).throw(torch.OutOfMemoryError()))(torch.ones(1))


@pytest.mark.parametrize("sampled", [False, True])
def test_with_room_for_less_than_one_image_the_same_is_written(model, pictures, tmp_path, sampled):
    shutil.make_archive(str(tmp_path / "p"), "gztar", pictures)
    shutil.make_archive(str(tmp_path / "p"), "zip", pictures)
    written = []
    for limit in (None, 1):
        memory = Memory(limit)
        output = tmp_path / f"{limit}.jsonl"
        items = list_images(
            [str(pictures), str(tmp_path / "p.tar.gz"), str(tmp_path / "p.zip")], memory=memory
        )
        captioner = Captioner.load(model, "cpu")
        wish = {"search": "sample", "temperature": 3.0} if sampled else {}
        options = toys.options(captioner, batch_size=16, num_workers=4, **wish)
        totals = caption_to_file(
            lambda captioner=captioner: captioner,
            items,
            output,
            *options,
            model="toy",
            memory=memory,
        )
        assert totals.images == 3 * IMAGES
        assert memory.used == 0
        written.append(output.read_bytes())
    assert written[0] == written[1]
