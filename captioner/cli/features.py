"""`captioner features`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from captioner.cli.options import config_argument, device_option, say, set_option, show

if TYPE_CHECKING:
    from captioner.data.stores import Stored

ALL = "all stores"


@click.command("features")
@config_argument
@set_option
@click.option(
    "--check", is_flag=True, help="List all stores and verify every row; exit code 1 if damaged."
)
@click.option(
    "--clear",
    metavar="[NAME]",
    is_flag=False,
    flag_value=ALL,
    help="Delete the store with this name or backbone; without NAME, all stores.",
)
@click.option(
    "--prune",
    is_flag=True,
    help="Delete damaged rows, then the least recently used stores above the size limit.",
)
@device_option
def command(
    config: str | None,
    overrides: tuple[str, ...],
    check: bool,
    clear: str | None,
    prune: bool,
    device: str,
) -> None:
    """Fill the feature store for CONFIG ahead of training, or check, clear or prune stores.

    Stores are in $CAPTIONER_CACHE, else ~/.cache/captioner. Features that a store already holds
    are not computed again. All stores together take at most $CAPTIONER_CACHE_LIMIT GB (100); a
    command that would exceed the limit fails before it computes anything.
    """
    actions = [
        flag
        for flag, given in (("--check", check), ("--clear", clear is not None), ("--prune", prune))
        if given
    ]
    if len(actions) > 1 or (actions and (config or overrides)):
        raise click.UsageError(f"{', '.join(actions)}: use alone, without CONFIG or --set")
    if actions:
        {"--check": _check, "--clear": lambda: _clear(clear), "--prune": _prune}[actions[0]]()
        return

    from captioner.config import load_config

    settings = load_config(config or "scenes", overrides)

    from captioner.captioner import choose_device
    from captioner.data.prepare import open_encoder, prepare

    encoder = open_encoder(settings, choose_device(device))
    prepared = prepare(settings, encoder, say)
    rows = len(prepared.train.features) + len(prepared.dev.features)
    say(f"features: {rows:,} rows of {encoder.feature_size:,} ready")


def _check() -> None:
    """List the stores and their damage; exit with code 1 if any is damaged."""
    from captioner.data.feature_store import LIMIT, cache_folder, limit
    from captioner.data.stores import stores

    parent = cache_folder() / "features"
    known = stores(parent)
    damaged = 0
    for stored in known:
        damage = stored.damage()
        damaged += bool(damage)
        sound = (
            "sound"
            if stored.feature_size or not stored.rows
            else "no checksums (written by an older captioner)"
        )
        used = datetime.fromtimestamp(stored.used, UTC).strftime("%Y-%m-%d")
        show(
            f"{stored.folder.name}  {stored.encoder}  {stored.rows:,} rows  "
            f"{stored.size / 1e6:,.1f} MB  used {used}  {damage or sound}"
        )
    total = sum(stored.size for stored in known)
    show(
        f"{len(known)} store(s) in {parent}, {total / 1e6:,.1f} MB of at most "
        f"{limit() / 1e9:g} GB (${LIMIT}), {damaged} damaged"
    )
    if damaged:
        say("captioner features --prune deletes damaged rows; they are encoded again when needed")
        raise SystemExit(1)


def _clear(name: str | None) -> None:
    from captioner.data.feature_store import cache_folder
    from captioner.data.stores import named, stores

    known = stores(cache_folder() / "features")
    _delete(known if name in (None, ALL) else named(known, str(name)))


def _prune() -> None:
    from captioner.data.feature_store import cache_folder
    from captioner.data.stores import drop_damaged, over_limit, stores

    parent = cache_folder() / "features"
    for stored in stores(parent):
        dropped = drop_damaged(stored)
        if dropped is None:
            say(f"{stored.folder.name}: in use, kept")
        elif dropped:
            show(f"{stored.folder.name}: deleted {dropped:,} damaged row(s)")
    _delete(over_limit(stores(parent)))


def _delete(chosen: list[Stored]) -> None:
    from captioner.data.stores import clear

    deleted = [stored for stored in chosen if clear(stored)]
    for stored in chosen:
        outcome = "deleted" if stored in deleted else "in use, kept"
        show(
            f"{outcome}: {stored.folder.name}  {stored.encoder}  {stored.rows:,} rows  "
            f"{stored.size / 1e6:,.1f} MB"
        )
    show(f"{sum(stored.size for stored in deleted) / 1e6:,.1f} MB freed")
    if len(deleted) < len(chosen):
        raise SystemExit(1)
