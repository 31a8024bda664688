"""Score a caption file of any system against reference files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from captioner.errors import DataError
from captioner.metrics import Score, score_captions
from captioner.scoring.systems import (
    match,
    own_references,
    read_hypotheses,
    read_references,
    reference_tokens,
)
from captioner.text import tokenize


@dataclass(frozen=True, slots=True)
class ScoredFile:
    """The scores of a caption file.

    Attributes:
        scores: scores by name.
        images: number of scored images.
        empty: number of captions without a word.
        matched_by: "image id", "file name", "line", or "own references".
        source: name of the reference file or files.
    """

    scores: dict[str, Score]
    images: int
    empty: int
    matched_by: str
    source: str


def score_file(
    hypotheses: Path,
    references: Sequence[Path],
    *,
    metrics: Sequence[str],
    resamples: int = 1000,
    seed: int = 0,
    subset: bool = False,
) -> ScoredFile:
    """Score the captions in a file.

    Args:
        hypotheses: see `read_hypotheses`.
        references: see `read_references`; empty: the references in the caption file.
        metrics: names of metrics; see `score_captions`.
        resamples: bootstrap resamples for the intervals; 0: no intervals.
        seed: seed of the bootstrap.
        subset: score only the images that have a caption.

    Raises:
        DataError: if a file cannot be read, or an image is missing in one of the files.
        ConfigError: if a metric is unknown.
    """
    system = read_hypotheses(hypotheses)
    own = None if references else own_references(system)
    if own is None and not references:
        raise DataError(f"{system.name}: no references in the file; give reference files")
    truth = own or read_references(references)
    how, places = match(system, truth, subset=subset)
    tokens = [tokenize(captions[0]) for captions in system.captions]
    scores = score_captions(
        tokens,
        reference_tokens(truth, places),
        metrics=metrics,
        resamples=resamples,
        seed=seed,
        decode=system.about("decode"),
        split=system.about("split"),
    )
    return ScoredFile(
        scores=scores,
        images=len(tokens),
        empty=sum(not words for words in tokens),
        matched_by="own references" if own else how,
        source=truth.name,
    )
