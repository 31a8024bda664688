"""What a public docstring says is raised is raised, and every case is tried here."""

import inspect
import re
from functools import partial
from io import StringIO
from pathlib import Path

import pytest
import torch
from conftest import random_state
from PIL import Image

import captioner
from captioner import (
    Caption,
    Captioner,
    CaptionerError,
    CaptioningOptions,
    CiderD,
    ConfigError,
    DataError,
    ImageError,
    ModelError,
    PreparedReferences,
    Record,
    SystemCaptions,
    caption_files,
    caption_with_ray,
    detokenize,
    draw_maps,
    list_images,
    load_dataset,
    score_captions,
    sentence,
    tokenize,
)
from captioner.decoder.ensemble import Ensemble
from captioner.encoder.encoder import FrozenEncoder
from captioner.encoder.preprocess import Preprocess
from captioner.encoder.weights import EncoderSpec

import toys

GREY = Image.new("RGB", (40, 40))


def closed() -> StringIO:
    file = StringIO("a.png")
    file.close()
    return file


def sound() -> Captioner:
    return toys.captioner()


def broken() -> Captioner:
    """A model whose weights overflow."""
    model = toys.captioner()
    for weights in model.decoder.parameters():
        weights.data.fill_(torch.inf)
    return model


def ensemble() -> Captioner:
    model = toys.captioner()
    columns = [torch.arange(model.encoder.feature_size)] * 2
    model.decoder = Ensemble([model.decoder, model.decoder], columns)
    return model


def without_common_map(method: str) -> None:
    """Ask an ensemble of models with different grids for maps."""
    models = [toys.captioner(toys.encoder(grid=grid), attention="spatial") for grid in (2, 3)]
    model = models[0]
    columns = [torch.arange(each.encoder.feature_size) for each in models]
    model.decoder = Ensemble([each.decoder for each in models], columns)
    if method == "map_size":
        model.map_size()
    getattr(model, method)(features(model), maps=True)


def features(model: Captioner) -> torch.Tensor:
    return torch.zeros(1, model.encoder.feature_size)


def mapped(model: Captioner, text: str = "a dog") -> None:
    side = model.encoder.preprocess.crop_size
    caption = Caption(text, 0.0, 0.0, finished=bool(text))
    model.map_words(torch.zeros(3, side, side, dtype=torch.uint8), features(model), caption)


def blind() -> Captioner:
    model = toys.captioner()
    for weights in model.encoder.parameters():
        weights.data.fill_(torch.inf)
    return model


def of_one_pixel() -> Captioner:
    spec = EncoderSpec("shufflenet_v2_x0_5", {}, Preprocess(1, 1))
    return toys.captioner(FrozenEncoder(spec, random_state("shufflenet_v2_x0_5"), "fp32"))


def saved(device: str = "cpu") -> Path:
    sound().save("model")
    Captioner.load("model", device)
    return Path("model")


def on_ray(model: str | Path, **options: float) -> None:
    pytest.importorskip("ray")
    caption_with_ray(model, (), Path("out.jsonl"), **options)


def without_cluster() -> None:
    def refuse(*_: object) -> None:
        raise ConnectionError("nobody answers")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("captioner.captioning.ray._connected", refuse)
        on_ray(saved())


def unlisted() -> None:
    row = b'{"output": "a", "path": "\xff", "kind": null, "message": "m"}\n'
    Path("errors.jsonl").write_bytes(row.replace(b"\xff", b"a") + row)
    on_ray(saved())


