"""Score a caption file of any system against reference files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

from captioner.metrics import Score, WordUse, compare_word_use, score_captions
from captioner.scoring.metric_sources import MetricSources, gather
from captioner.scoring.systems import (
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


@dataclass(frozen=True, slots=True)
class ScoredFile:
    """The scores of a caption file, by name."""

    scores: dict[str, Score]
    word_use: dict[str, WordUse]  # of the captions and of the first references
    images: int  # number of scored images
    empty: int  # number of captions without a word
    matched_by: str  # "image id", "file name", "line" or "own references"
    source: str  # name of the reference file or files
    notes: tuple[str, ...]  # what is left out or assumed


def score_file(
    hypotheses: Path,
    references: Sequence[Path] = (),
    *,
    subset: bool = False,
    sources: MetricSources = MetricSources(),  # noqa: B008 frozen
    **options: Unpack[MetricOptions],
) -> ScoredFile:
    """Score the captions in a file; see `read_hypotheses` and `references_for`.

    With `subset`, only the images that have a caption are scored.

    Raises:
        DataError: if a file cannot be read, or an image is missing in one of the files.
        ConfigError: if a metric is unknown.
    """
    system = read_hypotheses(hypotheses, several=reads_several(options))
    system, truth = cut_blank_ends([system, references_for([system], references)])
    how, truth = match(system, truth, subset=subset)
    notes = tuple(dict.fromkeys(system.notes + truth.notes))
    if not options.get("tokenizer") and not system.signature:
        notes += tokenizer_note(truth)
    tokenizer = options.setdefault("tokenizer", tokenizer_for([system]))
    captions, true_tokens = system.written(tokenizer), reference_tokens(truth, tokenizer)
    notes += first_caption_note([system], options)
    scores = score_captions(
        captions,
        true_tokens,
        inputs=gather(sources, options.get("metrics", ()), system, truth, tokenizer, references),
        decode=system.signature.get("decode"),
        split=system.signature.get("split"),
        **options,
    )
    return ScoredFile(
        scores=scores,
        word_use=compare_word_use(captions.best, true_tokens),
        images=len(captions.best),
        empty=captions.best.count([]),
        matched_by=how if references else "own references",
        source=truth.name,
        notes=notes,
    )
