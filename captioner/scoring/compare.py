"""Two systems on the same images: which is better, how surely, and where."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from captioner.errors import DataError
from captioner.metrics import Comparison, Signature, compare_captions, compatible, differences
from captioner.scoring.systems import (
    CaptionSet,
    match,
    own_references,
    read_hypotheses,
    read_references,
    reference_tokens,
)
from captioner.text import tokenize

LEVEL = 0.05  # a difference is called one when chance alone gives it less often than this


@dataclass(frozen=True, slots=True)
class Change:
    """What two systems say of one image.

    Attributes:
        image: its id, else its line.
        difference: score of B's caption less that of A's.
        a: caption of A.
        b: caption of B.
    """

    image: str
    difference: float
    a: str
    b: str


@dataclass(frozen=True, slots=True)
class Pair:
    """Two systems compared.

    Attributes:
        a: the first.
        b: the second, in the order of the first.
        scores: comparisons by name.
        matched_by: how their images were matched.
        ranked_by: name of the score that ranks the changes.
        improved: images where B gains most, most first.
        worsened: images where B loses most, most first.
        warnings: what makes the systems' own stored scores differ in kind.
    """

    a: CaptionSet
    b: CaptionSet
    scores: dict[str, Comparison]
    matched_by: str
    ranked_by: str
    improved: list[Change]
    worsened: list[Change]
    warnings: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Return what goes into a JSON file: a key for each score, then what else is known."""
        verdicts = {name: {"verdict": verdict(score)} for name, score in self.scores.items()}
        return {
            **{name: score.as_dict() | verdicts[name] for name, score in self.scores.items()},
            "systems": {
                side: {"file": system.name, "decode": system.about("decode")}
                for side, system in (("a", self.a), ("b", self.b))
            },
            "images": len(self.a.captions),
            "matched_by": self.matched_by,
            "ranked_by": self.ranked_by,
            "improved": [_change_as_dict(change) for change in self.improved],
            "worsened": [_change_as_dict(change) for change in self.worsened],
            "warnings": self.warnings,
            "verdict": conclusion(self.scores),
        }


def compare_files(
    a: Path,
    b: Path,
    references: Sequence[Path] = (),
    *,
    metrics: Sequence[str],
    resamples: int = 1000,
    seed: int = 0,
    examples: int = 3,
) -> Pair:
    """Compare the captions in two files.

    Args:
        a: see `read_hypotheses`.
        b: likewise.
        references: see `read_references`; none: those that came with the captions.
        metrics: names, see `score_captions`.
        resamples: of the bootstrap, and trials of the randomisation.
        seed: of both.
        examples: images listed as improved, and as worsened, at most.

    Raises:
        DataError: if a file cannot be read, or images or references differ.
        ConfigError: if a metric is unknown.
    """
    first, second = read_hypotheses(a), read_hypotheses(b)
    how, places = match(first, second)
    second = _reordered(second, places)
    truth = read_references(references) if references else _shared_references(first, second)
    _, order = match(first, truth)
    splits = {first.about("split"), second.about("split")}
    scores = compare_captions(
        [tokenize(captions[0]) for captions in first.captions],
        [tokenize(captions[0]) for captions in second.captions],
        reference_tokens(truth, order),
        metrics=metrics,
        resamples=resamples,
        seed=seed,
        split=splits.pop() if len(splits) == 1 else None,
    )
    known = [name for name, score in scores.items() if not score.note]
    ranked_by = "cider" if "cider" in known else (known or list(scores))[-1]
    improved, worsened = _extremes(first, second, scores[ranked_by], examples)
    return Pair(
        a=first,
        b=second,
        scores=scores,
        matched_by=how,
        ranked_by=ranked_by,
        improved=improved,
        worsened=worsened,
        warnings=_warnings(first, second),
    )


def verdict(score: Comparison) -> str:
    """Say who is better: "A", "B", "equal" (no difference at all), "unsure" or "undefined"."""
    if score.note or math.isnan(score.difference):
        return "undefined"
    if not score.per_image.any() and not score.difference:
        return "equal"
    if max(score.p_bootstrap, score.p_randomization) >= LEVEL:
        return "unsure"
    return "B" if score.difference > 0 else "A"


def conclusion(scores: dict[str, Comparison]) -> str:
    """Say in one sentence what the comparison shows."""
    names: dict[str, list[str]] = {}
    for name, score in scores.items():
        names.setdefault(verdict(score), []).append(name)
    told = [side for side in ("A", "B") if side in names]
    unsure = names.get("unsure", []) + names.get("equal", [])
    if set(names) <= {"equal", "undefined"}:
        return "A and B score the same on every image." if unsure else "No score is defined."
    if not told:
        return (
            f"No difference is shown: chance explains those in {', '.join(unsure)} "
            f"(p >= {LEVEL:g})."
        )
    parts = [f"{side} is better in {', '.join(names[side])} (p < {LEVEL:g})" for side in told]
    if unsure:
        parts.append(f"no difference is shown in {', '.join(unsure)}")
    return "; ".join(parts) + "."


def _shared_references(a: CaptionSet, b: CaptionSet) -> CaptionSet:
    """Return the references both came with.

    Raises:
        DataError: if neither has any, or theirs differ.
    """
    ours, theirs = own_references(a), own_references(b)
    if ours and theirs:
        pairs = zip(ours.captions, theirs.captions, strict=True)
        differing = [
            ours.label(image)
            for image, (left, right) in enumerate(pairs)
            if sorted(left) != sorted(right)
        ]
        if differing:
            raise DataError(
                f"{a.name} and {b.name} hold different references for {len(differing):,} "
                f"image(s), {differing[0]} for one; name the right ones with --references"
            )
    found = ours or theirs
    if found is None:
        raise DataError(f"{a.name}: no references of its own; name them with --references")
    # The two systems are in one order by now, whichever of them the references came with.
    return CaptionSet(found.name, found.captions, a.ids, a.files)


def _reordered(found: CaptionSet, places: Sequence[int]) -> CaptionSet:
    def pick(values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        return None if values is None else tuple(values[place] for place in places)

    return CaptionSet(
        found.name,
        pick(found.captions) or (),
        pick(found.ids),
        pick(found.files),
        pick(found.references),
        found.signature,
    )


def _extremes(
    a: CaptionSet, b: CaptionSet, score: Comparison, count: int
) -> tuple[list[Change], list[Change]]:
    """Return the images that gain most and lose most."""
    order = np.argsort(score.per_image, kind="stable").tolist()

    def change(image: int) -> Change:
        difference = float(score.per_image[image])
        return Change(a.label(image), difference, a.captions[image][0], b.captions[image][0])

    changes = [change(image) for image in (*order[:count], *order[::-1][:count])]
    losses, gains = changes[: len(changes) // 2], changes[len(changes) // 2 :]
    return [c for c in gains if c.difference > 0], [c for c in losses if c.difference < 0]


def _warnings(a: CaptionSet, b: CaptionSet) -> list[str]:
    """Say where the scores stored beside the two were made in different ways."""
    if a.signature is None or b.signature is None or compatible(a.signature, b.signature):
        return []
    differing = _told(a.signature, b.signature)
    return [
        f"the scores.json of A and B are not comparable ({differing}); here both are scored anew, "
        f"in the same way"
    ]


def _told(a: Signature, b: Signature) -> str:
    both = differences(a, b).items()
    return ", ".join(f"{key} {left} / {right}" for key, (left, right) in both)


def _change_as_dict(change: Change) -> dict[str, Any]:
    return {
        "image": change.image,
        "difference": change.difference,
        "a": change.a,
        "b": change.b,
    }
