"""Counts for docs/results/mistakes.md: what captions say beside what people say.

    python benchmarks/mistakes.py NAME=PREDICTIONS[,PREDICTIONS...] ...

PREDICTIONS is a `predictions.jsonl` of `captioner evaluate`; several are the seeds of one model.
For each word, the table counts the captions that contain it, in brackets the fraction of these that
agree with a reference of their image, and the images with such a reference. The captions with the
lowest CIDEr follow.
"""

from __future__ import annotations

import json
import sys
from statistics import mean
from typing import Any

from captioner.text import tokenize

WORDS = ("two", "three", "group", "shirt", "man", "woman", "girl")
Rows = list[dict[str, Any]]


def main() -> None:
    models: dict[str, list[Rows]] = {}
    for given in sys.argv[1:]:
        name, _, paths = given.partition("=")
        models[name] = [read(path) for path in paths.split(",")]
    if not models:
        sys.exit(__doc__)
    first = next(iter(models.values()))[0]
    print(f"| | {' | '.join(models)} | people |")
    print("|---" * (len(models) + 2) + "|")
    for word in WORDS:
        cells = [said(seeds, word) for seeds in models.values()]
        print(f'| "{word}" | {" | ".join(cells)} | {sum(held(row, word) for row in first)} |')
    for title, count in (
        ("captions that repeat three words", lambda rows: sum(map(repeats, rows))),
        ("different captions", lambda rows: len({row["caption"] for row in rows})),
        ("different words", lambda rows: len({w for row in rows for w in row["caption"].split()})),
    ):
        cells = [f"{mean(map(count, seeds)):.0f}" for seeds in models.values()]
        print(f"| {title} | {' | '.join(cells)} | |")
    for name, seeds in models.items():
        print(f"\n{name}, seed 0, the lowest CIDEr:")
        for row in sorted(seeds[0], key=lambda row: row["scores"]["cider"])[:40]:
            print(f"{row['image_id']}: {row['caption']} | {row['references'][0]}")


def read(path: str) -> Rows:
    """Read the captions of a split."""
    with open(path, encoding="utf-8") as lines:  # noqa: PTH123
        rows = [json.loads(line) for line in lines]
    return [row | {"words": [set(tokenize(text)) for text in row["references"]]} for row in rows]


def held(row: dict[str, Any], word: str) -> bool:
    """Return whether one of the references contains a word."""
    return any(word in words for words in row["words"])


def said(seeds: list[Rows], word: str) -> str:
    """Return the mean count of captions with a word, and how many of them a reference supports."""
    chosen = [[row for row in rows if word in row["caption"].split()] for rows in seeds]
    right = mean(mean(held(row, word) for row in rows) if rows else 0.0 for rows in chosen)
    return f"{mean(map(len, chosen)):.0f} ({right:.0%})"


def repeats(row: dict[str, Any]) -> bool:
    """Return whether a caption has the same three words in a row twice."""
    words = row["caption"].split()
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return len(set(triples)) < len(triples)


if __name__ == "__main__":
    main()
