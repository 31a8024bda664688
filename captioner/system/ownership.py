"""Ownership of files and folders: captioner replaces or deletes only what it wrote.

A name proves nothing: any project may have a `config.yaml`. Folders that captioner fills contain a
marker file. Model directories, and files at paths that the user chose, are recognised by their
content. The tables `FILES` and `FOLDERS` list every kind. Unlisted files, and files more than one
folder deep, are never touched.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from captioner.errors import CaptionerError, ConfigError
from captioner.system.disk import writing
from captioner.system.escapes import COLUMNS
from captioner.system.foreign import plain
from captioner.system.plugins import PlugIn, load, plugins
from captioner.system.version import __version__

MARKER = ".captioner.json"
JOURNAL_SUFFIX = ".journal"
JOURNAL_ID = 0x43617074  # application_id in the header of a journal, "Capt"
SQLITE = b"SQLite format 3\0"
MAX_BYTES = 2**26  # of a file or a line that is read completely to be recognised

MODEL_FILES = ("config.json", "model.safetensors", "vocab.json", "preprocessor_config.json")
CARD = "README.md"  # the model card, beside the files of a model; models of 0.1 have none
MAX_CARD = 2**20  # bytes
CARD_START = "---\nlibrary_name: captioner\n"  # of the metadata that Hugging Face reads
_MODEL = {*MODEL_FILES, CARD}
PROGRAMS = re.compile(  # exported
    r"(encoder|start|step)\.(onnx|pt2)|captioner\.json|README\.md|caption\.py"
)
_PICTURE = re.compile(r"[0-9]{6,}\.\w{1,5}")  # of an exported data set
_COCO_LINE = re.compile(rb'(\[|\]|\[\]|\{"image_id": .+\},?)\n')

# Names of the files that captioner writes into marked folders, by the folder's kind.
_IN_MARKED = {
    "run": re.compile(r"config\.yaml|train\.log|metrics\.jsonl|curves\.png"),
    "checkpoints": re.compile(r"(step-(0|[1-9][0-9]*)|best)\.safetensors"),
    "tensorboard": re.compile(r"events\.out\.tfevents\..+"),
    "parts": re.compile(r"part-[0-9]{5,}\.(jsonl|parquet|json)|parts\.json"),  # of captions
    "streams": re.compile(r".+\.tar|run\.lock"),
    "store": re.compile(r"rows\.\w+|about\.json|(fill|append)\.lock"),
}
# Files, by name, of folders that may be foreign; a run has its folders of these kinds.
_CONTENT = {
    "evaluation": {
        "predictions.jsonl": "predictions",
        "scores.json": "scores",
        "report.html": "report",
    },
    "gradients": {"gradients.png": "figure", "gradients.json": "study"},
}
_IN_RUN = ("checkpoints", "tensorboard", "model", "evaluation", "gradients")
# Never a pipe or a device, as the user did not type the name.
_REGULAR = ("failures", "journal", "sidecar")
_NAMES = {
    "failures": "list of failures",
    "journal": "journal",
    "sidecar": "caption file",
    "export": "data set",
    "programs": "exported model",
    "page": "page of a data set",
}


def owns(place: Path, kind: str) -> bool:
    """Whether captioner wrote a file or a folder; links are followed."""
    if place.is_dir():
        return kind in FOLDERS and FOLDERS[kind](place)
    return kind in FILES and place.is_file() and FILES[kind](place)


def _is_quoted(file: Path, text: Path) -> bool:
    """Whether a file is absent, or stands unchanged in a text."""
    if not file.exists():
        return True
    try:
        return file.stat().st_size < MAX_CARD and file.read_bytes() in text.read_bytes()
    except OSError:
        return False


def writes(kind: str, name: str) -> bool:
    """Whether captioner writes a file of this name into marked folders of this kind."""
    return bool(_IN_MARKED[kind].fullmatch(name))


def check(place: Path, kind: str, error: type[CaptionerError] = ConfigError) -> None:
    """Refuse to replace a foreign file or folder.

    An empty file or folder may be replaced. A device or a pipe may be written if the user typed its
    name.

    Raises:
        CaptionerError: if the path may not be written.
    """
    if kind in FOLDERS:
        allowed = not os.path.lexists(place) or (place.is_dir() and is_empty(place))
    elif place.is_file():
        allowed = kind != "failures" and not place.stat().st_size
    else:
        allowed = not place.exists() or (kind not in _REGULAR and not place.is_dir())
    if not allowed and not owns(place, kind):
        raise _refusal(place, kind, error)


def check_files(folder: Path, kind: str, error: type[CaptionerError] = ConfigError) -> None:
    """Refuse to replace foreign files of an evaluation or of gradients; the folder may be foreign.

    Raises:
        CaptionerError: if a file may not be written.
    """
    if folder.exists() and not folder.is_dir():
        raise error(f"{folder}: not a folder; choose another path")
    for name, inner in _CONTENT[kind].items():
        place = folder / name
        # The user did not type the name, so even an empty file is foreign.
        if place.exists() and not owns(place, inner):
            raise _refusal(place, inner, error)


def _refusal(place: Path, kind: str, error: type[CaptionerError]) -> CaptionerError:
    name = _NAMES.get(kind, f"{kind.removeprefix('in ')} file")
    reason = f"already exists and is not a {name} that captioner wrote"
    if place.is_dir() and kind in FILES:
        reason = "a folder, not a file"
    elif place.is_dir() and kind == "model":
        reason = "not a model directory that captioner wrote"
        if foreign := sorted(path.name for path in place.iterdir() if path.name not in _MODEL):
            reason += f": it contains {plain(foreign[0])}"
        elif (place / CARD).is_file() and not owns(place / CARD, "card"):
            reason += f": its {CARD} is not a model card of captioner"
    elif place.is_dir() and kind == "programs":
        reason = f"a folder that holds other files than an {name} of captioner"
        names = sorted(path.name for path in place.iterdir())
        if foreign := [name for name in names if not PROGRAMS.fullmatch(name)]:
            reason += f": {plain(foreign[0])}"
        elif not _is_quoted(place / "caption.py", place / "README.md"):
            reason += ": caption.py was changed"
    elif place.is_dir():
        reason = f"not marked as captioner's {kind} folder by the hidden file {MARKER}"
    return error(
        f"{place}: {reason}; nothing was changed; choose another path, or move the existing one "
        f"away"
    )


def check_writable(folder: Path) -> None:
    """Refuse a folder that could not be created or written to; creates nothing.

    Raises:
        ConfigError: if a file is in the way, or a permission is missing.
    """
    place = folder
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise ConfigError(f"{place}: not a folder; choose another path")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ConfigError(f"{place}: no permission to write; choose another path")


def begin(folder: Path, kind: str, error: type[CaptionerError] = ConfigError) -> None:
    """Create and mark a folder that is missing or empty; refuse a foreign one as `check` does."""
    check(folder, kind, error)
    if not owns(folder, kind):
        folder.mkdir(parents=True, exist_ok=True)
        mark(folder, kind)


def mark(folder: Path, kind: str) -> None:
    """Write the marker file that `owns` looks for."""
    path = folder / MARKER
    with writing(path), path.open("w", encoding="utf-8") as file:
        file.write(json.dumps({"kind": kind, "captioner_version": __version__}) + "\n")
        if kind != "part":  # the marker of a temporary folder need not survive a power failure
            file.flush()
            os.fsync(file.fileno())


def is_empty(folder: Path) -> bool:
    """Whether a folder is empty, or contains only an empty marker left by a killed process."""
    return all(
        path.name == MARKER and path.is_file() and not path.stat().st_size
        for path in folder.iterdir()
    )


def clear(run: Path) -> None:
    """Delete captioner's files in its run folder, which stays marked, and in folders inside it."""
    if not owns(run, "run"):
        return
    _delete_files(run, "run")
    for kind in _IN_RUN:
        folder = run / kind
        if kind in _IN_MARKED:
            remove(folder, kind, keep_marked=True)
        elif folder.is_dir() and _delete_files(folder, kind):
            _remove_if_empty(folder)


