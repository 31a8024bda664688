"""A job in parts: each whole or absent, only missing parts are done, merged to the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tqdm
from click.testing import CliRunner

import captioner
from captioner.captioning import parts
from captioner.captioning.engine import Local
from captioner.captioning.job import locked
from captioner.captioning.journal import lock_of
from captioner.captioning.parts import caption_to_parts, merge_parts
from captioner.captioning.run_state import SILENCE
from captioner.captioning.sources import list_images
from captioner.captioning.status import job_status
from captioner.cli import main
from captioner.errors import DataError
from captioner.system.memory import Memory

import toys

IMAGES = 23
START = """
from captioner.captioning import part_folders, parts
parts.PART_IMAGES, part_folders.EVERY = 8, 0.1
from captioner.cli import main
main()
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """23 pictures, one broken; parts of 8 images; a model."""
    toys.captioner().save(tmp_path / "model")
    for number in range(IMAGES):
        colour = list(toys.COLOURS)[number % len(toys.COLOURS)]
        toys.draw(tmp_path / "p" / f"{number:02}.png", colour, number)
    (tmp_path / "p" / "07.png").write_bytes(b"no picture")
    monkeypatch.setattr(parts, "PART_IMAGES", 8)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def caption(*words: str, pictures: str = "p") -> tuple[int, str]:
    given = ["caption", pictures, "--model", "model", "--batch-size", "4", *words]
    done = CliRunner().invoke(main, given)
    return done.exit_code, done.stderr


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_parts_merge_to_the_bytes_of_a_plain_job(home, format):
    pytest.importorskip("pyarrow" if format == "parquet" else "json")
    code, said = caption("--format", format, "--output", "out/")
    assert code == 1 and "23 image(s), 22 captioned, 1 failed" in said
    assert len(list((home / "out").glob(f"part-*.{format}"))) == 3
    caption("--format", format, "--output", f"plain.{format}")
    wanted = (home / f"plain.{format}").read_bytes()
    merged = CliRunner().invoke(main, ["merge", "out"])
    assert merged.exit_code == 0, merged.output
    assert (home / f"out.{format}").read_bytes() == wanted
    listed = [json.loads(line) for line in (home / "errors.jsonl").read_text().splitlines()]
    assert [(row["path"], row["kind"]) for row in listed] == [("p/07.png", "not_an_image")] * 2


def test_only_missing_and_torn_parts_are_written_again(home):
    caption("--output", "out/")
    merge_parts(Path("out"))
    wanted = Path("out.jsonl").read_bytes()
    for name in ("part-00001.json", "part-00002.json"):
        before = {path.name: path.stat().st_mtime_ns for path in Path("out").iterdir()}
        path = Path("out", name)
        if name == "part-00001.json":
            path.unlink()  # killed between a part and its manifest
        else:
            path.with_suffix(".jsonl").write_bytes(b"{")  # torn by a failing disk
        with pytest.raises(DataError, match="is missing or damaged"):
            merge_parts(Path("out"))
        code, said = caption("--output", "out/")
        assert code == 0 and "in earlier runs" in said  # its failure is known
        changed = {p.name for p in Path("out").iterdir() if p.stat().st_mtime_ns != before[p.name]}
        assert changed - {"parts.json", "errors.jsonl"} == {name, f"{path.stem}.jsonl"}
        merge_parts(Path("out"))
        assert Path("out.jsonl").read_bytes() == wanted


class CutOffError(Exception):
    """Of a list of images."""


@pytest.mark.parametrize("good", [15, 16, 17])
def test_a_list_that_breaks_keeps_the_full_parts(home, good):
    captioner = toys.captioner()
    options, how = toys.options(captioner, batch_size=4)
    engine = Local(lambda: captioner, options, how, Memory(None))

    def items(most):
        for number, item in enumerate(list_images(["p"])):
            if number == most:
                raise CutOffError
            yield item

    def write(most):
        return caption_to_parts(engine, items(most), Path("out"), options, how, model="m")

    with pytest.raises(CutOffError):
        write(good)
    assert len(list(Path("out").glob("part-*.json"))) == good // 8
    assert write(None).fresh == IMAGES - good // 8 * 8


def test_a_part_with_a_gap_is_not_written(home):
    captioner = toys.captioner()
    options, how = toys.options(captioner, batch_size=4)

    class Torn(Local):
        """As of a cluster whose worker fails: a batch is lost, later ones are there."""

        def caption(self, batches):
            done = [*super().caption(batches)]
            yield from (batch for number, batch in enumerate(done) if number != 1)
            raise CutOffError

    engine = Torn(lambda: captioner, options, how, Memory(None))
    with pytest.raises(CutOffError):
        caption_to_parts(engine, list_images(["p"]), Path("out"), options, how, model="m")
    assert [path.name for path in Path("out").glob("part-*.json")] == ["part-00001.json"]


def test_other_settings_or_another_list_are_said_in_one_line(home):
    caption("--output", "out/")
    for words, message in (
        (["--beam-size", "2"], "different settings (beam_size was"),
        (["--style", "sentence"], "different settings (wording was"),
        (["--batch-size", "3"], "different settings (batch_size was 4, is 3"),
    ):
        code, said = caption("--output", "out", *words)
        assert code != 0 and message in said.splitlines()[-1]
    Path("p/00.png").rename("p/000.png")
    code, said = caption("--output", "out")
    assert code != 0 and "part-00000.json: was written from another list of images" in said
    code, said = caption("--output", "out", "--overwrite")
    assert code == 1 and "23 image(s), 22 captioned" in said
    assert "000.png" in Path("out/part-00000.jsonl").read_text()


