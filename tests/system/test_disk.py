"""An error of writing names the file that the user knows, whatever Python says."""

from __future__ import annotations

import errno
import io
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import pytest

from captioner.captioner import Caption
from captioner.captioning.journal import Journal
from captioner.captioning.records import Record
from captioner.captioning.sidecar_journal import JOURNAL, Origin, SidecarJournal
from captioner.captioning.sidecars import Sidecars
from captioner.data.feature_store import _write
from captioner.errors import CaptionerError, DataError
from captioner.system.disk import writing
from captioner.system.files import whole_folder, write_text
from captioner.system.ownership import MARKER, begin
from captioner.training.checkpoint import write_tensors
from captioner.training.telemetry import RunLog

import toys


@contextmanager
def full_disk() -> Iterator[None]:
    """Let no file grow: the error is like that of a full disk, and names no file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with redirect_stderr(io.StringIO()):  # pytest's is a file
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def fill(folder: Path) -> None:
    with whole_folder(folder, "store") as aside:
        (aside / "config.json").write_text("long")


WRITERS: list[tuple[str, Callable[[Path], object]]] = [
    ("a.json", lambda path: write_text(path, "long", "scores")),
    ("folder", fill),
    (f"run/{MARKER}", lambda path: begin(path.parent, "run")),
    ("rows.f16", lambda path: _write(path, 0, b"long")),
    ("train.log", lambda path: RunLog(path.parent).say("long")),
    ("metrics.jsonl", lambda path: RunLog(path.parent).record(kind="step", epoch=1, step=1)),
    ("checkpoints/a.safetensors", lambda path: write_tensors(path, {}, {})),
    (
        JOURNAL,
        lambda path: SidecarJournal().note(path.parent / "a.txt", ("long",), Origin("a", "b")),
    ),
    ("model", lambda path: toys.captioner().save(path)),
]


@pytest.mark.parametrize(("name", "write"), WRITERS, ids=[name for name, _ in WRITERS])
def test_a_full_disk_names_the_file(
    name: str, write: Callable[[Path], object], tmp_path: Path
) -> None:
    path = tmp_path / name
    with full_disk(), pytest.raises((OSError, CaptionerError)) as error:
        write(path)
    shown = getattr(error.value, "filename", None) or str(error.value)
    assert str(path) in shown
    assert ".part" not in shown


def test_a_full_disk_is_told_and_no_empty_journal_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, image = Sidecars(), Record(str(tmp_path / "a.jpg"), (Caption("x", -1, -1, True),))
    monkeypatch.setattr("captioner.system.disk.LEAST_FREE", 2**70)  # SQLite says: disk I/O error
    for write in (lambda: Journal(tmp_path / "out.jsonl", 0, {}), lambda: texts.write(image)):
        with full_disk(), pytest.raises(DataError, match="free some space"):
            write()
        assert not any(tmp_path.iterdir())


def test_the_first_name_stays_but_not_a_temporary_one() -> None:
    for named, shown in (
        (None, "out"),
        ("in.jpg", "in.jpg"),
        ("/a/.x.captioner-1-ab.part/x", "out"),
    ):
        with pytest.raises(OSError, match=shown) as error, writing(Path("out")):
            raise OSError(errno.ENOSPC, "No space left on device", named)
        assert error.value.filename == shown
