"""What a request asks for, read from its query."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

from captioner.captioner import Captioner
from captioner.captioning.wording import STYLES, Style
from captioner.config import DecodingConfig, DecodingOverrides
from captioner.errors import check_names
from captioner.serving.refusal import RefusedError
from captioner.system.foreign import excerpt

MOST = 50  # captions, alternatives or hypotheses of one picture
MOST_DIGITS = 9  # of a number
MOST_TOKENS = 100  # of a caption, unless the model's own setting is more
OWN = ("model", "n_best", "words", "maps", "trace", "style")
SEVERAL = "forbid"
Maps: TypeAlias = Literal["", "attention", "gradient"]
YES_NO = {"true": True, "1": True, "": True, "false": False, "0": False}


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request asks for.

    Attributes:
        model: its name.
        options: search settings.
        n_best: captions.
        words: alternatives for each word.
        maps: where each word came from; empty: no maps.
        trace: how the first caption was written.
        style: of the captions.
    """

    model: str
    options: DecodingConfig
    n_best: int = 1
    words: int = 0
    maps: Maps = ""
    trace: bool = False
    style: Style = "plain"


def read_wish(query: Iterable[tuple[str, str]], models: Mapping[str, Captioner]) -> Wish:
    """Read a query; the first model is the default.

    Raises:
        RefusedError: if a name is unknown, repeated or without a valid value.
        ConfigError: if a name is unknown, or a search setting does not fit the model.
    """
    given, forbidden = _collect(query)
    check_names("", given, (*OWN, *DecodingConfig.model_fields))
    model = given.pop("model", next(iter(models)))
    if model not in models:
        raise RefusedError(404, f"model: no {excerpt(model, 60)}; served: {', '.join(models)}")
    style = given.pop("style", "plain")
    if style not in STYLES:
        raise RefusedError(400, f"style: must be {' or '.join(STYLES)}, given {excerpt(style, 60)}")
    n_best = _number(given, "n_best", 1, least=1)
    words = _number(given, "words", 0, least=0)
    maps = _maps(given, models[model])
    trace = _flag(given, "trace")
    overrides: dict[str, object] = {**given} | ({SEVERAL: (*forbidden,)} if forbidden else {})
    options = models[model].settings(n_best=n_best, **cast(DecodingOverrides, overrides))
    _check_cost(options, models[model].decoding)
    return Wish(model, options, n_best, words, maps, trace, cast(Style, style))


def _collect(query: Iterable[tuple[str, str]]) -> tuple[dict[str, str], list[str]]:
    """Return the values by name, and the forbidden words."""
    given: dict[str, str] = {}
    forbidden: list[str] = []
    for name, value in query:
        if name == SEVERAL:
            forbidden.append(value)
        elif name in given:
            raise RefusedError(400, f"{excerpt(name, 60)}: given more than once; give one value")
        else:
            given[name] = value
    return given, forbidden


def _number(given: dict[str, str], name: str, default: int, *, least: int) -> int:
    text = given.pop(name, str(default))
    is_short = text.isdecimal() and text.isascii() and len(text) <= MOST_DIGITS
    if not (is_short and least <= int(text) <= MOST):
        raise RefusedError(400, f"{name}: must be {least} to {MOST}, given {excerpt(text, 60)}")
    return int(text)


def _maps(given: dict[str, str], captioner: Captioner) -> Maps:
    """Return the kind of the maps: attention where the model has it, unless another is named."""
    looks = captioner.map_size() > 0
    if (kind := given.get("maps")) in ("attention", "gradient"):
        del given["maps"]
        if kind == "attention" and not looks:
            raise RefusedError(400, "maps: the model has no attention; maps=gradient works always")
        return cast(Maps, kind)
    return ("attention" if looks else "gradient") if _flag(given, "maps") else ""


def _flag(given: dict[str, str], name: str) -> bool:
    text = given.pop(name, "false")
    if text.lower() not in YES_NO:
        raise RefusedError(400, f"{name}: must be true or false, given {excerpt(text, 60)}")
    return YES_NO[text.lower()]


def _check_cost(options: DecodingConfig, own: DecodingConfig) -> None:
    """Refuse a search that takes far longer than others."""
    for name, most in (("beam_size", MOST), ("max_length", MOST_TOKENS)):
        limit, given = max(most, getattr(own, name)), getattr(options, name)
        if given > limit:
            raise RefusedError(400, f"{name}: must be at most {limit}, given {given}")
