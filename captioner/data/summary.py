"""Summarises a data set and its problems as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from captioner.data.dataset import Dataset, Problem
from captioner.errors import DataError
from captioner.system.foreign import plain


def describe(dataset: Dataset, extra: Iterable[tuple[str, str]] = ()) -> str:
    """Return a table with images and captions per split, problems by kind and notes.

    Args:
        dataset: the data set.
        extra: further (label, text) rows below the counts, such as the vocabulary.

    Returns:
        Lines, without a final line feed.
    """
    captions: Counter[str] = Counter()
    for example in dataset.examples:
        captions[example.split] += len(example.captions)
    counts = [(plain(split, 40), n, captions[split]) for split, n in dataset.splits.items()]
    counts.append(("total", len(dataset.examples), captions.total()))
    extra = list(extra)
    width = max(map(len, ["skipped", *(row[0] for row in counts), *(row[0] for row in extra)]))
    lines = [
        f"{'data':{width}}  {plain(dataset.name)} ({dataset.format}), {plain(dataset.root)}",
        f"{'':{width}}  {'images':>9}  {'captions':>9}",
        *(f"{label:{width}}  {images:>9,}  {texts:>9,}" for label, images, texts in counts),
        *(f"{label:{width}}  {plain(text)}" for label, text in extra),
        *(f"{'skipped':{width}}  {line}" for line in _summary(dataset.problems) or ["nothing"]),
        *(f"{'note':{width}}  {plain(note)}" for note in dataset.notes),
    ]
    return "\n".join(lines)


def refuse_problems(dataset: Dataset, most: int = 10) -> None:
    """Raise an error if a data set has problems.

    Args:
        dataset: the data set.
        most: maximum problems to list.

    Raises:
        DataError: with the number of problems and the first `most`, one per line.
    """
    problems = dataset.problems
    if problems:
        listed = [f"  {problem.where}: {problem.kind}: {problem.detail}" for problem in problems]
        shown = [*listed[:most], *(["  ..."] if len(listed) > most else [])]
        head = f"{plain(dataset.root)}: {len(problems):,} problems in strict mode (data.strict)"
        raise DataError(head, *shown)


def _summary(problems: tuple[Problem, ...]) -> list[str]:
    """Return one line per kind, the most frequent first: count, kind, first problem."""
    first = {problem.kind: problem for problem in reversed(problems)}
    return [
        f"{count:,} {kind} (first at {first[kind].where}: {first[kind].detail})"
        for kind, count in Counter(problem.kind for problem in problems).most_common()
    ]
