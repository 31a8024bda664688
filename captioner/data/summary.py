"""What a data set holds and what had to be left out, for people to read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from captioner.data.dataset import Dataset, Problem
from captioner.errors import DataError
from captioner.system.foreign import plain


def describe(dataset: Dataset, extra: Iterable[tuple[str, str]] = ()) -> str:
    """A plain-text table: images and captions per split, problems by kind, notes.

    Args:
        dataset: what was loaded.
        extra: more (label, text) rows, shown below the counts: vocabulary, coverage.

    Returns:
        Lines without a final line feed.
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
    """Turn the problems of a data set into an error, if it has any.

    Args:
        dataset: what was loaded.
        most: problems to list.

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
    """One line per kind, the most frequent first: count, kind, first place."""
    first = {problem.kind: problem for problem in reversed(problems)}
    return [
        f"{count:,} {kind} (first at {first[kind].where}: {first[kind].detail})"
        for kind, count in Counter(problem.kind for problem in problems).most_common()
    ]
