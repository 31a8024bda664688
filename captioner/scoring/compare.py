"""Compare systems on the same images: scores, significance, and the largest changes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from captioner.metrics import (
    Comparison,
    PreparedReferences,
    compare_captions,
    compatible,
    differences,
)
from captioner.scoring.metric_sources import MetricSources, gather
from captioner.scoring.systems import (
    CaptionSet,
    MetricOptions,
    cut_blank_ends,
    first_caption_note,
    match,
    read_hypotheses,
    reads_several,
    reference_tokens,
    references_for,
    tokenizer_for,
    tokenizer_note,
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


@dataclass(frozen=True, slots=True)
class Pairs:
    """The pairwise comparisons of three or more systems, p-values corrected by Holm's method."""

    systems: list[CaptionSet]  # the same images in the order of the first
    scores: dict[tuple[int, int], dict[str, Comparison]]  # by the numbers of the two systems
    matched_by: list[str]  # for each system after the first
    warnings: list[str]

    @property
    def values(self) -> dict[str, list[float]]:
        """Return each score of each system, by name."""
        others = [self.scores[0, number] for number in range(1, len(self.systems))]
        return {
            name: [score.a, *(scores[name].b for scores in others)]
            for name, score in others[0].items()
        }

    @property
    def spread(self) -> dict[str, dict[str, float]]:
        """Return the mean and the standard deviation (n - 1) of each score over the systems."""
        values = self.values.items()
        return {
            "mean": {name: float(np.mean(scores)) for name, scores in values},
            "std": {name: float(np.std(scores, ddof=1)) for name, scores in values},
        }

    def as_dict(self) -> dict[str, Any]:
        """Return the content of the JSON file."""
        return {
            "systems": [
                {
                    "name": label(number),
                    "file": system.name,
                    "decode": system.signature.get("decode"),
                    "scores": _nulls({name: one[number] for name, one in self.values.items()}),
                }
                for number, system in enumerate(self.systems)
            ],
            **{name: _nulls(scores) for name, scores in self.spread.items()},
            "pairs": [
                {
                    "a": label(a),
                    "b": label(b),
                    **{name: score.as_dict() for name, score in scores.items()},
                    "verdict": conclusion(scores, label(a), label(b)),
                }
                for (a, b), scores in self.scores.items()
            ],
            "images": len(self.systems[0].images),
            "matched_by": self.matched_by,
            "correction": "holm",
            "warnings": self.warnings,
        }


def _nulls(scores: Mapping[str, float]) -> dict[str, float | None]:
    """Replace NaN, which JSON does not have."""
    return {name: None if math.isnan(score) else score for name, score in scores.items()}


def label(number: int) -> str:
    """Return the name of a system: A to Z, then S27, S28, ..."""
    return chr(ord("A") + number) if number < 26 else f"S{number + 1}"


def compare_many(
    paths: Sequence[Path],
    references: Sequence[Path] = (),
    *,
    sources: MetricSources = MetricSources(),  # noqa: B008 frozen
    **options: Unpack[MetricOptions],
) -> Pairs:
    """Compare every two of the systems in three or more files; see `compare_files`.

    Source of the correction: Holm: A simple sequentially rejective multiple test procedure,
    Scandinavian Journal of Statistics 6, 1979.

    Raises:
        DataError: if a file cannot be read, or images or references differ.
        ConfigError: if a metric is unknown.
    """
    systems, hows, truth, warnings = _read(paths, references, options)
    tokenizer = options.setdefault("tokenizer", tokenizer_for(systems))
    prepared = PreparedReferences(reference_tokens(truth, tokenizer))
    split = _common_split(systems)
    metrics = options.get("metrics", ())
    inputs = gather(sources, metrics, systems[0], truth, tokenizer, references)
    written = [system.written(tokenizer) for system in systems]
    scores = {
        (a, b): compare_captions(
            written[a], written[b], prepared, inputs=inputs, split=split, **options
        )
        for a, b in combinations(range(len(systems)), 2)
    }
    least = len(scores) / (1 + options.get("resamples", 1000))
    if least >= LEVEL:
        warnings.append(
            f"no p-value of {len(scores):,} pairs can be below {LEVEL:g}; use --resamples "
            f"{math.ceil(2 * len(scores) / LEVEL)} or more"
        )
    return Pairs(systems, holm(scores), hows, warnings)


