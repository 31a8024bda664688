"""Runs the commands of `pipe:COMMAND` once and keeps the tar streams that they write as shards.

Training reads an image more than once, a stream only once. The shards stay in the cache, in a
folder named by the commands and the current folder. A run's configuration names this folder and
starts no command.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import tarfile
from collections import Counter, deque
from collections.abc import Callable
from itertools import product
from math import prod
from pathlib import Path

from filelock import FileLock

from captioner.data.formats.webdataset import MOST_SHARDS, expand
from captioner.errors import DataError
from captioner.images.tars import compression, headers, open_tar
from captioner.system.addresses import COMMAND
from captioner.system.files import cache_folder, whole_file
from captioner.system.foreign import excerpt, plain
from captioner.system.ownership import begin

LOCK = "run.lock"
_SHARD = re.compile(r"[\w.-]+\.tar\b")


def is_stream(root: str | Path) -> bool:
    """Return whether a `data.root` is a command that writes a tar stream."""
    return str(root).startswith(COMMAND)


def keep(source: str, say: Callable[[str], None]) -> Path:
    """Return the folder with the shards of `pipe:COMMAND`; run the commands whose shard is missing.

    Only for a source that the user typed. A shard has the name of the last file in its command
    that ends with `.tar`, or else its number. It is kept once its command ends without an error.

    Args:
        source: `pipe:` and a shell command that writes a tar stream. In its words with `.tar`,
            braces stand for several commands, as in `{0..9}` or `{train,dev}`.
        say: gets a line about the commands to run, or the shards of an earlier time.

    Raises:
        DataError: if a command fails, or writes no tar stream, a truncated or a compressed one.
        OSError: if the folder cannot be written to.
    """
    shards = _shards(source.removeprefix(COMMAND))
    place = f"{Path.cwd()}\0{source}".encode("utf-8", "surrogateescape")  # relative paths in it
    digest = hashlib.blake2b(place, digest_size=8).hexdigest()
    folder = cache_folder() / "streams" / digest
    begin(folder, "streams", DataError)
    with FileLock(folder / LOCK):
        missing = [name for name in shards if not (folder / name).is_file()]
        there = len(shards) - len(missing)
        if there:
            say(
                f"note: pipe: {there:,} of {len(shards):,} shards are in {folder}; to read them "
                f"anew, delete that folder"
            )
        if missing:
            say(f"note: pipe: runs {len(missing):,} command(s) and keeps the shards in {folder}")
        for name in missing:
            _run(shards[name], folder / name)
    return folder


def _shards(command: str) -> dict[str, str]:
    """Return the command of each shard by the name of its file, in order."""
    words = [
        expand(word) if ".tar" in word else [word] for word in re.split(r"(\s+)", command.strip())
    ]
    if prod(map(len, words)) > MOST_SHARDS:
        raise DataError(f"{excerpt(command)}: more than {MOST_SHARDS:,} shards")
    commands = ["".join(chosen) for chosen in product(*words)]
    if not command.strip():
        raise DataError(f"{COMMAND} has no command; write {COMMAND}COMMAND")
    names = ["".join(_SHARD.findall(each)[-1:]).lstrip(".-") for each in commands]
    often = Counter(name.lower() for name in names)
    return {
        name if name and often[name.lower()] == 1 else f"{number:05}.tar": each
        for number, (name, each) in enumerate(zip(names, commands, strict=True))
    }


def _run(command: str, shard: Path) -> None:
    """Write the output of a command to a file, which appears when it is whole."""
    with whole_file(shard, "in streams") as aside:
        with aside.open("wb") as file:
            status = subprocess.run(
                command, shell=True, stdin=subprocess.DEVNULL, stdout=file, check=False
            ).returncode
        if problem := _problem(aside, status):
            raise DataError(f"{COMMAND}{excerpt(command)}: {problem}")


def _problem(written: Path, status: int) -> str | None:
    """Return what is wrong with the output of a command, or None."""
    if status:
        return f"the command failed with exit status {status}; run it in a shell to see why"
    with written.open("rb") as file:
        head = file.read(10)
    if packed := compression(head):
        tool = {"gzip": "gzip", "bzip2": "bzip2", "xz": "xz"}[packed]
        return f"the command writes a {packed} file; end it with `| {tool} -dc`"
    found = "no tar file"
    try:
        with written.open("rb") as file, open_tar(file, "r:") as archive:
            found = "a damaged tar file"
            deque(headers(archive, written.stat().st_size), maxlen=0)
            return None
    except tarfile.TarError as error:
        return f"the command writes {found}: {plain(error)}"
