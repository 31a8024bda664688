"""Whatever a public call is given, it works or raises one line of captioner's own errors."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import draw

import captioner as public
from captioner.captioner import Captioner
from captioner.captioning.records import CaptioningOptions
from captioner.config import CnnConfig, Config, DecodingConfig, TrainingConfig
from captioner.errors import CaptionerError, ConfigError
from captioner.evaluation.evaluate import evaluate
from captioner.training.run import train

import toys

NONSENSE: tuple[object, ...] = (
    *(None, 3, -1, 1.5, float("nan"), True, 10**30, "", "nonsense", "\0", b"\0", object(), print),
    *([], [None], [3], ["x"], [["a"], [3]], {}, {"a": 1}, Path("/nowhere")),
    *(torch.zeros(2), np.zeros((2, 2))),
)
METHODS = (
    *("caption", "encode", "search", "search_each", "explain", "trace", "score", "embed"),
    *("map_words", "trace_features"),
    *("settings", "to", "save"),
)
# It starts a Ray cluster, and has tests of its own.
LEFT_OUT = {"caption_with_ray"}


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    return toys.captioner()


def public_calls(captioner: Captioner) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name in sorted(set(public.__all__) - LEFT_OUT):
        thing = getattr(public, name)
        is_error = isinstance(thing, type) and issubclass(thing, Exception)
        if callable(thing) and not is_error:
            yield name, thing
    yield "load", Captioner.load
    for name in METHODS:
        yield name, getattr(captioner, name)


def test_nonsense_is_one_line_of_our_own_errors(
    captioner: Captioner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # `save` writes where it is told
    good: dict[str, Any] = {
        "captioner": captioner,
        "encoder": captioner.encoder,
        "decoder": captioner.decoder,
        "vocabulary": captioner.vocabulary,
        "items": [],
        "image": draw(0),
        "images": [draw(0)],
        "features": torch.zeros(1, captioner.encoder.feature_size),
        "captions": ["a b"],
        "hypotheses": [["a", "b"]],
        "a": [["a", "b"]],
        "b": [["a", "b"]],
        "references": [[["a", "b"]]],
    }
    for name, call in public_calls(captioner):
        parameters = inspect.signature(call).parameters.values()
        needed = [p.name for p in parameters if p.default is p.empty and p.kind < p.VAR_POSITIONAL]
        for changed in [p.name for p in parameters if p.kind != p.VAR_KEYWORD]:
            for value in NONSENSE:
                given = {key: good.get(key, value) for key in needed} | {changed: value}
                refuse(f"{name}({changed}={value!r:.60})", call, given)


def refuse(what: str, call: Callable[..., Any], given: dict[str, Any]) -> None:
    try:
        result = call(**given)
        if hasattr(result, "__next__"):
            list(islice(result, 3))
    except CaptionerError as error:
        assert all("\n" not in line for line in error.args), what  # a list has several lines
    except Exception as error:
        raise AssertionError(f"{what} raises {type(error).__name__}: {error}") from error


def test_a_misspelt_setting_gets_a_suggestion(captioner: Captioner) -> None:
    def caption(**settings: Any) -> object:
        return captioner.caption(draw(0), **settings)

    calls: list[tuple[str, str, Callable[..., object]]] = [
        *(("beamsize", "beam_size", call) for call in (caption, captioner.settings)),
        *(("beamsize", "beam_size", call) for call in (DecodingConfig,)),
        *(("num_beams", "beam_size", call) for call in (caption, DecodingConfig)),
        ("batchsize", "batch_size", caption),
        ("onerror", "on_error", caption),
        ("pertoken", "per_token", captioner.score),
        ("nbest", "n_best", captioner.search),
        ("nbest", "n_best", CaptioningOptions),
        ("devise", "device", Captioner.load),
        ("beam_size", "known: captioner, items", public.caption_files),
        ("option", "options", public.caption_files),
        ("recursiv", "recursive", public.list_images),
        ("formt", "format", public.load_dataset),
        ("metric", "metrics", public.score_captions),
        ("outputs", "output", public.caption_with_ray),
        ("over_write", "known: config, folder, ", train),
        ("nbest", "n_best", evaluate),
        ("epoch", "epochs", TrainingConfig),
        ("lr", "learning_rate", TrainingConfig),
        ("bacbone", "backbone", CnnConfig),
        ("trainning", "training", Config),
    ]
    for given, meant, call in calls:
        with pytest.raises(ConfigError) as error:
            call(**{given: 3})
        assert len(error.value.args) == 1
        what = meant if ":" in meant else f"did you mean {meant}?"
        assert f"{given}: no such setting (" in str(error.value) and what in str(error.value)
    with pytest.raises(ConfigError, match=r"^training\.epochs: "):
        Config(training={"epochs": 0})


def test_encode_takes_all_that_caption_takes(captioner: Captioner, tmp_path: Path) -> None:
    draw(0).save(tmp_path / "a.png")
    expected = captioner.encode([draw(0)])
    for image in (tmp_path / "a.png", (tmp_path / "a.png").read_bytes(), np.asarray(draw(0))):
        torch.testing.assert_close(captioner.encode([image]), expected)
        torch.testing.assert_close(captioner.encode(image), expected)
    assert captioner.encode([]).shape == (0, expected.shape[1])
