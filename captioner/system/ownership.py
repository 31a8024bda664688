"""Ownership of files and folders: captioner replaces or deletes only what it wrote.

A name proves nothing: any project may have a `config.yaml`. Folders that captioner fills contain a
marker file. Model directories, and files at paths that the user chose, are recognised by their
content. The tables `FILES` and `FOLDERS` list every kind; `owns` looks them up, and `check`,
`begin` and `clear` call `owns`. Unlisted files, and files more than one folder deep, are never
touched.
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
MAX_BYTES = 2**26  # of a file that is read completely to be recognised
MAX_SIDECAR = 4096  # bytes of a text file next to an image

_MODEL = {"config.json", "model.safetensors", "vocab.json", "preprocessor_config.json"}
_ROW = b'{"file_name": '
_COCO_LINE = re.compile(rb'(\[|\]|\[\]|\{"image_id": .+\},?)\n')

# Names of the files that captioner writes into marked folders, by the folder's kind.
_IN_MARKED = {
    "run": re.compile(r"config\.yaml|train\.log|metrics\.jsonl|curves\.png"),
    "checkpoints": re.compile(r"(step-(0|[1-9][0-9]*)|best)\.safetensors"),
    "tensorboard": re.compile(r"events\.out\.tfevents\..+"),
    "store": re.compile(r"rows\.\w+|about\.json|(fill|append)\.lock"),
}


def owns(place: Path, kind: str) -> bool:
    """Whether captioner wrote a file or a folder.

    Args:
        place: a file or a folder; links are followed.
        kind: a key of `FILES` or `FOLDERS`.
    """
    if place.is_dir():
        return kind in FOLDERS and FOLDERS[kind](place)
    return kind in FILES and place.is_file() and FILES[kind](place)


def writes(kind: str, name: str) -> bool:
    """Whether captioner writes a file of this name into marked folders of this kind."""
    return bool(_IN_MARKED[kind].fullmatch(name))


def check(place: Path, kind: str, error: type[CaptionerError] = ConfigError) -> None:
    """Refuse to replace a foreign file or folder.

    Args:
        place: path to write to; an empty file or folder may be replaced. A device or a pipe may be
            written if the user typed its name.
        kind: a key of `FILES` or `FOLDERS`.
        error: class of the exception.

    Raises:
        CaptionerError: if the path may not be written.
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
    """Refuse to replace foreign files in a folder; the folder itself may be foreign.

    Args:
        folder: folder to write into.
        kind: kind of the files: "evaluation" or "gradients".
        error: class of the exception.

    Raises:
        CaptionerError: if a file may not be written.
    """
    if folder.exists() and not folder.is_dir():
        raise error(f"{folder}: not a folder; choose another path")
    for name, inner in _CONTENT[kind].items():
        place = folder / name
        if place.exists() and not owns(
            place, inner
        ):  # even an empty file, as the user did not type its name
            raise _refusal(place, inner, error)


def _refusal(place: Path, kind: str, error: type[CaptionerError]) -> CaptionerError:
    return error(
        f"{place}: {_reason(place, kind)}; nothing was changed; choose another path, or move the "
        f"existing one away"
    )


def _reason(place: Path, kind: str) -> str:
    name = _NAMES.get(kind, kind)
    if kind == "model" and place.is_dir():
        foreign = sorted(path.name for path in place.iterdir() if path.name not in _MODEL)
        contents = f": it contains {plain(foreign[0])}" if foreign else ""
        return f"not a model directory that captioner wrote{contents}"
    if place.is_dir():
        return "a folder, not a file" if kind in FILES else f"not marked as captioner's {name}"
    return f"already exists and is not a {name} that captioner wrote"


def begin(folder: Path, kind: str, error: type[CaptionerError] = ConfigError) -> None:
    """Create and mark a folder that is missing or empty; refuse a foreign one.

    Raises:
        CaptionerError: if the folder may not be written.
    """
    check(folder, kind, error)
    if not owns(folder, kind):
        folder.mkdir(parents=True, exist_ok=True)
        mark(folder, kind)


