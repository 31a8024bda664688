"""Compare two systems on the same images: scores, significance, and the largest changes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from captioner.errors import DataError
from captioner.metrics import Comparison, compare_captions, compatible, differences
from captioner.scoring.systems import (
    CaptionSet,
    match,
    own_references,
    read_hypotheses,
    read_references,
    reference_tokens,
)
from captioner.text import tokenize

LEVEL = 0.05  # significance level


@dataclass(frozen=True, slots=True)
class Change:
    """The captions of two systems for one image.

    Attributes:
        image: image id, or line number without ids.
        difference: score of B's caption minus score of A's caption.
        a: caption of A.
        b: caption of B.
    """

    image: str
    difference: float
    a: str
    b: str


@dataclass(frozen=True, slots=True)
class Pair:
    """The comparison of two systems.

    Attributes:
        a: the first system.
        b: the second system, with the images in the order of the first.
        scores: comparisons by score name.
        matched_by: how the images were matched: "image id", "file name" or "line".
        ranked_by: name of the score that ranks the changes.
        improved: images with the largest gains of B, largest first.
        worsened: images with the largest losses of B, largest first.
        warnings: why the systems' stored scores are not comparable.
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
        """Return the content of the JSON file: the scores by name, then the other results."""
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
        b: see `read_hypotheses`.
        references: see `read_references`; empty: the references in the caption files.
        metrics: names of metrics; see `score_captions`.
        resamples: number of bootstrap resamples and of randomisation trials.
        seed: seed of both tests.
        examples: maximum number of improved and of worsened images to list.

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
    defined = [name for name, score in scores.items() if not score.note]
    ranked_by = "cider" if "cider" in defined else (defined or list(scores))[-1]
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
    better = [side for side in ("A", "B") if side in names]
    unsure = names.get("unsure", []) + names.get("equal", [])
    if set(names) <= {"equal", "undefined"}:
        return "A and B score the same on every image." if unsure else "No score is defined."
    if not better:
        return f"No significant difference in {', '.join(unsure)} (p >= {LEVEL:g})."
    clauses = [f"{side} is better in {', '.join(names[side])} (p < {LEVEL:g})" for side in better]
    if unsure:
        clauses.append(f"no significant difference in {', '.join(unsure)}")
    return "; ".join(clauses) + "."


def _shared_references(a: CaptionSet, b: CaptionSet) -> CaptionSet:
    """Return the references in the two caption files.

    Raises:
        DataError: if neither file has references, or the references differ.
    """
    references_a, references_b = own_references(a), own_references(b)
    if references_a and references_b:
        pairs = zip(references_a.captions, references_b.captions, strict=True)
        differing = [
            references_a.label(image)
            for image, (left, right) in enumerate(pairs)
            if sorted(left) != sorted(right)
        ]
        if differing:
            raise DataError(
                f"{a.name} and {b.name} hold different references for {len(differing):,} "
                f"image(s), such as {differing[0]}; give the right ones with --references"
            )
    references = references_a or references_b
    if references is None:
        raise DataError(f"{a.name}: no references in the file; give them with --references")
    # b has the order of a, so the ids of a fit the references of both.
    return CaptionSet(references.name, references.captions, a.ids, a.files)


def _reordered(system: CaptionSet, order: Sequence[int]) -> CaptionSet:
    def pick(values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        return None if values is None else tuple(values[index] for index in order)

    return CaptionSet(
        system.name,
        pick(system.captions) or (),
        pick(system.ids),
        pick(system.files),
        pick(system.references),
        system.signature,
    )


def _extremes(
    a: CaptionSet, b: CaptionSet, score: Comparison, count: int
) -> tuple[list[Change], list[Change]]:
    """Return the images with the largest gains and the largest losses."""
    order = np.argsort(score.per_image, kind="stable").tolist()

    def change(image: int) -> Change:
        difference = float(score.per_image[image])
        return Change(a.label(image), difference, a.captions[image][0], b.captions[image][0])

    changes = [change(image) for image in (*order[:count], *order[::-1][:count])]
    losses, gains = changes[: len(changes) // 2], changes[len(changes) // 2 :]
    return [c for c in gains if c.difference > 0], [c for c in losses if c.difference < 0]


def _warnings(a: CaptionSet, b: CaptionSet) -> list[str]:
    """Warn if the stored scores of the two systems are not comparable."""
    if a.signature is None or b.signature is None or compatible(a.signature, b.signature):
        return []
    items = differences(a.signature, b.signature).items()
    differing = ", ".join(f"{key} {left} / {right}" for key, (left, right) in items)
    return [
        f"the scores.json of A and B are not comparable ({differing}); the scores below are "
        f"computed again, in the same way for both"
    ]


def _change_as_dict(change: Change) -> dict[str, Any]:
    return {
        "image": change.image,
        "difference": change.difference,
        "a": change.a,
        "b": change.b,
    }