def test_a_foreign_folder_and_other_formats_are_refused(home):
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("dear")
    code, said = caption("--output", "mine")
    assert code != 0 and "not marked as captioner's" in said
    assert caption("--output", "x/", "--format", "csv")[0] == 2
    for words in (["--retry-errors"], ["--salvage"], ["--on-error", "fail"], ["--maps", "m"]):
        assert caption("--output", "x/", *words)[0] == 2
    done = CliRunner().invoke(main, ["merge", "mine"])
    assert done.exit_code == 1 and "no finished job" in done.stderr


def test_a_second_job_leaves_the_parts_of_a_running_one(home):
    caption("--output", "out/")
    before = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    with locked(Path("out", "parts")):
        for words in ((), ("--overwrite",)):
            code, said = caption("--output", "out", *words)
            assert code == 2 and "in use by another process" in said
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == before


def test_a_merge_writes_next_to_this_folder_and_to_no_folder(home, monkeypatch):
    caption("--output", "out/")
    for output in ("s3://bucket/new/", "new/"):
        done = CliRunner().invoke(main, ["merge", "out", "--output", output])
        assert done.exit_code == 2 and "name a file, not a folder" in done.stderr
    monkeypatch.chdir("out")
    done = CliRunner().invoke(main, ["merge", "."])
    assert done.exit_code == 0, done.output
    assert (home / "out.jsonl").read_bytes().count(b"\n") == IMAGES


def test_the_status_counts_whole_parts(home):
    caption("--output", "out/")
    done = CliRunner().invoke(main, ["status", "out/"])
    assert done.exit_code == 0 and "finished, 23 of 23 image(s) done, 1 failed" in done.output
    for name in ("parts.json", "part-00001.json"):
        Path("out", name).unlink()
    status = job_status(Path("out"))
    assert (status.state, status.done, status.failed, status.total) == ("unknown", 15, 1, None)
    done = CliRunner().invoke(main, ["status", "none/"])
    assert done.exit_code == 1 and "error: none: no such output" in done.stderr


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_a_job_without_images_keeps_its_format(home, format):
    pytest.importorskip("pyarrow" if format == "parquet" else "json")
    for output in ("out/", f"plain.{format}"):
        code, said = caption("--format", format, "--output", output, pictures="-")
        assert code == 0 and "0 image(s)" in said
    code, _ = caption("--format", format, "--output", "out/", pictures="-")
    assert code == 0
    merged = CliRunner().invoke(main, ["merge", "out/"])
    assert merged.exit_code == 0, merged.output
    assert Path(f"out.{format}").read_bytes() == Path(f"plain.{format}").read_bytes()
    code, said = caption("--format", format, "--output", "out/")
    assert code == 2 and "was written from another list of images" in said


def progress_of(said: str) -> list[dict]:
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")]


def test_progress_counts_the_parts_of_earlier_runs(home, monkeypatch):
    seen = []
    monkeypatch.setattr(tqdm.tqdm, "update", lambda bar, count: seen.append(count))
    code, said = caption("--output", "out/", "--progress", "json")
    *_, last = progress_of(said)
    assert code == 1 and (last["done"], last["failed"], last["total"]) == (IMAGES, 1, IMAGES)
    assert last["rate"] > 0 and last["eta"] == 0 and last["shares"]["writing"] > 0
    assert sum(seen) == IMAGES
    Path("out/part-00001.json").unlink()
    seen.clear()
    _, said = caption("--output", "out/", "--progress", "json")
    *_, last = progress_of(said)
    assert (last["done"], last["failed"], last["total"]) == (IMAGES, 1, IMAGES)
    assert seen == [8, 7, 4, 4]
    assert not progress_of(caption("--output", "out/")[1])


@pytest.mark.usefixtures("ends_what_it_starts")
def test_the_status_tells_whether_the_job_runs(home, monkeypatch):
    for number in range(IMAGES, 300):
        shutil.copy("p/01.png", f"p/{number:03}.png")
    start = [sys.executable, "-c", START, "caption", "p", "--model", "model", "--batch-size", "1"]
    process = subprocess.Popen(
        [*start, "--output", "out/"],
        env=os.environ | {"PYTHONPATH": str(Path(captioner.__file__).parents[1])},
        stderr=subprocess.DEVNULL,
    )
    try:
        while not (Path("out/part-00000.json").exists() and job_status(Path("out")).total):
            assert process.poll() is None
            time.sleep(0.01)
        running = job_status(Path("out"))
    finally:
        process.kill()
        process.wait()
    assert running.state == "running" and 8 <= running.done < 300
    assert running.total == 300 and running.command.endswith("--output out/")
    dead = CliRunner().invoke(main, ["status", "out"])
    assert "out: stopped, " in dead.output and "to go on: captioner caption p" in dead.output
    code, said = caption("--output", "out/", "--batch-size", "1")
    assert code in (0, 1) and "in earlier runs" in said  # the part of the broken picture may be new
    status = job_status(Path("out"))
    assert (status.state, status.done, status.eta) == ("finished", 300, 0)


def test_a_job_that_fails_counts_as_stopped(home, monkeypatch):
    caption("--output", "out/")
    Path("p/00.png").unlink()
    assert caption("--output", "out/")[0] == 2
    assert job_status(Path("out")).state == "stopped"
    noted = json.loads(Path("out/parts.json").read_text())
    assert noted["images"] is None and noted["run"]["process"] == 0
    noted["run"] |= {"host": "elsewhere", "process": 1}
    Path("out/parts.json").write_text(json.dumps(noted))
    assert job_status(Path("out")).state == "stopped"  # its lock is gone
    with locked(Path("out/parts")):
        assert job_status(Path("out")).state == "running"
        long_ago = time.time() - SILENCE - 1
        os.utime(lock_of(Path("out/parts")), (long_ago, long_ago))
        assert job_status(Path("out")).state == "stopped"
