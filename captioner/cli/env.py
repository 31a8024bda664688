"""`captioner env`."""

from __future__ import annotations

import click

from captioner.cli.options import show


@click.command("env")
def command() -> None:
    """Show versions, machine and device, for a report of a bug.

    The output holds no path and no user name.
    """
    from captioner.system.environment import environment

    rows = environment()
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        show(f"{name.ljust(width)}  {value}")
