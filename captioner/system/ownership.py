"""Whose a file or a folder is: what stands in a place is written over or deleted only if ours.

A name proves nothing: anybody may have a `config.yaml`. Folders that captioner fills hold a marker
that it wrote; a model directory, and files that go wherever a user says, are known by all of their
content. Every kind of place is in one of two tables, `FILES` and `FOLDERS`; `owns` looks there, and
`check`, `begin` and `clear` ask `owns`. What is not listed, or lies deeper than one folder within a
folder, is never touched.
"""

from __future__ import annotations

import csv
import json
import os
import re
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from captioner.errors import CaptionerError, ConfigError
from captioner.system.escapes import COLUMNS
from captioner.system.foreign import plain
from captioner.system.version import __version__

MARKER = ".captioner.json"
JOURNAL_SUFFIX = ".journal"
JOURNAL_ID = 0x43617074  # application_id in the header of a journal, "Capt"
SQLITE = b"SQLite format 3\0"
MAX_BYTES = 2**26  # of a file that is read whole to be recognised
MAX_SIDECAR = 4096  # bytes of a text file beside an image

_MODEL = {"config.json", "model.safetensors", "vocab.json", "preprocessor_config.json"}
_ROW = b'{"file_name": '
_COCO_LINE = re.compile(rb'(\[|\]|\[\]|\{"image_id": .+\},?)\n')

# What captioner writes into the folders that it marks, by the folder's kind.
_IN_MARKED = {
    "run": re.compile(r"config\.yaml|train\.log|metrics\.jsonl|curves\.png"),
    "checkpoints": re.compile(r"(step-(0|[1-9][0-9]*)|best)\.safetensors"),
    "tensorboard": re.compile(r"events\.out\.tfevents\..+"),
    "store": re.compile(r"rows\.\w+|about\.json|(fill|append)\.lock"),
}


def owns(place: Path, kind: str) -> bool:
    """Say whether what stands in a place is captioner's.

    Args:
        place: a file or a folder; a link is what it leads to.
        kind: of `FILES` or `FOLDERS`.
    """
    if place.is_dir():
        return kind in FOLDERS and FOLDERS[kind](place)
    return kind in FILES and place.is_file() and FILES[kind](place)


def writes(kind: str, name: str) -> bool:
    """Say whether captioner writes a file of this name into marked folders of a kind."""
    return bool(_IN_MARKED[kind].fullmatch(name))


def check(place: Path, kind: str, error: type[CaptionerError] = ConfigError) -> None:
    """Refuse to write to a place where something stands that is not captioner's.

    Args:
        place: to write to; what is absent, an empty file or an empty folder is nobody's. A device
            or a pipe may be written to, where its name was typed.
        kind: of `FILES` or `FOLDERS`.
        error: to raise.

    Raises:
        CaptionerError: if it may not be written.
    """
    if kind in FILES:
        empty = kind != "failures" and place.is_file() and not place.stat().st_size
        free = not place.exists() or empty
        allowed = free or (kind not in _REGULAR and not place.is_dir() and not place.is_file())
    else:
        allowed = not os.path.lexists(place) or (place.is_dir() and is_empty(place))
    if not allowed and not owns(place, kind):
        raise _refusal(place, kind, error)


def check_files(folder: Path, kind: str, error: type[CaptionerError] = ConfigError) -> None:
    """Refuse to write files into a folder, which may be somebody's, where one is not captioner's.

    Args:
        folder: to write into.
        kind: of what is written there: "evaluation", "gradients".
        error: to raise.

    Raises:
        CaptionerError: if one may not be written.
    """
    if folder.exists() and not folder.is_dir():
        raise error(f"{folder}: not a folder; name another place")
    for name, inner in _CONTENT[kind].items():
        place = folder / name
        if place.exists() and not owns(place, inner):  # empty or not: nobody typed its name
            raise _refusal(place, inner, error)


def _refusal(place: Path, kind: str, error: type[CaptionerError]) -> CaptionerError:
    return error(
        f"{place}: {_what_stands(place, kind)}; nothing was changed: name another place, or move "
        f"away what is there"
    )


def _what_stands(place: Path, kind: str) -> str:
    if kind == "model" and place.is_dir():
        foreign = sorted(path.name for path in place.iterdir() if path.name not in _MODEL)
        holds = f", it holds {plain(foreign[0])}" if foreign else ""
        return f"a folder that is not just a model directory of captioner's{holds}"
    if place.is_dir():
        if kind in FILES:
            return "a folder, where a file would be written"
        return f"a folder that captioner did not mark as its {_CALLED.get(kind, kind)}"
    return f"exists, and is no {_CALLED.get(kind, kind)} that captioner wrote"


def begin(folder: Path, kind: str, error: type[CaptionerError] = ConfigError) -> None:
    """Make a folder and mark it, where it is absent or empty; refuse one that is another's.

    Raises:
        CaptionerError: if it may not be written.
    """
    check(folder, kind, error)
    if not owns(folder, kind):
        folder.mkdir(parents=True, exist_ok=True)
        mark(folder, kind)


