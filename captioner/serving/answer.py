"""Captions -> the JSON of an answer. Its names are those of `captioner caption`'s JSON Lines."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

from captioner.captioning.wording import Wording
from captioner.serving.wish import Wish
from captioner.text.vocabulary import Vocabulary
from captioner.text.words import Caption, Word

JSON = dict[str, object]
DIGITS = 6  # after the decimal point
END = Vocabulary.specials[Vocabulary.eos_id]


@dataclass(frozen=True, slots=True)
class Captioned:
    """The captions of one picture, best first.

    Attributes:
        captions: up to n_best.
        size: width and height of the upright picture, in pixels.
        blank: the CNN sees one colour only, so the captions say nothing about the picture.
        seen: the part that the CNN sees, see `Preprocess.seen`.
        maps: of the words of the first, in nats; empty unless asked for, and where the tokeniser
            splits the caption into other pieces than the search wrote.
        trace: how the first was written, as JSON; None unless asked for.
    """

    captions: list[Caption]
    size: tuple[int, int]
    blank: bool
    seen: tuple[float, float, float, float]
    maps: list[list[list[float]]] = field(default_factory=list)
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
        answer["words"] = [_word(word, wish) | _map(word, wish) for word in best.words]
    if wish.maps:
        answer["map_source"] = wish.maps
    for entry, places in zip(cast(list[JSON], answer.get("words", [])), found.maps, strict=False):
        entry["map"] = [[round(place, DIGITS) for place in row] for row in places]
    if found.trace is not None:
        answer["trace"] = found.trace
    width, height = found.size
    seen = [round(side, DIGITS) for side in found.seen]
    return answer | {"image": {"width": width, "height": height, "seen": seen}}


def _caption(caption: Caption, wish: Wish) -> JSON:
    entry: JSON = {
        "caption": Wording(wish.style)(caption.text),
        "log_prob": _rounded(caption.log_prob),
        "score": _rounded(caption.score),
    }
    if wish.words:
        entry["words"] = [_word(word, wish) for word in caption.words]
    return entry


def _word(word: Word, wish: Wish) -> JSON:
    entry: JSON = {"text": "" if word.text == END else word.text}
    entry["log_prob"] = _rounded(word.log_prob)
    if word.text == END:
        entry["end"] = True
    if wish.words:
        entry["alternatives"] = [_alternative(*choice) for choice in word.alternatives]
    return entry


def _map(word: Word, wish: Wish) -> JSON:
    """Return where the model looked before a word; nothing if that is not asked for."""
    if wish.maps != "attention" or not word.attention:
        return {}
    places = [[round(place, DIGITS) for place in row] for row in word.attention.places]
    return {"map": places, "sentinel": round(word.attention.sentinel, DIGITS)}


def _alternative(text: str, log_prob: float) -> JSON:
    end: JSON = {"end": True} if text == END else {}
    return {"text": "" if text == END else text, "log_prob": _rounded(log_prob)} | end


def _rounded(number: float) -> float:
    """Round as JSON Lines do; 0.0 instead of -0.0."""
    return round(number, DIGITS) or 0.0