def remove(folder: Path, kind: str, *, keep_marked: bool = False) -> None:
    """Delete captioner's files and marker in its folder, and the folder if it is then empty.

    With `keep_marked`, the marker stays if foreign files remain.
    """
    if owns(folder, kind):
        _delete_files(folder, kind)
        if not keep_marked or [path.name for path in folder.iterdir()] == [MARKER]:
            (folder / MARKER).unlink()
        _remove_if_empty(folder)


def _remove_if_empty(folder: Path) -> None:
    if not folder.is_symlink():
        with suppress(OSError):  # it contains foreign files
            folder.rmdir()


def _delete_files(folder: Path, kind: str) -> bool:
    """Delete captioner's files in one folder; return whether there were any."""
    kinds = _CONTENT.get(kind, {})
    ours = [
        path
        for path in folder.iterdir()
        if not path.is_symlink() and owns(path, kinds.get(path.name, f"in {kind}"))
    ]
    for path in ours:
        path.unlink()
    return bool(ours)


def _is_marked(kind: str, folder: Path) -> bool:
    content = _json(folder / MARKER)
    return content.get("kind") == kind and isinstance(content.get("captioner_version"), str)


def _is_in_marked(kind: str, path: Path) -> bool:
    return writes(kind, path.name) and _is_marked(kind, path.parent)


