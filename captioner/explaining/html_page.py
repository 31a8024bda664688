"""An explanation as one HTML file that needs no network: its words open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from captioner.config import DecodingConfig
from captioner.explaining.word_table import COMPARED, END, to_rows
from captioner.explanation.explained import Explanation
from captioner.explanation.trace import Trace
from captioner.images.thumbnails import jpeg
from captioner.page.one_file import page_template
from captioner.system.files import whole_file
from captioner.system.version import __version__
from captioner.text import Word

LONGEST = 1024  # pixels of the picture's longer side
QUALITY = 85  # of its JPEG
DIGITS = 4  # significant ones of a map
READING = {
    "gradient": "Choose a word. Orange places made it more probable, blue ones less.",
    "occlusion": "Choose a word. It gets less probable where a patch covers an orange place.",
}


def write_page(
    explanation: Explanation,
    picture: Image.Image,
    seen: tuple[float, float, float, float],
    path: Path,
    *,
    name: str,
    model: str,
    trace: Trace | None = None,
    options: DecodingConfig | None = None,
) -> None:
    """Write an HTML file.

    Args:
        explanation: of the picture.
        picture: RGB.
        seen: the part that the CNN sees, see `Preprocess.seen`.
        path: the file to write, in place of one that captioner wrote.
        name: of the picture.
        model: its name.
        trace: how the caption was written; None: it was not searched for.
        options: search settings, with a trace.

    Raises:
        ConfigError: if a file that captioner did not write is at the path.
    """
    answers = answers_of(explanation, seen)
    text = page_template("explain", ("shared", "base", "page", "inside", "explain")).render(
        name=name,
        model=model,
        caption=explanation.caption.text,
        answers=answers,
        trace=trace and trace.to_json(),
        settings=options and options.model_dump(include={"search", "beam_size"}),
        sources=[answer["map_source"] for answer in answers],
        reading=READING[explanation.method],
        rows=to_rows(explanation),
        note=f"from image: {COMPARED[explanation.method]}",
        jpeg=jpeg(picture, LONGEST, QUALITY),
        version=__version__,
    )
    with whole_file(path, "explanation") as aside:
        aside.write_bytes(text.encode("utf-8", "backslashreplace"))


def answers_of(
    explanation: Explanation, seen: tuple[float, float, float, float]
) -> list[dict[str, Any]]:
    """Return the explanation as the server answers: once for its maps, and once for attention."""
    caption = explanation.caption
    words = [
        _word(word) | {"map": [[_short(value) for value in row] for row in places]}
        for word, places in zip(caption.words, explanation.maps.tolist(), strict=True)
    ]
    looks = [
        _word(word)
        | {
            "map": [[_short(value) for value in row] for row in word.attention.places],
            "sentinel": _short(word.attention.sentinel),
        }
        for word in caption.words
        if word.attention
    ]
    image = {"seen": [_short(side) for side in seen]}
    return [
        {"caption": caption.text, "words": spelled, "map_source": source, "image": image}
        for source, spelled in ((explanation.method, words), ("attention", looks))
        if spelled
    ]


def _word(word: Word) -> dict[str, Any]:
    others = [_option(text, log_prob) for text, log_prob in word.alternatives]
    return _option(word.text, word.log_prob) | {"alternatives": others}


def _option(text: str, log_prob: float) -> dict[str, Any]:
    end = {"text": "", "end": True} if text == END else {"text": text}
    return end | {"log_prob": _short(log_prob)}


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