def mark(folder: Path, kind: str) -> None:
    """Write the marker by which `owns` knows a folder."""
    with (folder / MARKER).open("w", encoding="utf-8") as file:
        file.write(json.dumps({"kind": kind, "captioner_version": __version__}) + "\n")
        if kind != "part":  # that of a folder aside is of use to the next process only
            file.flush()
            os.fsync(file.fileno())


def is_empty(folder: Path) -> bool:
    """Say whether nothing is in a folder, or only the marker that a killed process began."""
    held = list(folder.iterdir())
    return not held or (
        [path.name for path in held] == [MARKER]
        and held[0].is_file()
        and not held[0].stat().st_size
    )


def clear(folder: Path, kind: str) -> None:
    """Delete what captioner wrote into a folder, and into the folders of its own in there.

    Args:
        folder: keeps its marker; one that is not captioner's is left as it is.
        kind: of `FOLDERS`.
    """
    if not owns(folder, kind):
        return
    _delete_files(folder, kind)
    for name, inner in _INNER.get(kind, {}).items():
        within = folder / name
        if within.is_dir() and (_delete_files(within, inner) or owns(within, inner)):
            left = [path.name for path in within.iterdir()]
            if left == [MARKER] and owns(within, inner):
                (within / MARKER).unlink()
            _remove_if_empty(within)  # else it goes on to be captioner's, with what is left in it


def remove(folder: Path, kind: str) -> None:
    """Delete what captioner wrote into a folder, its marker too, and the folder if that is all.

    Args:
        folder: one that is not captioner's is left as it is.
        kind: of a folder with a marker.
    """
    if owns(folder, kind):
        _delete_files(folder, kind)
        (folder / MARKER).unlink()
        _remove_if_empty(folder)


def _remove_if_empty(folder: Path) -> None:
    if not folder.is_symlink():
        with suppress(OSError):  # something of somebody else's is in it
            folder.rmdir()


def _delete_files(folder: Path, kind: str) -> bool:
    """Delete captioner's files in one folder, and say whether there were any."""
    if kind in FOLDERS and not owns(folder, kind):
        return False
    kinds = _CONTENT.get(kind, {})
    ours = [
        path
        for path in folder.iterdir()
        if not path.is_symlink() and owns(path, kinds.get(path.name, f"in {kind}"))
    ]
    for path in ours:
        path.unlink()
    return bool(ours)


def _marked(folder: Path, kind: str) -> bool:
    content = _json(folder / MARKER)
    return (
        isinstance(content, dict)
        and content.get("kind") == kind
        and isinstance(content.get("captioner_version"), str)
    )


def _in_marked(kind: str) -> Callable[[Path], bool]:
    return lambda path: writes(kind, path.name) and _marked(path.parent, kind)


def _is_model(folder: Path) -> bool:
    """Tell by all of its content: versions before 0.2 had no markers, and strangers need none."""
    if {path.name for path in folder.iterdir()} != _MODEL:
        return False
    config = _json(folder / "config.json")
    return (
        all((folder / name).is_file() for name in _MODEL)
        and isinstance(config, dict)
        and isinstance(config.get("captioner_version"), str)
        and {"format_version", "encoder", "decoder", "decoding"} <= config.keys()
        and _is_vocabulary(folder / "vocab.json")
    )


def _in_model(path: Path) -> bool:
    return path.name in _MODEL and _is_model(path.parent)


def _is_vocabulary(path: Path) -> bool:
    content = _json(path)
    return isinstance(content, dict) and content.keys() == {"min_count", "specials", "words"}


def _is_captions(path: Path) -> bool:
    """Tell by every row, or, where rows are anybody's (text, COCO), by the journal beside too."""
    with path.open("rb") as file:
        start = file.read(64)
        file.seek(0)
        if start.startswith(b"PAR1"):
            file.seek(-min(path.stat().st_size, 2**16), os.SEEK_END)
            return b"captioner_version" in file.read()
        if start.startswith(_ROW):
            return _is_rows(path, list(COLUMNS))
        if start.startswith(",".join(COLUMNS).encode()):
            return _is_table(path)
        if not _is_journal(path.with_name(f"{path.name}{JOURNAL_SUFFIX}")):
            return False
        if start.startswith(b"["):
            return all(map(_COCO_LINE.fullmatch, file))
        return all(b"\t" in line and b"\0" not in line for line in file)


def _is_rows(path: Path, keys: list[str]) -> bool:
    """Whether each line is an object of these keys first; all of the first, the start of others."""
    with path.open("rb") as file:
        first = file.readline(MAX_BYTES)
        try:
            row = json.loads(first)
        except (ValueError, RecursionError):
            return False
        if not isinstance(row, dict) or list(row)[: len(keys)] != keys:
            return False
        return all(line.startswith(_ROW) and line.endswith(b"}\n") for line in file)


def _is_table(path: Path) -> bool:
    with path.open(encoding="utf-8", newline="") as file:
        try:
            rows = csv.reader(file)
            return next(rows) == list(COLUMNS) and all(
                len(row) == len(COLUMNS) and row[-1] in ("ok", "error") for row in rows
            )
        except (ValueError, csv.Error):
            return False