def _is_model(folder: Path) -> bool:
    """Recognise a model directory by its content, because it has no marker."""
    return (
        {path.name for path in folder.iterdir()} | {CARD} == _MODEL
        and all(path.is_file() for path in folder.iterdir())
        and (owns(folder / CARD, "card") or not os.path.lexists(folder / CARD))
        and isinstance(_json(folder / "config.json").get("captioner_version"), str)
        and _has_keys({"format_version", "encoder", "decoder", "decoding"}, folder / "config.json")
        and owns(folder / "vocab.json", "vocabulary")
    )


def _is_captions(path: Path) -> bool:
    """Recognise captions by every row; text and COCO files also need their journal."""
    with path.open("rb") as file:
        start = file.read(64)
        if start.startswith(b"PAR1"):
            file.seek(-min(path.stat().st_size, 2**16), os.SEEK_END)
            return b"captioner_version" in file.read()
        if start.startswith(b'{"file_name": '):
            return _has_rows(COLUMNS, path)
        if start.startswith(",".join(COLUMNS).encode()):
            return _is_table(path)
        if not owns(path.with_name(path.name + JOURNAL_SUFFIX), "journal"):
            return False
        file.seek(0)
        if start.startswith(b"["):
            known = all(map(_COCO_LINE.fullmatch, file))
        else:
            known = all(b"\t" in line and b"\0" not in line for line in file)
    return known or any(_has_lines(each, path) for each in plugins("writers"))


def _has_lines(writer: PlugIn, path: Path) -> bool:
    """Recognise the captions of a plug-in's writer, by the lines that it says it writes."""
    with suppress(CaptionerError):  # a broken plug-in
        pattern = getattr(load("writers", writer.name), "line", None)
        if isinstance(pattern, re.Pattern) and isinstance(pattern.pattern, bytes):
            with path.open("rb") as file:
                return all(map(pattern.fullmatch, file))
    return False


def _is_table(path: Path) -> bool:
    with path.open(encoding="utf-8", newline="") as file:
        try:
            rows = csv.reader(file)
            return next(rows) == list(COLUMNS) and all(
                len(row) == len(COLUMNS) and row[-1] in ("ok", "blank", "error") for row in rows
            )
        except (ValueError, csv.Error):
            return False


def _is_journal(path: Path) -> bool:
    with path.open("rb") as file:
        header = file.read(100)
    return header.startswith(SQLITE) and header[68:72] == JOURNAL_ID.to_bytes(4, "big")


def _is_sidecar(path: Path) -> bool:
    """Whether a file next to an image is a text; a journal says whether it is captioner's."""
    return path.stat().st_size <= MAX_BYTES and b"\0" not in path.read_bytes()


