"""Every setting at its bounds: what lies inside, what lies outside, and what uses each.

`edges()` lists them, `check(edge)` says what is wrong with one. As a script it prints a count:

    python tests/config_edges.py
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
import torch
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from captioner.config import Config, load_config
from captioner.data.caption_table import CaptionTable, epoch_order
from captioner.data.load import load_dataset
from captioner.decoder.decoder import Decoder
from captioner.decoder.neighbours import Neighbours, count_ngrams
from captioner.encoder.preprocess import Preprocess
from captioner.errors import CaptionerError, ConfigError, ImageError
from captioner.text import Vocabulary
from captioner.training import bptt
from captioner.training.update import Updater, check_room

import toys

# What a setting needs beside it to have an effect.
COMPANIONS: dict[str, dict[str, Any]] = {
    "samples": {"objective": "scst", "start_from": "runs/a"},
    "bleu_weight": {"objective": "scst", "start_from": "runs/a"},
    "objective": {"start_from": "runs/a"},
    "nonlinearity": {"cell": "rnn"},
    "min_length": {"max_length": 1000},
    "temperature": {"search": "sample"},
    "top_k": {"search": "sample"},
    "top_p": {"search": "sample"},
    "seed": {"search": "sample"},
}
# YAML that is no number of any setting.
NO_NUMBERS = (".nan", ".inf", "-.inf", "1e400", "-1e400", "word", "true", "[]", "{}", "2026-11-27")
HUGE = (
    "1" + 30 * "0",
    "-1" + 30 * "0",
    "1" + 400 * "0",
    "0x" + 5000 * "f",
    "1.0e+308",
    "-1.0e+308",
)


@dataclass(frozen=True)
class Setting:
    """A number, a choice or a switch of the config."""

    section: str
    name: str
    kind: type
    low: float | None = None
    high: float | None = None
    open_low: bool = False
    open_high: bool = False
    choices: tuple[str, ...] = ()
    optional: bool = False

    def inside(self) -> list[Any]:
        """The values at the bounds, and their neighbours inside."""
        if self.choices:
            return list(self.choices)
        if self.kind is bool:
            return [False, True]
        low, high = self.low, self.high
        assert low is not None, f"{self.section}.{self.name} has no lower bound"
        assert high is not None, f"{self.section}.{self.name} has no upper bound"
        if self.kind is int:
            return sorted({low, low + 1, high - 1, high})
        return [
            math.nextafter(low, math.inf) if self.open_low else low,
            math.nextafter(low, math.inf),
            (low + high) / 2,
            math.nextafter(high, -math.inf),
            math.nextafter(high, -math.inf) if self.open_high else high,
        ]

    def outside(self) -> list[str]:
        """YAML of values that are to be refused."""
        if self.choices or self.kind is bool:
            return ["3", "word", "[]", ".nan", HUGE[0]]
        low, high = self.low, self.high
        assert low is not None
        assert high is not None
        if self.kind is int:
            near = [str(low - 1), str(high + 1), "1.5", "1e-3"]
        else:
            below = low if self.open_low else math.nextafter(low, -math.inf)
            above = high if self.open_high else math.nextafter(high, math.inf)
            near = [repr(below), repr(above), "-1.0"]
        return [*near, *NO_NUMBERS, *HUGE, *([] if self.optional else ["null"])]


@dataclass(frozen=True)
class Edge:
    """One value of one setting, as Python has it or as YAML; and whether it is allowed."""

    setting: Setting
    value: Any
    allowed: bool

    def __str__(self) -> str:
        return f"{self.setting.section}.{self.setting.name}={self.value!s:.30}"


def settings(model: type[BaseModel] = Config, section: str = "") -> Iterator[Setting]:
    """Walk the models: every setting that is no text, path or list."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from settings(kind, name)
        elif setting := _setting(section, name, field):
            yield setting


def _setting(section: str, name: str, field: FieldInfo) -> Setting | None:
    kind, rules, optional = field.annotation, list(field.metadata), False
    if get_origin(kind) in (Union, UnionType):
        (kind,) = (each for each in get_args(kind) if each is not type(None))
        optional = True
    if get_origin(kind) is Annotated:
        kind, *more = get_args(kind)
        rules += [
            rule
            for each in more
            for rule in (each.metadata if isinstance(each, FieldInfo) else [each])
        ]
    if get_origin(kind) is Literal:
        return Setting(section, name, str, choices=get_args(kind), optional=optional)
    if kind not in (int, float, bool):
        return None
    found: dict[str, Any] = {}
    for rule in rules:
        match rule:
            case annotated_types.Ge(ge=low):
                found["low"] = low
            case annotated_types.Gt(gt=low):
                found |= {"low": low, "open_low": True}
            case annotated_types.Le(le=high):
                found["high"] = high
            case annotated_types.Lt(lt=high):
                found |= {"high": high, "open_high": True}
    return Setting(section, name, kind, optional=optional, **found)


def edges() -> list[Edge]:
    """Every setting at its bounds, and beside them."""
    return [
        Edge(setting, value, allowed)
        for setting in settings()
        for allowed, values in ((True, setting.inside()), (False, setting.outside()))
        for value in values
    ]


def beside(section: str, name: str) -> dict[str, Any]:
    """What a setting needs beside it."""
    model = Config.model_fields[section].annotation
    assert model is not None
    if section != "decoding" and name == "seed":
        return {}
    return {k: v for k, v in COMPANIONS.get(name, {}).items() if k in model.model_fields}


