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
    "--check", is_flag=True, help="List all stores, and look at every row; exit code 1 if damaged."
)
@click.option(
    "--clear",
    metavar="[NAME]",
    is_flag=False,
    flag_value=ALL,
    help="Delete the store of this name or backbone, or all.",
)
@click.option(
    "--prune",
    is_flag=True,
    help="Drop damaged rows; then stores, least recently used first, until the limit is kept.",
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
    """Fill the feature store for CONFIG, so that training starts at once; or look after stores.

    Stores live in $CAPTIONER_CACHE, else ~/.cache/captioner; what they hold already is not
    computed again. All together take at most $CAPTIONER_CACHE_LIMIT GB (100): what would take
    more is refused before it is computed.
    """
    asked = [
        flag
        for flag, given in (("--check", check), ("--clear", clear is not None), ("--prune", prune))
        if given
    ]
    if len(asked) > 1 or (asked and (config or overrides)):
        raise click.UsageError(f"{', '.join(asked)}: each is given alone")
    if asked:
        {"--check": _check, "--clear": lambda: _clear(clear), "--prune": _prune}[asked[0]]()
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
    """List the stores with their damage, and end with exit code 1 where there is some."""
    from captioner.data.feature_store import LIMIT, cache_folder, limit
    from captioner.data.stores import stores

    parent = cache_folder() / "features"
    found = stores(parent)
    damaged = 0
    for stored in found:
        damage = stored.damage()
        damaged += bool(damage)
        sound = (
            "sound"
            if stored.feature_size or not stored.rows
            else "without checksums (of an older captioner)"
        )
        used = datetime.fromtimestamp(stored.used, UTC).strftime("%Y-%m-%d")
        show(
            f"{stored.folder.name}  {stored.encoder}  {stored.rows:,} rows  "
            f"{stored.size / 1e6:,.1f} MB  used {used}  {damage or sound}"
        )
    total = sum(stored.size for stored in found)
    show(
        f"{len(found)} store(s) in {parent}, {total / 1e6:,.1f} MB of at most "
        f"{limit() / 1e9:g} GB (${LIMIT}), {damaged} damaged"
    )
    if damaged:
        say("captioner features --prune drops damaged rows, which are encoded again when needed")
        raise SystemExit(1)


def _clear(name: str | None) -> None:
    from captioner.data.feature_store import cache_folder
    from captioner.data.stores import named, stores

    found = stores(cache_folder() / "features")
    _delete(found if name in (None, ALL) else named(found, str(name)))


def _prune() -> None:
    from captioner.data.feature_store import cache_folder
    from captioner.data.stores import drop_damaged, over_limit, stores

    parent = cache_folder() / "features"
    for stored in stores(parent):
        dropped = drop_damaged(stored)
        if dropped is None:
            say(f"{stored.folder.name}: in use, left alone")
        elif dropped:
            show(f"{stored.folder.name}: dropped {dropped:,} damaged row(s)")
    _delete(over_limit(stores(parent)))


def _delete(going: list[Stored]) -> None:
    from captioner.data.stores import clear

    gone = [stored for stored in going if clear(stored)]
    for stored in going:
        what = "deleted" if stored in gone else "in use, left alone"
        show(
            f"{what}: {stored.folder.name}  {stored.encoder}  {stored.rows:,} rows  "
            f"{stored.size / 1e6:,.1f} MB"
        )
    show(f"{sum(stored.size for stored in gone) / 1e6:,.1f} MB freed")
    if len(gone) < len(going):
        raise SystemExit(1)
