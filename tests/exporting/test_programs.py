"""An exported model writes the captions of the model, by the code in its own README."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from captioner.captioner import Captioner
from captioner.cli import main
from captioner.encoder.given_features import GivenFeatures
from captioner.errors import ConfigError, ImageError, ModelError
from captioner.exporting.int8 import compute_int8, store_int8
from captioner.exporting.programs import trace
from captioner.exporting.write import _write, export
from captioner.images.decode import read_image

import toys

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def model(eyes=None, **changes):
    """A model with sure words: its weights are random, and large."""
    torch.manual_seed(7)
    built = toys.captioner(eyes or GivenFeatures(5), **changes)
    with torch.no_grad():
        for weight in built.decoder.parameters():
            weight.mul_(4)
    built.decoder.output.bias.data[built.vocabulary.eos_id] += 1
    built.decoding = built.decoding.model_copy(
        update={"beam_size": 3, "max_length": 8, "repeat_penalty": 0.5, "length_penalty": 0.9}
    )
    return built.to("cpu")


def seeing(**changes):
    """The same, of pictures, with features as far from each other as those of photographs."""
    built = model(toys.encoder(grid=2), attention="spatial", **changes)
    built.decoder.measure(torch.cat([features_of(built, image) for image in images()]))
    return built


def features_of(built, image):
    return built.encoder.see(built.encoder.preprocess.pixels(image)[None])


def images(count=12):
    generator = np.random.default_rng(0)
    side = 2 * toys.SIZE
    return [
        Image.fromarray(generator.integers(0, 256, (side, side, 3), dtype=np.uint8))
        for _ in range(count)
    ]


def searches(folder, monkeypatch):
    """The functions of the Python block in the README of an export."""
    monkeypatch.chdir(folder)
    [code] = re.findall(r"^```python\n(.*?)^```", (folder / "README.md").read_text(), re.M | re.S)
    names = {"__name__": "caption"}
    exec(compile(code, "README.md", "exec"), names)
    return names


CHANGES = {
    "lstm": {"tie_weights": False},
    "gru": {"cell": "gru", "num_layers": 2},
    "elman": {"cell": "elman"},
    "attention": {"attention": "spatial"},
}


@pytest.mark.parametrize("kind", CHANGES)
def test_the_search_in_the_readme_writes_the_captions_of_the_model(kind, tmp_path, monkeypatch):
    looks = CHANGES[kind].get("attention")
    eyes = GivenFeatures(20, 3, 5) if looks else GivenFeatures(5)
    built = model(eyes, **CHANGES[kind])
    export(built, tmp_path / "out")
    caption = searches(tmp_path / "out", monkeypatch)["caption"]
    features = torch.randn(12, eyes.feature_size)
    found = built.search(features, built.settings(precision="fp32"))
    texts = [best.text for [best] in found]
    assert [caption(row[None].numpy()) for row in features] == texts
    assert len(set(texts)) > 1, "the images must have different captions"


def test_a_model_that_sees_pictures(tmp_path, monkeypatch):
    built = seeing()
    built.encoder.mirrored = True
    export(built, tmp_path / "out")
    names = searches(tmp_path / "out", monkeypatch)
    texts = []
    for number, image in enumerate(images()):
        image.save(tmp_path / f"{number}.png")
        [[best]] = built.search(features_of(built, image), built.settings(precision="fp32"))
        texts.append(best.text)
        assert names["caption"](names["read"](tmp_path / f"{number}.png")) == best.text
    assert len(set(texts)) > 2


def test_the_reader_turns_draws_on_white_and_squashes(tmp_path, monkeypatch):
    for squash in (False, True):
        eyes = toys.encoder()
        sizes = replace(eyes.spec.preprocess, squash=squash)
        eyes.spec = replace(eyes.spec, preprocess=sizes)
        built = model(eyes)
        out = export(built, tmp_path / f"{squash}")
        read = searches(out, monkeypatch)["read"]
        [picture] = images(1)
        picture = picture.resize((40, 24))
        exif = picture.getexif()
        exif[0x0112] = 6  # to be turned by a quarter
        picture.save(tmp_path / "turned.png", exif=exif)
        picture.putalpha(100)
        picture.save(tmp_path / "transparent.png")
        for name in ("turned.png", "transparent.png"):
            pixels = built.encoder.preprocess.pixels(read_image(tmp_path / name))
            assert np.abs(read(tmp_path / name)[0] - pixels.numpy().astype(int)).max() <= 1


def test_any_number_of_images_and_rows(tmp_path):
    built = seeing()
    export(built, tmp_path / "out")
    encoder, start, step = (
        onnxruntime.InferenceSession(tmp_path / "out" / f"{name}.onnx")
        for name in ("encoder", "start", "step")
    )
    for count in (1, 5):
        pixels = torch.stack([built.encoder.preprocess.pixels(image) for image in images(count)])
        [features] = encoder.run(None, {"pixels": pixels.numpy()})
        torch.testing.assert_close(
            torch.from_numpy(features), built.encoder.see(pixels), atol=1e-4, rtol=1e-4
        )
        hidden, keys = start.run(["hidden", "keys"], {"features": features})
        ids = np.arange(count) % len(built.vocabulary)
        inputs = {"token_ids": ids, "hidden": hidden, "keys": keys}
        log_probs, after = step.run(["log_probs", "next_hidden"], inputs)
        with torch.no_grad():
            begun, places = built.decoder.begin(torch.from_numpy(features))
            logits, state = built.decoder.step(torch.from_numpy(ids), begun, places)
        torch.testing.assert_close(torch.from_numpy(log_probs), logits.log_softmax(1))
        torch.testing.assert_close(torch.from_numpy(after), state)


def test_programs_of_torch(tmp_path):
    built = model(toys.encoder())
    export(built, tmp_path / "out", "torch")
    pixels = built.encoder.preprocess.pixels(images(1)[0])[None]
    features = torch.export.load(tmp_path / "out" / "encoder.pt2").module()(pixels)
    torch.testing.assert_close(features, built.encoder.see(pixels), atol=1e-4, rtol=1e-4)
    hidden = torch.export.load(tmp_path / "out" / "start.pt2").module()(features)
    step = torch.export.load(tmp_path / "out" / "step.pt2").module()
    with torch.no_grad():
        logits, _ = built.decoder.step(torch.tensor([1]), built.decoder.init_hidden(features))
    torch.testing.assert_close(step(torch.tensor([1]), hidden)[0], logits.log_softmax(1))


def test_8_bits_are_smaller_and_nearly_the_same(tmp_path):
    built = Captioner.load("scenes", "cpu")
    _write(trace(built)["encoder"], tmp_path / "fp32")
    pixels = torch.stack([built.encoder.preprocess.pixels(image) for image in images(4)]).numpy()
    features = {}
    for name, change in (
        ("fp32", lambda file: None),
        ("stored", store_int8),
        ("computed", lambda file: compute_int8(file, pixels[:, None])),
    ):
        file = tmp_path / name
        file.write_bytes((tmp_path / "fp32").read_bytes())
        change(file)
        session = onnxruntime.InferenceSession(file)
        features[name] = session.run(None, {"pixels": pixels})[0]
        assert name == "fp32" or file.stat().st_size < 0.4 * (tmp_path / "fp32").stat().st_size
    exact = features.pop("fp32")
    for rounded in features.values():
        lengths = np.linalg.norm(exact, axis=1) * np.linalg.norm(rounded, axis=1)
        assert 0.98 < ((exact * rounded).sum(1) / lengths).min() < 1


def test_captioner_json_holds_what_a_search_needs_and_no_path(tmp_path):
    built = model(toys.encoder())
    built.decoding = built.decoding.model_copy(update={"forbid": (built.vocabulary.words[0],)})
    export(built, tmp_path / "out")
    about = json.loads((tmp_path / "out" / "captioner.json").read_text())
    assert about["never_ids"] == [0, 1, 3, 4]
    assert about["words"][4:] == list(built.vocabulary.words)
    assert about["decoding"]["beam_size"] == 3
    for file in (tmp_path / "out").iterdir():
        content = file.read_bytes()
        assert str(tmp_path).encode() not in content
        assert b"site-packages" not in content
        assert b".py" not in content.replace(b"caption.py", b"")


def test_an_export_changes_no_model_and_replaces_only_its_own(tmp_path):
    built = model()
    before = {name: weight.clone() for name, weight in built.decoder.state_dict().items()}
    out = export(built, tmp_path / "out", "torch")
    assert all(weight.equal(before[name]) for name, weight in built.decoder.state_dict().items())
    export(built, out, "torch")
    for name, message in (
        ("notes.txt", "exported model of captioner: notes.txt"),
        ("caption.py", "caption.py was changed"),
    ):
        (out / name).write_text("mine")
        with pytest.raises(ConfigError, match=message):
            export(built, out, "torch")
        assert (out / name).read_text() == "mine"
        (out / name).unlink()
    export(built, out, "torch")


def test_what_cannot_be_exported_is_said_in_a_line(tmp_path, monkeypatch):
    built = model()
    (tmp_path / "empty").mkdir()
    for wish, message in (
        ({"to": "tflite"}, "to: must be onnx or torch"),
        ({"to": "torch", "int8": True}, "int8: only for ONNX programs"),
        ({"pictures": tmp_path}, "pictures: only with int8"),
        ({"int8": True, "pictures": tmp_path}, "pictures: only with int8, and for a model"),
    ):
        with pytest.raises(ConfigError, match=message):
            export(built, tmp_path / "out", **wish)
    for name, message in (("empty", "holds no pictures"), ("absent", "absent: cannot be read")):
        with pytest.raises(ConfigError, match=message):
            export(model(toys.encoder()), tmp_path / "out", int8=True, pictures=tmp_path / name)
    (tmp_path / "broken.jpg").write_text("no picture")
    with pytest.raises(ImageError, match=r"broken\.jpg: not an image"):
        export(model(toys.encoder()), tmp_path / "out", int8=True, pictures=tmp_path)
    two = Captioner.load([saved(built, tmp_path / "a"), saved(built, tmp_path / "b")])
    with pytest.raises(ModelError, match="one by one"):
        export(two, tmp_path / "out")
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(
        ConfigError, match=r"onnxscript is missing: pip install 'captioner\[export\]'"
    ):
        export(built, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def saved(built, folder):
    built.save(folder)
    return folder


def test_the_command_says_what_it_wrote(tmp_path):
    saved(model(hidden_size=64, embed_size=32), tmp_path / "model")
    words = ["export", str(tmp_path / "model"), str(tmp_path / "out")]
    sizes = []
    for more in ([], ["--int8"]):
        done = CliRunner().invoke(main, words + more)
        assert done.exit_code == 0, done.stderr
        assert done.stdout == f"{tmp_path / 'out'}\n"
        assert re.search(r"step\.onnx  [\d,]+ bytes", done.stderr)
        sizes.append((tmp_path / "out" / "step.onnx").stat().st_size)
    assert sizes[1] < sizes[0]