def mark(folder: Path, kind: str) -> None:
    """Write the marker file that `owns` looks for."""
    with (folder / MARKER).open("w", encoding="utf-8") as file:
        file.write(json.dumps({"kind": kind, "captioner_version": __version__}) + "\n")
        if kind != "part":  # the marker of a temporary folder need not survive a power failure
            file.flush()
            os.fsync(file.fileno())


def is_empty(folder: Path) -> bool:
    """Whether a folder is empty, or contains only an empty marker left by a killed process."""
    content = list(folder.iterdir())
    return not content or (
        [path.name for path in content] == [MARKER]
        and content[0].is_file()
        and not content[0].stat().st_size
    )


def clear(folder: Path, kind: str) -> None:
    """Delete captioner's files in a folder and in captioner's folders inside it.

    Args:
        folder: keeps its marker; a foreign folder is not changed.
        kind: a key of `FOLDERS`.
    """
    if not owns(folder, kind):
        return
    _delete_files(folder, kind)
    for name, inner in _INNER.get(kind, {}).items():
        within = folder / name
        if within.is_dir() and (_delete_files(within, inner) or owns(within, inner)):
            remaining = [path.name for path in within.iterdir()]
            if remaining == [MARKER] and owns(within, inner):
                (within / MARKER).unlink()
            _remove_if_empty(within)  # with foreign files, it stays and keeps its marker


def remove(folder: Path, kind: str) -> None:
    """Delete captioner's files and marker in a folder, and the folder if it is then empty.

    Args:
        folder: a foreign folder is not changed.
        kind: kind of a folder with a marker.
    """
    if owns(folder, kind):
        _delete_files(folder, kind)
        (folder / MARKER).unlink()
        _remove_if_empty(folder)


def _remove_if_empty(folder: Path) -> None:
    if not folder.is_symlink():
        with suppress(OSError):  # it contains foreign files
            folder.rmdir()


def _delete_files(folder: Path, kind: str) -> bool:
    """Delete captioner's files in one folder; return whether there were any."""
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
    """Recognise a model directory by its content, because it has no marker."""
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
    """Recognise captions by every row; text and COCO files also need their journal."""
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
    """Whether each line begins like captioner's row; the first line must have all the keys."""
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
    # One or two flipped bytes are tolerated; the rows have checksums.
    same = sum(a == b for a, b in zip(header, SQLITE, strict=False))
    if header[68:72] == JOURNAL_ID.to_bytes(4, "big") and same >= len(SQLITE) - 2:
        return True
    if same < len(SQLITE):
        return False
    # Older versions set no id. `immutable` leaves the files next to a foreign database alone.
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
    return bool(lines) and all(
        lines
    )  # captioner deletes an empty list, so an empty file is foreign


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
    """Whether a file is one line of text: a caption, though perhaps a foreign one."""
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
    def has_keys(path: Path) -> bool:
        content = _json(path)
        return isinstance(content, dict) and set(keys) <= content.keys()

    return has_keys


def _starts_with(*signatures: bytes) -> Callable[[Path], bool]:
    """Look for a signature of captioner's writers near the beginning of a file."""

    def has_signature(path: Path) -> bool:
        with path.open("rb") as file:
            start = file.read(4096)
        return any(signature in start for signature in signatures)

    return has_signature


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
    """Return the content of a JSON file; None if it is too large or not JSON."""
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
    # Version 0.1 wrote no generator.
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
_REGULAR = (
    "failures",
    "journal",
    "sidecar",
)  # never a pipe or a device, as the user did not type the name
# Folders inside a folder, and the files of folders without a marker.
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
_NAMES = {
    "run": "run folder",
    "store": "feature store",
    "captions": "captions file",
    "failures": "list of failures",
    "sidecar": "caption file",
    "scores": "scores file",
    "predictions": "predictions file",
    "in run": "run file",
    "in checkpoints": "checkpoint",
    "in store": "feature store file",
}
