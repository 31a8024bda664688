"""Compare two systems on the same images: scores, significance, and the largest changes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Unpack

from captioner.metrics import Comparison, compare_captions, compatible, differences
from captioner.scoring.systems import (
    CaptionSet,
    MetricOptions,
    match,
    read_hypotheses,
    reference_tokens,
    references_for,
)

LEVEL = 0.05  # significance level


@dataclass(frozen=True, slots=True)
class Change:
    """The captions of A and B for one image; the difference is B's score minus A's."""

    image: str
    difference: float
    a: str
    b: str


@dataclass(frozen=True, slots=True)
class Pair:
    """The comparison of two systems, with the images in the order of the first."""

    a: CaptionSet
    b: CaptionSet
    scores: dict[str, Comparison]
    matched_by: str  # "image id", "file name" or "line"
    ranked_by: str  # name of the score that ranks the changes
    improved: list[Change]  # the largest gains of B, largest first
    worsened: list[Change]  # the largest losses of B, largest first
    warnings: list[str]  # why the systems' stored scores are not comparable

    def as_dict(self) -> dict[str, Any]:
        """Return the content of the JSON file: the scores by name, then the other results."""
        return {
            **{
                name: score.as_dict() | {"verdict": verdict(score)}
                for name, score in self.scores.items()
            },
            "systems": {
                side: {"file": system.name, "decode": system.signature.get("decode")}
                for side, system in (("a", self.a), ("b", self.b))
            },
            "images": len(self.a.images),
            "matched_by": self.matched_by,
            "ranked_by": self.ranked_by,
            "improved": list(map(asdict, self.improved)),
            "worsened": list(map(asdict, self.worsened)),
            "warnings": self.warnings,
            "verdict": conclusion(self.scores),
        }


def compare_files(
    a: Path,
    b: Path,
    references: Sequence[Path] = (),
    *,
    examples: int = 3,
    **options: Unpack[MetricOptions],
) -> Pair:
    """Compare the captions in two files; see `read_hypotheses` and `references_for`.

    The result lists at most `examples` improved images, and as many worsened ones.

    Raises:
        DataError: if a file cannot be read, or images or references differ.
        ConfigError: if a metric is unknown.
    """
    first = read_hypotheses(a)
    how, second = match(first, read_hypotheses(b))
    _, truth = match(first, references_for([first, second], references))
    split = first.signature.get("split")
    scores = compare_captions(
        first.tokens(),
        second.tokens(),
        reference_tokens(truth),
        split=split if split == second.signature.get("split") else None,
        **options,
    )
    defined = [name for name, score in scores.items() if not score.note]
    ranked_by = "cider" if "cider" in defined else (defined or list(scores))[-1]
    gains = scores[ranked_by].per_image.tolist()
    changes = [
        Change(first.label(image), gains[image], ours.captions[0], theirs.captions[0])
        for image, (ours, theirs) in enumerate(zip(first.images, second.images, strict=True))
    ]
    changes.sort(key=lambda change: change.difference)
    return Pair(
        a=first,
        b=second,
        scores=scores,
        matched_by=how,
        ranked_by=ranked_by,
        improved=[change for change in changes[::-1][:examples] if change.difference > 0],
        worsened=[change for change in changes[:examples] if change.difference < 0],
        warnings=_warnings(first, second),
    )


def verdict(score: Comparison) -> str:
    """Return "A" or "B" if one is better, "equal" (no difference), "unsure" or "undefined"."""
    if score.note or math.isnan(score.difference):
        return "undefined"
    if not score.per_image.any() and not score.difference:
        return "equal"
    if max(score.p_bootstrap, score.p_randomization) >= LEVEL:
        return "unsure"
    return "B" if score.difference > 0 else "A"


def conclusion(scores: dict[str, Comparison]) -> str:
    """Summarise a comparison in one sentence."""
    names: dict[str, list[str]] = {}
    for name, score in scores.items():
        names.setdefault(verdict(score), []).append(name)
    unsure = ", ".join(names.get("unsure", []) + names.get("equal", []))
    if set(names) <= {"equal", "undefined"}:
        return "A and B score the same on every image." if unsure else "No score is defined."
    clauses = [
        f"{side} is better in {', '.join(names[side])} (p < {LEVEL:g})"
        for side in ("A", "B")
        if side in names
    ]
    if not clauses:
        return f"No significant difference in {unsure} (p >= {LEVEL:g})."
    if unsure:
        clauses.append(f"no significant difference in {unsure}")
    return "; ".join(clauses) + "."


def _warnings(a: CaptionSet, b: CaptionSet) -> list[str]:
    """Warn if the stored scores of the two systems are not comparable."""
    if not a.signature or not b.signature or compatible(a.signature, b.signature):
        return []
    items = differences(a.signature, b.signature).items()
    differing = ", ".join(f"{key} {left} / {right}" for key, (left, right) in items)
    return [
        f"the scores.json of A and B are not comparable ({differing}); the scores below are "
        f"computed again, in the same way for both"
    ]