def check(edge: Edge) -> str | None:
    """Say what is wrong with an edge: it is refused or allowed wrongly, or its use fails."""
    setting = edge.setting
    section = beside(setting.section, setting.name)
    if edge.allowed:
        config = Config.model_validate({setting.section: section | {setting.name: edge.value}})
        return USES[setting.section](config)
    words = [f"{setting.section}.{key}={value}" for key, value in section.items()]
    try:
        load_config(None, [*words, f"{setting.section}.{setting.name}={edge.value}"])
    except ConfigError as error:
        return one_mistake(str(error), f"{setting.section}.{setting.name}")
    return "is allowed"


def one_mistake(message: str, name: str) -> str | None:
    """Say what is wrong with the message about one mistake."""
    lines = message.splitlines()
    if len(lines) != 2 or not lines[1].startswith((f"{name}: ", f"--set {name}=")):
        return f"not one line about it: {message:.200}"
    return f"{len(lines[1])} characters" if len(lines[1]) > 600 else None


@cache
def _model() -> Any:
    model = toys.captioner(hidden_size=4, embed_size=3)
    words = torch.randint(4, 10, (8, 5), generator=torch.Generator().manual_seed(1))
    ngrams = count_ngrams(words, torch.full((8,), 5), torch.arange(8))
    states = torch.randn(8, 8, generator=torch.Generator().manual_seed(2))
    model.neighbours = Neighbours(torch.nn.functional.normalize(states), **ngrams)
    return model


@cache
def _data() -> Path:
    return toys.data_set(Path(tempfile.mkdtemp(prefix="captioner-edges-")))


def _search(config: Config) -> str | None:
    model = _model()
    features = torch.randn(
        2, model.encoder.feature_size, generator=torch.Generator().manual_seed(0)
    )
    for found in model.search_each(features, config.decoding):
        if isinstance(found, ImageError):
            return str(found)
        if not all(math.isfinite(c.log_prob) and math.isfinite(c.score) for c in found):
            return "a score is no number"
    return None


def _step(config: Config) -> str | None:
    """Take one step, which leaves numbers; order an epoch."""
    training = config.training
    decoder = toys.decoder()
    torch.manual_seed(training.seed)
    updater = Updater(decoder, training, training.epochs * 10, fp16=False)
    batch = toys.batch()
    for part in range(training.accumulate):
        bptt.backward(
            decoder,
            batch.subset(part, training.accumulate),
            label_smoothing=training.label_smoothing,
            window=training.bptt_window,
        )
    updater.update(training.warmup_steps)
    lengths = torch.tensor([3, 4, 5])
    epoch_order(lengths, training.batch_size, seed=training.seed, epoch=training.epochs)
    state = [*decoder.state_dict().values()]
    state += [] if updater.average is None else updater.average.state_dict().values()
    return None if all(tensor.isfinite().all() for tensor in state) else "a weight is no number"


def _build(config: Config) -> str | None:
    """Build without memory; say how much it would take where that is too much."""
    features = {"feature_size": 6, "places": 2, "channels": 2}
    sizes = {"vocab_size": 20, **features}
    with torch.device("meta"):
        Decoder(config.decoder, **sizes)
    try:
        check_room(
            config.decoder, config.training, torch.device("cpu"), vocab_size=20, features=features
        )
    except ConfigError as error:
        return None if " GB are free" in str(error) and "\n" not in str(error) else str(error)
    if max(config.decoder.hidden_size, config.decoder.embed_size) <= 2**10:
        decoder = Decoder(config.decoder, **sizes).eval()
        logits, _ = decoder(torch.tensor([[1, 2]]), decoder.init_hidden(torch.ones(1, 6)))
        return None if logits.isfinite().all() else "a score is no number"
    return None


def _see(config: Config) -> str | None:
    side = config.encoder.image_size or 224
    pixels = Preprocess(side, side).pixels(toys.Image.new("RGB", (40, 30)))
    return None if pixels.shape == (3, side, side) else "another size"


def _read(config: Config) -> str | None:
    captions = [[["a", "red", "square"]], [["a", "square"]]]
    words = Vocabulary.build((w for image in captions for w in image), config.text.min_count)
    CaptionTable.build(torch.zeros(2, 3), captions, words, max_length=config.text.max_length)
    return None


def _load(config: Config) -> str | None:
    data = config.data
    try:
        load_dataset(_data(), holdout=data.holdout, restval=data.restval, strict=data.strict)
    except CaptionerError as error:
        return None if "\n" not in str(error) else str(error)
    return None


USES: dict[str, Callable[[Config], str | None]] = {
    "data": _load,
    "text": _read,
    "encoder": _see,
    "decoder": _build,
    "training": _step,
    "decoding": _search,
}


def main() -> int:
    """Walk all edges; print what is wrong, and a count."""
    counts: Counter[str] = Counter()
    for edge in edges():
        try:
            wrong = check(edge)
        except Exception as error:
            wrong = f"{type(error).__name__}: {error}"
        counts["allowed" if edge.allowed else "refused"] += 1
        if wrong:
            counts["wrong"] += 1
            print(f"{edge}: {wrong}")
    number = len(list(settings()))
    print(
        f"{number} settings, {counts['allowed']} values inside their bounds, "
        f"{counts['refused']} outside, {counts['wrong']} wrong"
    )
    return int(counts["wrong"] > 0)


if __name__ == "__main__":
    sys.exit(main())
