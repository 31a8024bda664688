"""An explanation as a file, of the kind that its name ends in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from captioner.config import DecodingConfig
from captioner.encoder.preprocess import Preprocess
from captioner.explaining.html_page import LONGEST, write_page
from captioner.explaining.picture import draw_explanation
from captioner.explanation.explained import Explanation
from captioner.explanation.fonts import advice, missing
from captioner.explanation.trace import Trace
from captioner.images.decode import read_image


def write_output(
    explanation: Explanation,
    preprocess: Preprocess,
    image: str,
    models: Sequence[Path],
    path: Path,
    trace: Trace | None,
    options: DecodingConfig,
) -> str:
    """Write a page if the path ends in .html, else a picture.

    Args:
        explanation: of an image.
        preprocess: of the models.
        image: path of the image.
        models: model directories.
        path: the file to write.
        trace: how the caption was written, for a page; None: it was not searched for.
        options: search settings.

    Returns:
        What to install if the picture lacks letters; empty if it lacks none.

    Raises:
        ConfigError: if a file that captioner did not write is at the path.
    """
    if path.suffix.lower() != ".html":
        draw_explanation(explanation, path)
        return advice(missing(explanation.caption.text))
    picture = read_image(Path(image), at_least=LONGEST)
    names = [folder.parent.name if folder.name == "model" else folder.name for folder in models]
    seen = preprocess.seen(*picture.size)
    write_page(
        explanation,
        picture,
        seen,
        path,
        name=Path(image).name,
        model=" and ".join(names),
        trace=trace,
        options=options,
    )
    return ""