CASES = {
    ("Captioner.to", ConfigError): lambda: sound().to("cuda:99"),
    ("Captioner.encode", ImageError): lambda: blind().encode([GREY]),
    ("Captioner.search", ConfigError): lambda: sound().search(features(sound()), n_best=0),
    ("Captioner.search", ImageError): lambda: broken().search(features(broken())),
    ("Captioner.search_each", ConfigError): lambda: sound().search_each(
        features(sound()), n_best=0
    ),
    **{
        (f"Captioner.{name}", ModelError): partial(without_common_map, name)
        for name in ("map_size", "search", "search_each", "trace_features")
    },
    ("Captioner.settings", ConfigError): lambda: sound().settings(beam_size=0),
    ("Captioner.caption", ConfigError): lambda: sound().caption([], beam_size=0),
    ("Captioner.caption", ImageError): lambda: sound().caption(b"no image"),
    ("Captioner.trace", ImageError): lambda: broken().trace(GREY),
    ("Captioner.trace", ConfigError): lambda: sound().trace(GREY, units=-1),
    ("Captioner.trace_features", ImageError): lambda: broken().trace_features(features(broken())),
    ("Captioner.trace_features", ConfigError): lambda: sound().trace_features(
        features(sound()), units=-1
    ),
    ("Captioner.score", ImageError): lambda: sound().score(b"no image", ["a dog"]),
    ("Captioner.score", ConfigError): lambda: sound().score(GREY, [1]),
    ("Captioner.explain", ImageError): lambda: sound().explain(b"no image"),
    ("Captioner.explain", ConfigError): lambda: sound().explain(GREY, method="magic"),
    ("Captioner.explain", ModelError): lambda: of_one_pixel().explain(GREY),
    ("Captioner.map_words", ImageError): lambda: mapped(broken()),
    ("Captioner.map_words", ConfigError): lambda: mapped(sound(), ""),
    ("Captioner.map_words", ModelError): lambda: mapped(of_one_pixel()),
    ("Captioner.embed", ConfigError): lambda: sound().embed([1]),
    ("Captioner.embed", ModelError): lambda: broken().embed(["a dog"]),
    ("Captioner.single_decoder", ModelError): lambda: ensemble().single_decoder("saved"),
    ("Captioner.save", ModelError): lambda: sound().save(__file__),
    ("Captioner.save", ConfigError): lambda: sound().save("x", storage="fp8"),
    ("Captioner.load", ModelError): lambda: Captioner.load("nowhere"),
    ("Captioner.load", ConfigError): lambda: saved("cuda:99"),
    ("CiderD", DataError): lambda: CiderD([]),
    ("CiderD.score", DataError): lambda: CiderD([[["a"]]]).score([]),
    ("PreparedReferences", DataError): lambda: PreparedReferences([[]]),
    ("PreparedReferences.check", DataError): lambda: PreparedReferences([[["a"]]]).check([]),
    ("caption_files", ConfigError): lambda: next(
        caption_files(sound(), list_images("x"), how=CaptioningOptions(n_best=0))
    ),
    ("draw_maps", ConfigError): lambda: draw_maps(Record("photo.jpg"), "map.png"),
    ("caption_with_ray", ConfigError): lambda: on_ray("nowhere", num_gpus=-1),
    ("caption_with_ray", ModelError): lambda: on_ray("nowhere"),
    ("caption_with_ray", CaptionerError): without_cluster,
    ("caption_with_ray", DataError): unlisted,
    ("PreparedReferences", ConfigError): lambda: PreparedReferences(None),
    ("SystemCaptions", ConfigError): lambda: SystemCaptions(["a dog"]),
    ("SystemCaptions", DataError): lambda: SystemCaptions([[]]),
    ("detokenize", ConfigError): lambda: detokenize([3]),
    ("list_images", ConfigError): lambda: next(list_images(3)),
    ("list_images", DataError): lambda: next(list_images("-", stdin=closed())),
    ("load_dataset", ConfigError): lambda: load_dataset(3),
    ("sentence", ConfigError): lambda: sentence(None),
    ("tokenize", ConfigError): lambda: tokenize(None),
    ("load_dataset", DataError): lambda: load_dataset(Path("nowhere")),
    ("score_captions", ConfigError): lambda: score_captions([["a"]], [[["a"]]], metrics=["x"]),
    ("score_captions", DataError): lambda: score_captions([["a"]], []),
}


def documented() -> set[tuple[str, type[Exception]]]:
    """Every exception under the `Raises` of a public name, or of a public method."""
    found = set()
    for name in captioner.__all__:
        value = getattr(captioner, name)
        members = vars(value) if inspect.isclass(value) else {}
        owners = {name: value} | {f"{name}.{own}": getattr(value, own) for own in members}
        for owner, each in owners.items():
            _, _, raises = (inspect.getdoc(each) or "").partition("Raises:\n")
            if not owner.rpartition(".")[2].startswith("_"):
                kinds = re.findall(r"^    (\w+): ", raises, re.MULTILINE)
                found |= {(owner, getattr(captioner, kind)) for kind in kinds}
    return found


def test_every_documented_exception_has_a_case() -> None:
    assert CASES.keys() == documented()


@pytest.mark.parametrize(("name", "kind"), CASES, ids=lambda each: getattr(each, "__name__", each))
def test_what_is_documented_is_raised(
    name: str, kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CaptionerError) as caught:
        CASES[name, kind]()
    assert caught.type is kind
