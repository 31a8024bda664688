"""An explanation as lines of text."""

from __future__ import annotations

import math

from captioner.explanation.explained import Explanation
from captioner.system.foreign import printable
from captioner.text import Vocabulary

RARE = math.log(0.0005)  # of an alternative, which would be printed as 0.0%
END = Vocabulary.specials[Vocabulary.eos_id]
COMPARED = {
    "gradient": "nats that the image adds, compared with the average training image",
    "occlusion": "nats that the word loses if the place is covered where it hurts most",
}


def shown(word: str) -> str:
    """Return a word for people; the end token is none."""
    return "(end)" if word == END else printable(word)


def from_image(explanation: Explanation, place: int) -> float:
    """Return what the image did for a word, in nats; see `COMPARED`."""
    places = explanation.maps[place]
    return (places.sum() if explanation.method == "gradient" else places.max()).item()


def to_rows(explanation: Explanation) -> list[tuple[str, str, str, str, str]]:
    """Return a heading, and a row for each word: word, probability, nats, place, alternatives."""
    rows = [("word", "probability", "from image", "strongest at", "alternatives")]
    for place, word in enumerate(explanation.caption.words):
        others = (
            f"{shown(text)} {math.exp(value):.1%}"
            for text, value in word.alternatives
            if value > RARE
        )
        rows.append(
            (
                shown(word.text),
                f"{math.exp(word.log_prob):.1%}",
                f"{from_image(explanation, place):+.2f}",
                strongest(explanation, place),
                ", ".join(others),
            )
        )
    return rows


def to_table(explanation: Explanation) -> str:
    """Return the caption, and a line for each word."""
    rows = to_rows(explanation)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [explanation.caption.text, ""]
    for text, probability, nats, where, rest in rows:
        line = f"{text:{widths[0]}}  {probability:>{widths[1]}}  {nats:>{widths[2]}}"
        lines.append(f"{line}  {where:{widths[3]}}  {rest}".rstrip())
    return "\n".join([*lines, "", f"from image: {COMPARED[explanation.method]}"])


def strongest(explanation: Explanation, place: int) -> str:
    """Return the row and the column of a word's strongest place, from 1."""
    row, column = divmod(int(explanation.maps[place].argmax()), explanation.maps.shape[2])
    return f"row {row + 1}, column {column + 1}"
