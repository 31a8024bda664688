"""`captioner status`."""

from __future__ import annotations

import json
import shlex
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from captioner.cli.options import SLASH, OutputPath, show

if TYPE_CHECKING:
    from captioner.captioning.status import JobStatus

STATES = {"unknown": "not known whether it runs"}


@click.command("status")
@click.argument("output", type=OutputPath())
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(output: str | Path, as_json: bool) -> None:
    """Show how far the captioning job is that writes OUTPUT.

    OUTPUT is what --output was given, or a folder with files beside the images. The job is
    not disturbed, and may have ended. The images that are left and the rate give the time that is
    left.
    """
    from captioner.captioning.status import job_status

    if isinstance(output, str) and not output.endswith("/"):
        from captioner.captioning.remote_output import local_output

        output = local_output(output)
    if isinstance(output, Path) and output.name == SLASH:
        output = output.parent
    status = job_status(output)
    show(json.dumps(_as_dict(status)) if as_json else "\n".join(_lines(status)))


def _as_dict(status: JobStatus) -> dict[str, object]:
    return {
        "output": str(status.output),
        "state": status.state,
        "done": status.done,
        "failed": status.failed,
        "total": status.total,
        "rate": None if status.rate is None else round(status.rate, 2),
        "eta": None if status.eta is None else round(status.eta, 1),
        "last_sign": datetime.fromtimestamp(status.last_sign, UTC).isoformat(timespec="seconds"),
        "processes": status.processes,
        "command": status.command or None,
        "folder": status.folder or None,
    }


def _lines(status: JobStatus) -> list[str]:
    """Return the status as text, and for a job that does not run how it goes on."""
    from captioner.system.foreign import plain

    of_all = "" if status.total is None else f" of {status.total:,}"
    parts = [STATES.get(status.state, status.state), f"{status.done:,}{of_all} image(s) done"]
    if status.failed is not None:
        parts.append(f"{status.failed:,} failed")
    if status.processes > 1:
        parts.append(f"{status.processes} processes")
    if status.rate:
        parts.append(f"{status.rate:,.1f} images per second")
    if status.eta and status.state != "finished":
        parts.append(f"{duration(status.eta)} left")
    ago = duration(max(0.0, time.time() - status.last_sign))
    lines = [f"{plain(status.output)}: {', '.join(parts)}; last sign of life {ago} ago"]
    if status.command and status.state == "stopped":
        here = status.folder in ("", str(Path.cwd()))
        move = "" if here else f"cd {shlex.quote(status.folder)} && "
        lines.append(f"to go on: {plain(move + status.command, 2500)}")
    return lines


def duration(seconds: float) -> str:
    """Return a time in its two largest units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days:,} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
