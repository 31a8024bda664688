"""Captions -> the JSON of an answer. Its names are those of `captioner caption`'s JSON Lines."""

from __future__ import annotations

from dataclasses import dataclass

from captioner.captioning.wording import Wording
from captioner.serving.wish import Wish
from captioner.text.vocabulary import Vocabulary
from captioner.text.words import Caption, Word

JSON = dict[str, object]
END = Vocabulary.specials[Vocabulary.eos_id]


@dataclass(frozen=True, slots=True)
class Captioned:
    """The captions of one picture, best first.

    Attributes:
        captions: up to n_best.
        size: width and height of the upright picture, in pixels.
        blank: the CNN sees one colour only, so the captions say nothing about the picture.
        trace: how the first was written, as JSON; None unless asked for.
    """

    captions: list[Caption]
    size: tuple[int, int]
    blank: bool
    trace: JSON | None = None

    @property
    def status(self) -> str:
        """`ok` or `blank`, as in JSON Lines."""
        return "blank" if self.blank else "ok"


def to_answer(wish: Wish, found: Captioned) -> JSON:
    """Return the answer to a request for one picture."""
    best = found.captions[0]
    answer: JSON = {"model": wish.model, "status": found.status}
    answer |= _caption(best, wish)
    answer["n_best"] = [_caption(caption, wish) for caption in found.captions]
    if wish.words or wish.maps:
        answer["words"] = [_word(word, wish) for word in best.words]
    if wish.maps and any(word.attention for word in best.words):
        answer["map_source"] = "attention"
    if found.trace is not None:
        answer["trace"] = found.trace
    answer["image"] = dict(zip(("width", "height"), found.size, strict=True))
    return answer


def _caption(caption: Caption, wish: Wish) -> JSON:
    entry: JSON = {
        "caption": Wording(wish.style)(caption.text),
        "log_prob": _rounded(caption.log_prob),
        "score": _rounded(caption.score),
    }
    if wish.words:
        entry["words"] = [_word(word, wish, with_map=False) for word in caption.words]
    return entry


def _word(word: Word, wish: Wish, *, with_map: bool = True) -> JSON:
    entry: JSON = {"text": "" if word.text == END else word.text}
    entry["log_prob"] = _rounded(word.log_prob)
    if word.text == END:
        entry["end"] = True
    if wish.words:
        entry["alternatives"] = [_alternative(*choice) for choice in word.alternatives]
    if wish.maps and with_map and word.attention:
        places = word.attention.places
        entry["map"] = [[round(place, 6) for place in row] for row in places]
        entry["sentinel"] = round(word.attention.sentinel, 6)
    return entry


def _alternative(text: str, log_prob: float) -> JSON:
    end: JSON = {"end": True} if text == END else {}
    return {"text": "" if text == END else text, "log_prob": _rounded(log_prob)} | end


def _rounded(number: float) -> float:
    """Round as JSON Lines do; 0.0 instead of -0.0."""
    return round(number, 6) or 0.0
