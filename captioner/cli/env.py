"""`captioner env`."""

from __future__ import annotations

from collections import Counter

import click

from captioner.cli.options import show


@click.command("env")
def command() -> None:
    """Show versions, machine and device, for a report of a bug.

    The output holds no path and no user name.
    """
    from captioner.system.environment import environment

    rows = environment() + _plugins()
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        show(f"{name.ljust(width)}  {value}")


def _plugins() -> list[tuple[str, str]]:
    """Return what each plug-in adds, and its package; a built-in name wins, two of one do not."""
    from captioner.cli.caption import FORMATS as WRITERS
    from captioner.config import CELLS
    from captioner.data.load import FORMATS
    from captioner.metrics import METRICS
    from captioner.system.plugins import KINDS, PlugIn, ignored, plugins

    own = {"cells": CELLS, "metrics": METRICS, "datasets": FORMATS, "writers": WRITERS}
    counts = Counter((each.kind, each.name) for each in plugins())

    def unused(each: PlugIn) -> str:
        if each.name in own.get(each.kind, ()):
            return " (not used: captioner has its own)"
        several = counts[each.kind, each.name] > 1
        return " (not usable: there are several of this name)" if several else ""

    rows = [(f"{KINDS[each.kind]} {each.name}", each.label + unused(each)) for each in plugins()]
    return rows + [(what, f"{label} (not used: {reason})") for what, label, reason in ignored()]
