"""A model that learns from features of a file: the same as from the pictures they were made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from captioner.captioner import Captioner
from captioner.cli import main
from captioner.config import Config, bundled
from captioner.data.dataset import Example
from captioner.data.feature_store import FeatureStore, image_key
from captioner.data.prepare import open_dataset, open_encoder
from captioner.errors import CaptionerError, ConfigError, DataError, ModelError
from captioner.evaluation.evaluate import evaluate
from captioner.run_dir import config_of_model
from captioner.training.run import train

import toys


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTIONER_CACHE", str(tmp_path / "cache"))


def changed(config: Config, **sections: dict[str, Any]) -> Config:
    parts = config.model_dump()
    return Config.model_validate({name: parts[name] | sections.get(name, {}) for name in parts})


def exported(config: Config, path: Path) -> tuple[Example, ...]:
    """Write what the feature store holds of each image, keyed by image id."""
    encoder = open_encoder(config, torch.device("cpu"))
    store = FeatureStore.for_encoder(encoder)
    examples = open_dataset(config.data).examples
    features = {
        each.image_id: torch.from_numpy(store.rows([image_key(Path(str(each.image)).read_bytes())]))
        for each in examples
    }
    save_file({key: row[0].clone() for key, row in features.items()}, path)
    return examples


def run(arguments: list[Any]) -> Any:
    return CliRunner().invoke(main, [str(each) for each in arguments])


def scores(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    timed = ("seconds", "tokens_per_second", "time")
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


def test_features_of_the_store_train_the_same_model_as_the_pictures(tmp_path: Path) -> None:
    config = toys.config(tmp_path, epochs=2)
    train(config, tmp_path / "pictures", device="cpu")
    examples = exported(config, tmp_path / "toy.safetensors")
    given = changed(config, encoder={"features": str(tmp_path / "toy.safetensors")})
    for each in examples:
        Path(str(each.image)).unlink()  # no picture is needed
    train(given, tmp_path / "features", device="cpu")
    assert scores(tmp_path / "features") == scores(tmp_path / "pictures")
    weights = [
        load_file(tmp_path / name / "model" / "model.safetensors")
        for name in ("pictures", "features")
    ]
    learnt = {name for name in weights[0] if name.startswith("decoder.")}
    assert weights[1].keys() == learnt
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in learnt)


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """Train on the mean of four places of six random numbers; return the run folder."""
    config = toys.config(tmp_path)
    draws = np.random.RandomState(0)
    examples = open_dataset(config.data).examples
    features = {each.image_id: draws.randn(4, 6).astype(np.float32) for each in examples}
    np.savez(tmp_path / "toy.npz", **features)
    settings = {"features": str(tmp_path / "toy.npz")}
    train(changed(config, encoder=settings), tmp_path / "run", device="cpu")
    return tmp_path / "run"


def test_a_model_of_features_is_saved_and_loaded(trained: Path, tmp_path: Path) -> None:
    captioner = Captioner.load(trained, "cpu")
    assert captioner.encoder.sizes == {"feature_size": 6, "places": 0, "channels": 0}
    settings = json.loads((trained / "model" / "config.json").read_text())
    assert settings["encoder"] == []
    assert settings["features"] == {"source": "toy.npz"}
    assert settings["format_version"] == 5
    assert captioner.search(torch.ones(2, 6))[0][0].text
    captioner.save(tmp_path / "copy", storage="fp16")
    again = Captioner.load(tmp_path / "copy", "cpu")
    assert again.encoder.name == "toy.npz"
    card = (trained / "model" / "README.md").read_text()
    assert "| features | 6 numbers an image, as in `toy.npz` |" in card
    assert "photo.jpg" not in card
    assert str(tmp_path) not in card
    preprocess = tmp_path / "copy" / "preprocessor_config.json"
    assert json.loads(preprocess.read_text()) == []
    preprocess.write_text((bundled("models/photos") / "model" / preprocess.name).read_text())
    with pytest.raises(ModelError, match=r"expects 0 CNN\(s\), preprocessor_config.json has 1"):
        Captioner.load(tmp_path / "copy", "cpu")
    preprocess.write_text("[]")
    for name, value in (("features", None), ("encoder", settings), ("format_version", 1)):
        damaged = settings | {name: value}
        (tmp_path / "copy" / "config.json").write_text(json.dumps(damaged))
        with pytest.raises(ModelError) as error:
            Captioner.load(tmp_path / "copy", "cpu")
        assert "\n" not in str(error.value)


def test_evaluate_reads_the_features_of_the_run(trained: Path, tmp_path: Path) -> None:
    result = run(["evaluate", "--model", trained, "--output", tmp_path / "out", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert len((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()) == 6
    result = run(["doctor", "--model", trained, "--device", "cpu"])
    assert "feature store" not in result.output
    assert "shuffled images" in result.output
    result = run(["evaluate", "--model", trained, "--output", tmp_path / "no", "--explain"])
    assert result.exit_code == 1
    assert "this model has no CNN and sees no pictures" in result.output


def test_a_file_of_features_is_captioned_and_a_picture_is_not(
    trained: Path, tmp_path: Path
) -> None:
    result = run(["caption", tmp_path / "toy.npz", "--model", trained, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len(lines) == 30
    name = f"{tmp_path / 'toy.npz'}/"
    captions = dict(line.split("\t") for line in lines)
    captioner = Captioner.load(trained, "cpu")
    with np.load(tmp_path / "toy.npz") as features:
        for key in features.files[:3]:
            row = captioner.encoder.row(features[key])[None]
            assert captions[name + key] == captioner.search(row)[0][0].text
    output = tmp_path / "captions.jsonl"
    wish = ["--model", trained, "--device", "cpu", "--output", output]
    assert run(["caption", tmp_path / "toy.npz", *wish]).exit_code == 0
    assert {json.loads(line)["image_id"] for line in output.read_text().splitlines()} == set(
        np.load(tmp_path / "toy.npz").files
    )
    again = run(["caption", tmp_path / "toy.npz", *wish])
    assert again.exit_code == 0
    picture = toys.draw(tmp_path / "photo.png", "red")
    for more in ([], ["--output", tmp_path / "other.jsonl"]):
        result = run(["caption", picture, "--model", trained, *more])
        assert result.exit_code == 1
        assert "captions features of 6 numbers an image, as in toy.npz" in result.stderr
        assert "captioner caption FEATURES.npz, or captioner evaluate" in result.stderr
        assert "Traceback" not in result.stderr
    for call in ("caption", "encode", "trace", "explain"):
        with pytest.raises(ModelError, match="sees no pictures"):
            getattr(captioner, call)(picture)


def test_features_of_another_kind_are_refused_in_one_line(trained: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", **{"1": np.ones(5)})
    result = run(["caption", tmp_path / "other.npz", "--model", trained, "--device", "cpu"])
    assert result.exit_code == 1
    assert "5 numbers, the model wants 6 numbers" in result.stderr
    config = config_of_model(trained / "model", None, ())
    ids = [each.image_id for each in open_dataset(config.data, "x").examples]
    np.savez(tmp_path / "other.npz", **{key: np.ones(5) for key in ids})
    captioner = Captioner.load(trained, "cpu")
    other = changed(config, encoder={"features": str(tmp_path / "other.npz")})
    with pytest.raises(DataError, match=r"other.npz: .*5 numbers, the model wants 6 numbers"):
        evaluate(captioner, other, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"set encoder.features=PATH"):
        evaluate(captioner, changed(config, encoder={"features": None}), tmp_path / "out")
    pictures = toys.captioner()
    with pytest.raises(ConfigError, match=r"this model has a CNN .*set encoder.features=null"):
        evaluate(pictures, config, tmp_path / "out")
    (tmp_path / "models").mkdir()
    pictures.save(tmp_path / "models" / "cnn")
    result = run(["caption", tmp_path / "toy.npz", "--model", tmp_path / "models" / "cnn"])
    assert result.exit_code == 1
    assert "features, and this model sees pictures" in result.stderr
    with pytest.raises(ModelError, match=r"an ensemble needs models of the same features"):
        Captioner.load([trained, tmp_path / "models" / "cnn"], "cpu")


def test_models_of_the_same_features_form_an_ensemble(trained: Path, tmp_path: Path) -> None:
    config = config_of_model(trained / "model", None, ())
    train(changed(config, training={"seed": 1}), tmp_path / "second", device="cpu")
    both = Captioner.load([trained, tmp_path / "second"], "cpu")
    assert both.num_models == 2
    assert both.search(torch.ones(1, 6))[0][0].text


@pytest.mark.parametrize("attention", ["none", "spatial"])
def test_a_decoder_looks_at_places_of_a_file(trained: Path, tmp_path: Path, attention: str) -> None:
    config = config_of_model(trained / "model", None, ())
    train(changed(config, decoder={"attention": attention}), tmp_path / "looks", device="cpu")
    captioner = Captioner.load(tmp_path / "looks", "cpu")
    size = 6 if attention == "none" else 6 + 4 * 6
    assert captioner.encoder.feature_size == size
    assert captioner.map_size() == 0
    result = run(["evaluate", "--model", tmp_path / "looks", "--output", tmp_path / "out"])
    assert result.exit_code == 0, result.output


def test_images_without_features_are_counted(trained: Path, tmp_path: Path) -> None:
    config = config_of_model(trained / "model", None, ())
    with np.load(tmp_path / "toy.npz") as archive:
        fewer = {key: archive[key] for key in archive.files[2:]}
    np.savez(tmp_path / "toy.npz", **fewer)
    train(config, tmp_path / "fewer", device="cpu")
    log = (tmp_path / "fewer" / "train.log").read_text()
    line = f"skipped: 2 image(s) without features in {tmp_path / 'toy.npz'}; first: "
    assert log.count(line) == 1
    strict = changed(config, data={"strict": True})
    with pytest.raises(DataError, match=r"2 image\(s\) without features"):
        train(strict, tmp_path / "strict", device="cpu")
    np.savez(tmp_path / "toy.npz", none=np.ones((4, 6)))
    with pytest.raises(DataError, match=r"the ids in the file look like 'none'"):
        train(config, tmp_path / "none", device="cpu")


def test_features_too_large_for_the_memory_stay_on_disk(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of_model(trained / "model", None, ())
    with np.load(tmp_path / "toy.npz") as archive:
        ids = archive.files[::-1]
        table = np.stack([archive[key].mean(0) for key in ids]).astype(np.float16)
    np.save(tmp_path / "toy.npy", table)
    (tmp_path / "toy.ids.txt").write_text("\n".join(ids))
    table_of = changed(config, encoder={"features": str(tmp_path / "toy.npy")})
    train(table_of, tmp_path / "in-memory", device="cpu")
    monkeypatch.setattr("captioner.data.prepare.fits", lambda *_: False)
    train(table_of, tmp_path / "on-disk", device="cpu")
    assert scores(tmp_path / "in-memory") == scores(tmp_path / "on-disk")
    with pytest.raises(DataError, match=r"do not fit the memory; store vectors as one .npy of fl"):
        train(config, tmp_path / "too-large", device="cpu")


def test_settings_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    config = toys.config(tmp_path)
    for name in ("flip", "mirrored"):
        with pytest.raises((CaptionerError, ValueError), match=f"encoder.{name}: encoder.features"):
            changed(config, encoder={"features": "f.npz", name: True})
    missing = changed(config, encoder={"features": str(tmp_path / "f.npz")})
    with pytest.raises(DataError, match=r"f.npz: .*No such file"):
        train(missing, tmp_path / "run", device="cpu")
