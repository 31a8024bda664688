"""What `captioner caption` says at the end: how many images, maps and texts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from captioner.cli.options import say
from captioner.system.foreign import plain

if TYPE_CHECKING:
    from captioner.captioning.maps import MapFolder
    from captioner.captioning.records import Totals
    from captioner.captioning.sidecars import Sidecars


def say_totals(totals: Totals, seconds: float, output: Path | str | None) -> None:
    """Say how many images were captioned, and how fast."""
    before = totals.images - totals.fresh
    say(
        f"{totals.images:,} image(s){f' ({before:,} in earlier runs)' if before else ''}, "
        f"{totals.captioned:,} captioned{f' ({totals.blank:,} blank)' if totals.blank else ''}, "
        f"{totals.failed:,} failed, "
        f"{totals.fresh / seconds:,.1f} images per second"
        f"{f', in {output}' if output else ''}"
        f"{f'; failures in {totals.errors}' if totals.errors else ''}"
    )


def say_maps(maps: MapFolder | None) -> None:
    """Say how many maps were drawn, and which were not."""
    if maps is None:
        return
    if maps.drawn:
        say(f"{maps.drawn:,} map(s) in {maps.folder}")
    if maps.letters:
        from captioner.explanation.fonts import advice  # slow to import

        say(advice(maps.letters))
    if maps.kept:
        say(
            f"{len(maps.kept):,} map(s) kept, such as {plain(maps.kept[0])}; --overwrite draws "
            f"them again"
        )
    if maps.foreign:
        say(
            f"{len(maps.foreign):,} map(s) not drawn, captioner did not draw the file of their "
            f"name, such as {plain(maps.foreign[0])}; move it away or choose another --maps"
        )
    if maps.absent:
        say(
            f"{maps.absent:,} image(s) without a map, earlier runs captioned them; --overwrite "
            f"captions them again"
        )


def say_texts(texts: Sidecars) -> None:
    """Say which images were passed over, and which texts have lost their image."""
    ending = f".{texts.form}"
    if texts.skipped:
        say(f"{texts.skipped:,} skipped, their {ending} file is up to date")
    if texts.kept:
        say(
            f"{len(texts.kept):,} passed over, captioner did not write their {ending} file or it "
            f"was edited since, such as {plain(texts.kept[0])}; --existing append, prepend or "
            f"replace changes them"
        )
    if orphans := texts.orphans():
        say(f"{len(orphans):,} text file(s) whose image is gone, such as {plain(orphans[0])}; kept")