def _is_predictions(path: Path) -> bool:
    return _is_rows(path, [*COLUMNS, "references", "scores", "n_best"])


def _is_journal(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        header = file.read(100)
    # A flipped bit or two leave it captioner's; what else is in it has checksums.
    same = sum(a == b for a, b in zip(header, SQLITE, strict=False))
    if header[68:72] == JOURNAL_ID.to_bytes(4, "big") and same >= len(SQLITE) - 2:
        return True
    if same < len(SQLITE):
        return False
    # Of a version that set no id. Immutable: nothing beside a stranger's data base is touched.
    uri = f"file:{quote(os.fsencode(path.absolute()))}?mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(uri, uri=True)) as db:
            tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
    except sqlite3.Error:
        return False
    return {"job", "records", "listing"} <= tables


def _is_failures(path: Path) -> bool:
    with path.open("rb") as file:
        lines = [_is_failure(line) for line in file]
    return bool(lines) and all(lines)  # an empty list is deleted, so an empty file is another's


def _is_failure(line: bytes) -> bool:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return (
        isinstance(row, dict)
        and list(row) == ["output", "path", "kind", "message"]
        and line.endswith(b"\n")
    )


def _is_sidecar(path: Path) -> bool:
    """One line of text: a caption, though perhaps not captioner's."""
    with path.open("rb") as file:
        content = file.read(MAX_SIDECAR + 1)
    try:
        text = content.decode()
    except ValueError:
        return False
    return len(content) <= MAX_SIDECAR and "\0" not in text and "\n" not in text.removesuffix("\n")


def _is_scores(path: Path) -> bool:
    content = _json(path)
    return isinstance(content, dict) and bool(content) and all(map(_is_score, content.values()))


def _is_score(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and {"value", "signature"} <= value.keys()
        and isinstance(value["signature"], str)
        and "|" in value["signature"]
    )


def _is_object_of(*keys: str) -> Callable[[Path], bool]:
    def told(path: Path) -> bool:
        content = _json(path)
        return isinstance(content, dict) and set(keys) <= content.keys()

    return told


def _starts_with(*each: bytes) -> Callable[[Path], bool]:
    """Look for what our own writers put near the beginning of a file."""

    def told(path: Path) -> bool:
        with path.open("rb") as file:
            start = file.read(4096)
        return any(what in start for what in each)

    return told


def _is_scenes(folder: Path) -> bool:
    index = folder / "captions.jsonl"
    if not index.is_file():
        return False
    with index.open("rb") as file:
        try:
            row = json.loads(file.readline(MAX_BYTES))
        except (ValueError, RecursionError):
            return False
    return isinstance(row, dict) and list(row) == ["file_name", "split", "captions", "scene"]


def _json(path: Path) -> Any:
    """Return what a JSON file holds; None where it is none that captioner would have written."""
    try:
        if path.is_file() and path.stat().st_size <= MAX_BYTES:
            return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        pass
    return None


FILES: Mapping[str, Callable[[Path], bool]] = {
    **{f"in {kind}": _in_marked(kind) for kind in _IN_MARKED},
    "in model": _in_model,
    "captions": _is_captions,
    "journal": _is_journal,
    "failures": _is_failures,
    "sidecar": _is_sidecar,
    "predictions": _is_predictions,
    "scores": _is_scores,
    "comparison": _is_object_of("systems", "matched_by", "ranked_by", "improved", "worsened"),
    # Version 0.1 named no generator.
    "report": _starts_with(
        b'<meta name="generator" content="captioner">', "· captioner</title>".encode()
    ),
    "study": _is_object_of("captions", "shortest", "longest", "clip_norm", "seed", "cells"),
    "figure": _starts_with(b"tEXtSoftware\0captioner"),
    "vocabulary": _is_vocabulary,
}
FOLDERS: Mapping[str, Callable[[Path], bool]] = {
    **{kind: lambda folder, kind=kind: _marked(folder, kind) for kind in _IN_MARKED},  # type: ignore[misc]
    "part": lambda folder: _marked(folder, "part"),
    "model": _is_model,
    "scenes": _is_scenes,
}
_REGULAR = ("failures", "journal", "sidecar")  # never a pipe or a device: nobody typed their names
# Folders within a folder, and the files of folders that have no marker.
_INNER = {
    "run": {
        "checkpoints": "checkpoints",
        "tensorboard": "tensorboard",
        "model": "model",
        "evaluation": "evaluation",
        "gradients": "gradients",
    }
}
_CONTENT = {
    "evaluation": {
        "predictions.jsonl": "predictions",
        "scores.json": "scores",
        "report.html": "report",
    },
    "gradients": {"gradients.png": "figure", "gradients.json": "study"},
}
_CALLED = {
    "run": "run folder",
    "store": "store of features",
    "captions": "file of captions",
    "failures": "list of failures",
    "sidecar": "caption beside an image",
    "scores": "file of scores",
    "predictions": "file of predictions",
    "in run": "part of a run",
    "in checkpoints": "checkpoint",
    "in store": "store of features",
}
