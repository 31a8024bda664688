"""`errors.jsonl` beside an output: what could not be captioned, and why, for programs."""

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

ERRORS = "errors.jsonl"


@contextmanager
def failure_list(output: Path) -> Iterator[Callable[[str, str | None, str], None]]:
    """List a job's failures beside its output, whole or not at all.

    Args:
        output: of the job. Others may write into the same folder: their lines stay.

    Yields:
        What adds a failure: the image's name, the kind of its error, and the message. Without any
        line there is no file.

    Raises:
        DataError: if there is a list that cannot be read.
    """
    path = output.with_name(ERRORS)
    lines_of_others(output)  # before a long job, not after it
    found = 0
    with TemporaryFile("w+", encoding="utf-8") as noted:

        def add(name: str, kind: str | None, message: str) -> None:
            nonlocal found
            found += 1
            row = {
                "output": utf8_name(output.name),
                "path": utf8_name(name),
                "kind": kind,
                "message": message,
            }
            noted.write(to_json(row) + "\n")

        yield add
        others = lines_of_others(output)  # as they are by now
        if not found and (not path.exists() or not path.stat().st_size):
            return
        if not found and not others:
            path.unlink()  # all that was listed is mended
            return
        noted.seek(0)
        with whole_file(path, "failures") as aside, aside.open("w", encoding="utf-8") as file:
            shutil.copyfileobj(noted, file)
            file.writelines(others)


def lines_of_others(output: Path) -> list[str]:
    """Return the lines of the list beside an output that are not of its job.

    Raises:
        ConfigError: if there is a file of that name that is no such list.
        DataError: if there is a list that cannot be read.
    """
    errors = output.with_name(ERRORS)
    try:
        check(errors, "failures")
        # Only a line feed ends a line: messages may hold other ends.
        with open(errors, encoding="utf-8", newline="\n", opener=no_stream) as file:
            lines = list(file)
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise DataError(f"{errors}: cannot be read ({plain(error)}); move it away") from error
    mine = to_json({"output": utf8_name(output.name)})[:-1] + ","
    return [line for line in lines if not line.startswith(mine)]