def _is_scores(path: Path) -> bool:
    others = ("word_use", "calibration")
    scores = [score for name, score in _json(path).items() if name not in others]
    return bool(scores) and all(
        isinstance(score, dict) and "value" in score and "|" in str(score.get("signature"))
        for score in scores
    )


def _has_rows(keys: tuple[str, ...], path: Path) -> bool:
    """Recognise JSON Lines: the first row has these first keys, each begins with the first key."""
    start = f'{{"{keys[0]}": '.encode()
    with path.open("rb") as file:
        first = _parsed(file.readline(MAX_BYTES))
        file.seek(0)
        return tuple(first)[: len(keys)] == keys and all(
            line.startswith(start) and line.endswith(b"}\n") for line in file
        )


def _has_keys(keys: set[str], path: Path) -> bool:
    return keys <= _json(path).keys()


def _has_signature(signature: bytes, path: Path) -> bool:
    """Look for the signature of a writer near the beginning of a file."""
    with path.open("rb") as file:
        return signature in file.read(4096)


def _json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one if there is none or the file is too large."""
    with suppress(OSError):
        if path.is_file() and path.stat().st_size <= MAX_BYTES:
            return _parsed(path.read_bytes())
    return {}


def _parsed(content: bytes) -> dict[str, Any]:
    with suppress(ValueError, RecursionError):
        value = json.loads(content)
        if isinstance(value, dict):
            return value
    return {}


FILES: Mapping[str, Callable[[Path], bool]] = {
    **{f"in {kind}": partial(_is_in_marked, kind) for kind in _IN_MARKED},
    "in model": lambda path: path.name in _MODEL and _is_model(path.parent),
    "captions": _is_captions,
    "journal": _is_journal,
    # captioner deletes an empty list, so an empty file is foreign.
    "failures": partial(_has_rows, ("output", "path", "kind", "message")),
    "sidecar": _is_sidecar,
    "predictions": partial(_has_rows, (*COLUMNS, "references", "scores", "n_best")),
    "scores": _is_scores,
    "comparison": lambda path: (
        _has_keys({"systems", "matched_by", "ranked_by", "improved", "worsened"}, path)
        or _has_keys({"systems", "matched_by", "pairs", "correction"}, path)
    ),
    "summary": partial(_has_keys, {"metric", "runs", "mean", "std"}),
    "report": lambda path: (
        _has_signature(b'<meta name="generator" content="captioner">', path)
        or _has_signature("· captioner</title>".encode(), path)  # of version 0.1
    ),
    "study": partial(_has_keys, {"captions", "shortest", "longest", "clip_norm", "seed", "cells"}),
    "export": partial(_has_rows, ("file_name", "image_id", "split", "captions")),
    "page": partial(_has_signature, b'<meta name="generator" content="captioner data">'),
    "explanation": lambda path: (
        _has_signature(b"tEXtTitle\0captioner explanation", path)
        or _has_signature(b'<meta name="generator" content="captioner explain">', path)
    ),
    "map": partial(_has_signature, b"tEXtTitle\0captioner attention"),
    "figure": partial(_has_signature, b"tEXtSoftware\0captioner"),
    "vocabulary": partial(_has_keys, {"min_count", "specials", "words"}),
    "card": partial(_has_signature, CARD_START.splitlines()[1].encode()),
}
FOLDERS: Mapping[str, Callable[[Path], bool]] = {
    **{kind: partial(_is_marked, kind) for kind in (*_IN_MARKED, "part")},
    "model": _is_model,
    "programs": lambda folder: (
        all(PROGRAMS.fullmatch(path.name) for path in folder.iterdir())
        and _has_keys({"captioner_version", "programs", "words"}, folder / "captioner.json")
        and _is_quoted(folder / "caption.py", folder / "README.md")
    ),
    "pictures": lambda folder: (
        _is_marked("pictures", folder)
        and all(path.name == MARKER or _PICTURE.fullmatch(path.name) for path in folder.iterdir())
    ),
    "scenes": lambda folder: (
        (folder / "captions.jsonl").is_file()
        and _has_rows(("file_name", "split", "captions", "scene"), folder / "captions.jsonl")
    ),
}
