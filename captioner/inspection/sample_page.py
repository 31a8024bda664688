"""The page of a data set: findings, charts and samples as one HTML file that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from captioner.data.dataset import Example
from captioner.images.thumbnails import thumbnail
from captioner.inspection.inspect import Inspection
from captioner.inspection.lines import (
    counted,
    group_line,
    percent,
    same_files,
    shares,
    spread,
)
from captioner.inspection.picture_facts import in_several_splits
from captioner.page import one_file
from captioner.page.charts import length_chart
from captioner.system.files import whole_file
from captioner.system.version import __version__

HERE = Path(__file__).parent
SAMPLES = 12  # of each split
GROUPS = 8  # of pictures that are the same
MOST_BROKEN = 20
MOST_PROBLEMS = 20


def write_page(found: Inspection, path: Path) -> None:
    """Write the page of a data set, in place of one that captioner wrote.

    Raises:
        ConfigError: if a file that captioner did not write is at the path.
    """
    splits = found.captions.splits
    base = found.captions.base
    other = next((name for name in splits if name != base), None)
    template = one_file.template_of(HERE, "page.html", _style(), "")
    text = template.render(
        found=found,
        dataset=found.dataset,
        captions=found.captions,
        pictures=found.pictures,
        samples={name: evenly(found.dataset.split(name), SAMPLES) for name in splits},
        lengths=length_chart(
            splits[base].lengths,
            splits[other].lengths if other else [],
            names=(base, other or ""),
            unit="tokens",
        ),
        other=other,
        groups=_groups(found),
        most_broken=MOST_BROKEN,
        most_problems=MOST_PROBLEMS,
        thumbnail=thumbnail,
        percent=percent,
        spread=spread,
        counted=counted,
        shares=shares,
        same_files=same_files(found.pictures),
        version=__version__,
    )
    with whole_file(path, "page") as aside:
        aside.write_bytes(text.encode("utf-8", "backslashreplace"))


def evenly(examples: Sequence[Example], count: int) -> list[Example]:
    """Return so many examples, or all, at equal distances."""
    step = max(1, len(examples) / count)
    return [examples[int(number * step)] for number in range(min(count, len(examples)))]


def _groups(found: Inspection) -> list[tuple[str, list[Example], str]]:
    """Return groups of pictures to show, those in several splits first.

    A group is its kind, one picture of those with the same content or all that look the same, and
    the names.
    """
    kinds = (("same content", found.pictures.same), ("look the same", found.pictures.alike))
    groups = [(kind, group) for kind, of_kind in kinds for group in of_kind]
    groups.sort(key=lambda each: not in_several_splits(each[1]))
    return [
        (
            f"{kind}, in several splits" if in_several_splits(group) else kind,
            group[: 1 if kind == "same content" else 4],
            group_line(found, group),
        )
        for kind, group in groups[:GROUPS]
    ]


def _style() -> str:
    css = (HERE / "page.css").read_text(encoding="utf-8")
    return "".join(map(one_file.style, ("shared", "report"))) + css
