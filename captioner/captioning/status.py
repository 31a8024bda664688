"""How far a captioning job is, seen from outside: running, stopped or finished.

Only its journal, or what it notes in its folder of parts, is read. The job is not disturbed, and
its lock is never taken.
"""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from captioner.captioning.journal import journals_of, lock_of
from captioner.captioning.part_folders import Folder, LocalFolder, RemoteFolder, folder_at
from captioner.captioning.parts import manifests, run_of
from captioner.captioning.run_state import Noted, is_running, noted_in
from captioner.captioning.sidecar_files import FORMS, place_of
from captioner.captioning.sidecar_journal import JOURNAL, SidecarJournal
from captioner.errors import DataError
from captioner.images.members import is_image
from captioner.system.foreign import plain
from captioner.system.ownership import check

State = Literal["running", "stopped", "finished", "unknown"]


@dataclass(frozen=True, slots=True)
class JobStatus:
    """How far a job is.

    Attributes:
        output: as given.
        state: stopped: killed, or ended by an error; unknown: the journal does not tell.
        done: images that have a caption or have failed.
        failed: those that have failed; None if unknown.
        total: images of the job; None if unknown.
        rate: images per second of the last run; None if unknown.
        processes: of the last run.
        last_sign: of life, in seconds since 1970.
        command: that continues the job; empty if unknown.
        folder: in which the command was given.
    """

    output: Path | str
    state: State
    done: int
    last_sign: float
    failed: int | None = None
    total: int | None = None
    rate: float | None = None
    processes: int = 1
    command: str = ""
    folder: str = ""

    @property
    def eta(self) -> float | None:
        """Seconds that the rest takes at this rate; None if unknown."""
        if self.state == "finished":
            return 0.0
        if self.total is None or not self.rate:
            return None
        return max(0, self.total - self.done) / self.rate


def job_status(output: Path | str) -> JobStatus:
    """Return how far the job that writes an output is.

    Args:
        output: the file or the folder of `--output`, or a folder with files beside the images. A
            text is the address of a folder of parts.

    Raises:
        ConfigError: if a file with the name of the journal is not captioner's.
        DataError: if there is no journal, it is damaged, or a store does not answer.
    """
    folder = folder_at(output)
    if folder.owned():
        return _of_parts(folder)
    if isinstance(folder, RemoteFolder):
        raise DataError(f"{folder}: no such folder of parts; name the --output of a captioning job")
    output = Path(output)
    if output.is_dir():
        return _beside(output)
    journals = _journals(output)
    if not journals:
        what = "has no journal" if output.exists() else "no such output, and no journal of it"
        raise DataError(f"{output}: {what}; name the --output of a captioning job")
    try:
        notes = {path: noted_in(path) for path in journals}
    except sqlite3.Error as error:
        raise DataError(
            f"{journals[0]}: cannot be read ({plain(error)}); if it is damaged, --salvage keeps "
            f"its intact rows"
        ) from error
    except OSError as error:  # removed meanwhile, or not allowed
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error
    return _of_journals(output, notes)


def _journals(output: Path) -> list[Path]:
    try:
        journals = journals_of(output)
        for path in journals:
            check(path, "journal")
    except OSError as error:
        raise DataError(f"{output}: cannot be looked for: {error.strerror}") from error
    return journals


def _of_journals(output: Path, notes: dict[Path, Noted]) -> JobStatus:
    leader = next(iter(notes.values())).state  # the journal without a number is the first
    states = [note.state for note in notes.values() if note.state]
    states = [state for state in states if leader and state.run == leader.run]
    done = sum(note.done for note in notes.values())
    failed = sum(note.failed for note in notes.values())
    signs = [sign for path in (lock_of(output), *notes) if (sign := _changed(path))]
    last_sign = max((*signs, *(state.updated for state in states)), default=0.0)
    if leader is None:
        return JobStatus(output, "unknown", done, last_sign, failed)
    state: State = "finished" if leader.finished else "stopped"
    if is_running(leader, _changed(lock_of(output))):
        state = "running"
    total = leader.total
    if total is not None:  # images that are not listed any more also have records
        done = total if state == "finished" else min(done, total)
    return JobStatus(
        output,
        state,
        done,
        last_sign,
        failed,
        total,
        sum(state.rate for state in states) or None,
        leader.processes,
        leader.command,
        leader.folder,
    )


def _of_parts(folder: Folder) -> JobStatus:
    """Return how many images the parts of a folder hold, and whether its job runs.

    Raises:
        DataError: if the folder cannot be read.
    """
    try:
        found = [manifest for _, manifest in manifests(folder, read=False)]
        images, run = run_of(folder)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}") from error
    done = sum(manifest.end - manifest.start for manifest in found)
    failed = sum(len(manifest.failures) for manifest in found)
    whole = images is not None and done == images
    state: State = "finished" if whole else "stopped" if run else "unknown"
    last_sign = run.updated if run else 0.0
    if isinstance(folder, LocalFolder):
        last_sign = max(_changed(path) or 0.0 for path in folder.path.iterdir())
    if run is None:
        return JobStatus(folder.given, state, done, last_sign, failed, images)
    if is_running(run, folder.last_sign(run.updated)):
        state, done = "running", max(done, run.listed)
    total = run.total if images is None else images
    done = done if total is None else min(done, total)
    rate, command = run.rate or None, run.command
    given = (failed, total, rate, run.processes, command, run.folder)
    return JobStatus(folder.given, state, done, last_sign, *given)


def _changed(path: Path) -> float | None:
    with suppress(OSError):
        return path.stat().st_mtime
    return None


def _beside(top: Path) -> JobStatus:
    """Return how many images of a folder have the text that captioner wrote beside them.

    Subfolders count if one of them has a journal, as after `--recursive`.
    """
    folders = {}
    for folder, names, files in os.walk(top):
        names.sort()
        folders[Path(folder)] = set(files)
    journals = [folder for folder, files in folders.items() if JOURNAL in files]
    if not journals:
        raise DataError(
            f"{top}: no journal of files beside images in this folder; name the --output of a "
            f"captioning job, or a folder of images with --format txt, caption or xmp"
        )
    if journals == [top]:
        folders = {top: folders[top]}
    counts = [_captioned(folder, files) for folder, files in folders.items()]
    done, total = (sum(column) for column in zip(*counts, strict=True))
    last_sign = max(_changed(folder / JOURNAL) or 0.0 for folder in journals)
    state: State = "finished" if done == total else "unknown"
    return JobStatus(top, state, done, last_sign, total=total)


def _captioned(folder: Path, files: set[str]) -> tuple[int, int]:
    """Return how many images of one folder have a text of captioner, and how many there are."""
    texts = {text for text, _ in SidecarJournal().of(folder)}
    endings = {Path(text).suffix[1:] for text in texts} & {*FORMS}
    images = [name for name in files if is_image(name, Counter())]
    done = 0
    for name in images:
        places = (place_of(folder / name, ending).name for ending in endings)
        done += any(place in texts and place in files for place in places)
    return done, len(images)
