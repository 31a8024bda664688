"""`errors.jsonl` next to an output file: the images that failed, and why, for programs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from captioner.errors import DataError
from captioner.system.escapes import to_json, utf8_name
from captioner.system.files import no_stream, whole_file
from captioner.system.foreign import plain
from captioner.system.ownership import check
from captioner.system.seen import Seen

ERRORS = "errors.jsonl"


@contextmanager
def failure_list(output: Path) -> Iterator[Callable[[str, str | None, str], bool]]:
    """Write a job's failures to `errors.jsonl` next to its output, atomically.

    The lines of other jobs in the same folder stay. Without any line, the file is deleted.

    Yields:
        A function that adds a failure, (image name, error kind, message), and returns whether the
        list of an earlier run lacks it.
    """
    path = output.with_name(ERRORS)
    before = Seen()
    for is_own, line in _lines(output):  # also fails before a long job, not after it
        if is_own:
            before.add(line)
    with TemporaryFile("w+", encoding="utf-8", newline="", dir=_near(output)) as own:

        def add(name: str, kind: str | None, message: str) -> bool:
            row = {"output": utf8_name(output.name), "path": utf8_name(name)}
            line = to_json(row | {"kind": kind, "message": message}) + "\n"
            own.write(line)
            return line not in before

        yield add
        # Other jobs may have written meanwhile.
        others = (line for is_own, line in _lines(output) if not is_own)
        first = next(others, "")
        if own.tell() or first:
            own.seek(0)
            with whole_file(path, "failures") as aside, aside.open("w", encoding="utf-8") as file:
                shutil.copyfileobj(own, file)
                file.write(first)
                file.writelines(others)
        elif path.exists():  # a link to nothing is the user's
            path.unlink(missing_ok=True)


def listed_failures(output: Path) -> int:
    """Count the lines of `errors.jsonl`; refuse a foreign or unreadable file."""
    return sum(1 for _ in _lines(output))


def _near(output: Path) -> Path | None:
    """Return the folder of an output for a temporary file, which may not fit elsewhere."""
    return output.parent if output.parent.is_dir() else None


def _lines(output: Path) -> Iterator[tuple[bool, str]]:
    """Yield the lines of `errors.jsonl`, and whether they are of this job or of another."""
    errors = output.with_name(ERRORS)
    own_prefix = to_json({"output": utf8_name(output.name)})[:-1] + ","
    try:
        check(errors, "failures")
        # Only a line feed ends a line: messages may hold other line ends.
        with open(errors, encoding="utf-8", newline="\n", opener=no_stream) as file:
            for line in file:
                yield line.startswith(own_prefix), line
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise DataError(f"{errors}: cannot be read ({plain(error)}); move the file away") from error