def holm(
    scores: Mapping[tuple[int, int], Mapping[str, Comparison]],
) -> dict[tuple[int, int], dict[str, Comparison]]:
    """Correct both p-values of each score for the number of pairs."""
    corrected = {pair: dict(found) for pair, found in scores.items()}
    for name in next(iter(scores.values())):
        for field in ("p_bootstrap", "p_randomization"):
            ranked = sorted(scores, key=lambda pair: getattr(scores[pair][name], field))
            least = 0.0
            for rank, pair in enumerate(ranked):
                p_value = getattr(scores[pair][name], field)
                if not math.isnan(p_value):
                    least = max(least, min(1.0, (len(ranked) - rank) * p_value))
                    corrected[pair][name] = replace(corrected[pair][name], **{field: least})
    return corrected


def _read(
    paths: Sequence[Path], references: Sequence[Path], options: MetricOptions
) -> tuple[list[CaptionSet], list[str], CaptionSet, list[str]]:
    """Return the systems and the references, all in one order, how they match, and warnings."""
    several = reads_several(options)
    first, *others = cut_blank_ends([read_hypotheses(path, several=several) for path in paths])
    matched = [match(first, other) for other in others]
    systems = [first, *(system for _, system in matched)]
    *systems, truth = cut_blank_ends([*systems, references_for(systems, references)])
    _, truth = match(systems[0], truth)
    notes = [note for found in (*systems, truth) for note in found.notes]
    if not (options.get("tokenizer") or any(found.signature for found in systems)):
        notes += tokenizer_note(truth)
    notes += first_caption_note(systems, options)
    counts = {len(image.n_best or image.captions) for one in systems for image in one.images}
    if several and len(counts) > 1:
        notes.append(
            f"images have {min(counts)} to {max(counts)} captions; "
            f"their diversity depends on the number"
        )
    for number, other in enumerate(systems[1:], start=1):
        notes += _warnings(first, other, label(number))
    return systems, [how for how, _ in matched], truth, list(dict.fromkeys(notes))


def _common_split(systems: Sequence[CaptionSet]) -> str | None:
    splits = {system.signature.get("split") for system in systems}
    return splits.pop() if len(splits) == 1 else None


def compare_files(
    a: Path,
    b: Path,
    references: Sequence[Path] = (),
    *,
    examples: int = 3,
    sources: MetricSources = MetricSources(),  # noqa: B008 frozen
    **options: Unpack[MetricOptions],
) -> Pair:
    """Compare the captions in two files; see `read_hypotheses` and `references_for`.

    The result lists at most `examples` improved images, and as many worsened ones.

    Raises:
        DataError: if a file cannot be read, or images or references differ.
        ConfigError: if a metric is unknown.
    """
    [first, second], [how], truth, warnings = _read([a, b], references, options)
    tokenizer = options.setdefault("tokenizer", tokenizer_for([first, second]))
    scores = compare_captions(
        first.written(tokenizer),
        second.written(tokenizer),
        reference_tokens(truth, tokenizer),
        inputs=gather(sources, options.get("metrics", ()), first, truth, tokenizer, references),
        split=_common_split([first, second]),
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
        warnings=warnings,
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


def conclusion(scores: Mapping[str, Comparison], a: str = "A", b: str = "B") -> str:
    """Summarise a comparison in one sentence."""
    names: dict[str, list[str]] = {}
    for name, score in scores.items():
        names.setdefault(verdict(score), []).append(name)
    unsure = ", ".join(names.get("unsure", []) + names.get("equal", []))
    if set(names) <= {"equal", "undefined"}:
        same = f"{a} and {b} score the same on every image."
        return same if unsure else "No score is defined."
    clauses = [
        f"{name} is better in {', '.join(names[side])} (p < {LEVEL:g})"
        for side, name in (("A", a), ("B", b))
        if side in names
    ]
    if not clauses:
        return f"No significant difference in {unsure} (p >= {LEVEL:g})."
    if unsure:
        clauses.append(f"no significant difference in {unsure}")
    return "; ".join(clauses) + "."


def _warnings(a: CaptionSet, b: CaptionSet, name: str) -> list[str]:
    """Warn if the stored scores of the two systems are not comparable."""
    if not a.signature or not b.signature or compatible(a.signature, b.signature):
        return []
    items = differences(a.signature, b.signature).items()
    differing = ", ".join(f"{key} {left} / {right}" for key, (left, right) in items)
    return [
        f"the scores.json of A and {name} are not comparable ({differing}); the scores below are "
        f"computed again, in the same way for both"
    ]
