"""`captioner features`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from captioner.cli.options import (
    config_argument,
    device_option,
    load_settings,
    say,
    set_option,
    show,
)

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
    actions = {"--check": check, "--clear": clear is not None, "--prune": prune}
    chosen = [flag for flag, given in actions.items() if given]
    if len(chosen) > 1 or (chosen and (config or overrides)):
        raise click.UsageError(f"{', '.join(chosen)}: use alone, without CONFIG or --set")
    if not chosen:
        _fill(config, overrides, device)
        return

    from captioner.data.stores import named, over_limit, stores

    found = stores()
    if check:
        _check(found)
    elif clear is not None:
        _delete(found if clear == ALL else named(found, clear))
    else:
        for stored in found:
            dropped = stored.drop_damaged()
            if dropped is None:
                say(f"{stored.folder.name}: in use, kept")
            elif dropped:
                show(f"{stored.folder.name}: deleted {dropped:,} damaged row(s)")
        _delete(over_limit(found))


def _fill(config: str | None, overrides: tuple[str, ...], device: str) -> None:
    settings = load_settings(config, overrides)

    from captioner.data.prepare import open_dataset, open_encoder, prepare
    from captioner.system.devices import choose_device

    dataset = open_dataset(
        settings.data, settings.encoder.features
    )  # fails before weights are downloaded
    encoder = open_encoder(settings, choose_device(device))
    prepared = prepare(settings, encoder, say, dataset=dataset)
    rows = len(prepared.train.features) + len(prepared.dev.features)
    say(f"features: {rows:,} rows of {encoder.feature_size:,} ready")


def _check(found: list[Stored]) -> None:
    """List the stores and their damage; exit with code 1 if any is damaged."""
    from captioner.data.feature_store import features_folder
    from captioner.data.stores import LIMIT, limit

    damaged = 0
    for stored in found:
        damage = stored.damage()
        damaged += bool(damage)
        used = datetime.fromtimestamp(stored.used, UTC).strftime("%Y-%m-%d")
        show(f"{stored}  used {used}  {damage or 'sound'}")
    total = sum(stored.size for stored in found)
    show(
        f"{len(found)} store(s) in {features_folder()}, {total / 1e6:,.1f} MB of at most "
        f"{limit() / 1e9:g} GB (${LIMIT}), {damaged} damaged"
    )
    if damaged:
        say("captioner features --prune deletes damaged rows; they are encoded again when needed")
        raise SystemExit(1)


def _delete(chosen: list[Stored]) -> None:
    freed, kept = 0, 0
    for stored in chosen:
        line = str(stored)
        deleted = stored.clear()
        show(f"{'deleted' if deleted else 'in use, kept'}: {line}")
        freed += deleted * stored.size
        kept += not deleted
    show(f"{freed / 1e6:,.1f} MB freed")
    if kept:
        raise SystemExit(1)
