"""What `captioner caption --dry-run` shows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from captioner.cli.messages import say_texts
from captioner.cli.options import say, show
from captioner.errors import ImageError
from captioner.system.foreign import plain

if TYPE_CHECKING:
    from captioner.captioning.records import Record
    from captioner.captioning.sidecars import Sidecars
    from captioner.captioning.sources import Item

EXAMPLES = 2  # of each kind of change
CHANGES = {
    "new": "without a text: the caption would be written",
    "again": "written by captioner before: would be written again",
    "replace": "not written by captioner: would be replaced",
    "append": "not written by captioner: the caption would be appended",
    "prepend": "not written by captioner: the caption would be prepended",
}


def count_images(items: Iterable[Item]) -> int:
    """Count the images by folder and kind, and open none; return the number of failures."""
    counts: Counter[tuple[str, str]] = Counter()
    failed = 0
    for item in items:
        if isinstance(item.source, ImageError):
            failed += 1
            say(f"captioner: {plain(item.name)}: {item.source}")
        else:
            path = Path(item.name)
            counts[str(path.parent), path.suffix.lower()] += 1
    for (folder, ending), count in sorted(counts.items()):
        show(f"{count:,} {ending or 'without extension'} in {folder}")
    say(f"{counts.total():,} image(s), {failed:,} failure(s); a dry run, nothing was captioned")
    return failed


def show_changes(
    items: Iterable[Item], texts: Sidecars, caption: Callable[[list[Item]], Iterator[Record]]
) -> int:
    """Count what would change next to the images, and show examples; return the failures."""
    counts: Counter[str] = Counter()
    examples: dict[str, list[Item]] = defaultdict(list)
    failed = 0
    for item in texts.missing(items):
        change = item.source if isinstance(item.source, ImageError) else texts.change(item.name)
        if change not in CHANGES:
            failed += 1
            say(f"captioner: {plain(item.name)}: {change}")
            continue
        counts[change] += 1
        if len(examples[change]) < EXAMPLES:
            examples[change].append(item)
    for change, meaning in CHANGES.items():
        if counts[change]:
            show(f"{counts[change]:,} {meaning}")
    shown = [item for change in CHANGES for item in examples[change]]
    for record in caption(shown) if shown else ():
        _show_example(record, texts)
    say_texts(texts)
    say(f"{counts.total():,} file(s), {failed:,} failure(s); a dry run, nothing was written")
    return failed


def _show_example(record: Record, texts: Sidecars) -> None:
    from captioner.captioning.sidecar_files import UnusableError

    found = texts.look(Path(record.file_name))
    if record.error or isinstance(found, str):
        show(f"{record.file_name}: {record.error or found}")
        return
    try:
        after = texts.texts(record.caption, found)
    except UnusableError as error:
        show(f"{found.place}: {error}")
        return
    show(str(found.place))
    if after == found.texts:
        show("  holds the caption already")
        return
    for sign, side in (("-", found.texts or ()), ("+", after)):
        for line in "\n".join(dict.fromkeys(side)).splitlines():
            show(f"  {sign} {line}")
