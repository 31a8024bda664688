"""The doctor finds every illness that is planted, and none in a healthy model."""

import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from captioner.captioner import Captioner
from captioner.cli import main
from captioner.data.feature_store import FeatureStore
from captioner.doctor import checks
from captioner.doctor.checks import Check, verdict
from captioner.doctor.examine import examine, shuffled_scores
from captioner.metrics import PreparedReferences
from captioner.training.checkpoint import read_tensors, write_tensors
from captioner.training.run import train

import toys

NAMES = [
    "preprocessing",
    "feature store",
    "features",
    "initial state",
    "hidden units",
    "vocabulary",
    "distinct captions",
    "shuffled images",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that has learned its colours."""
    folder = tmp_path_factory.mktemp("doctor")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAPTIONER_CACHE", str(folder / "cache"))
        train(toys.config(folder, epochs=8), folder / "run", device="cpu")
    return folder


@pytest.fixture
def home(trained, tmp_path, monkeypatch):
    """A copy of the run and of the feature store, to be spoiled."""
    shutil.copytree(trained / "run", tmp_path / "run")
    shutil.copytree(trained / "cache", tmp_path / "cache")
    monkeypatch.setenv("CAPTIONER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def visit(home, *words):
    result = CliRunner().invoke(main, ["doctor", "--model", str(home / "run"), *words])
    assert not isinstance(result.exception, Exception), result.exception
    lines = [line for line in result.stdout.splitlines() if line[:7].strip() in STATUSES]
    return result, {line[9:27].strip(): line[:7].strip() for line in lines}


STATUSES = ("ok", "warning", "problem")


def ill(found):
    return [name for name, status in found.items() if status == "problem"]


def test_a_healthy_model_passes(home):
    result, found = visit(home)
    assert list(found) == NAMES
    assert set(found.values()) == {"ok"}
    assert result.exit_code == 0
    assert "->" not in result.stdout
    assert result.stdout.endswith(
        "\nVerdict: healthy: the captions follow the images. There is nothing to do.\n"
    )
    assert "dev: 6 images" in result.stderr
    _, train_split = visit(home, "--split", "train")
    assert set(train_split.values()) == {"ok"}


def test_a_decoder_that_ignores_the_image(home):
    path = home / "run" / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors["decoder.init_hidden.projection.weight"].zero_()
    save_file(tensors, path)
    result, found = visit(home)
    assert ill(found) == ["initial state", "distinct captions", "shuffled images"]
    assert result.exit_code == 1
    assert "48 of 48 units are constant" in result.stdout
    assert "1 for 6 images" in result.stdout
    assert "Verdict: unhealthy: 3 problem(s)" in result.stdout
    assert "Start with initial state: the decoder does not depend on the image" in result.stdout


def test_another_normalisation(home):
    path = home / "run" / "model" / "preprocessor_config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"mean": [0, 0, 0], "std": [4, 4, 4]}))
    result, found = visit(home)
    assert ill(found)[0] == "preprocessing"
    assert found["features"] in ("warning", "problem")
    assert "preprocess.mean: [0.0, 0.0, 0.0], was [0.485, 0.456, 0.406]" in result.stdout
    assert result.exit_code == 1


def test_two_cnns_side_by_side_one_of_them_spoiled(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    train(toys.config_of_two(tmp_path, epochs=8), tmp_path / "run", device="cpu")
    _, found = visit(tmp_path)
    assert set(found.values()) == {"ok"}
    path = tmp_path / "run" / "model" / "config.json"
    config = json.loads(path.read_text())
    for cnn in config["encoder"]:
        cnn["precision"] = "bf16"
    path.write_text(json.dumps(config))
    result, found = visit(tmp_path)
    assert "which computed features in fp32" in result.stdout
    path = tmp_path / "run" / "model" / "preprocessor_config.json"
    values = json.loads(path.read_text())
    values[1]["mean"] = [0, 0, 0]
    path.write_text(json.dumps(values))
    result, found = visit(tmp_path)
    assert ill(found)[0] == "preprocessing"
    assert "1.preprocess.mean: [0.0, 0.0, 0.0], was [0.485, 0.456, 0.406]" in result.stdout
    assert "0.preprocess" not in result.stdout


def test_other_weights_in_the_encoder(home):
    path = home / "run" / "model" / "model.safetensors"
    others = {f"encoder.{name}": tensor for name, tensor in toys.encoder_state(seed=1).items()}
    tensors = load_file(path)
    save_file({name: others.get(name, tensor) for name, tensor in tensors.items()}, path)
    result, found = visit(home)
    assert ill(found)[0] == "preprocessing"
    assert "changed: its weights or its transform" in result.stdout


def test_another_precision_is_no_illness(home):
    path = home / "run" / "model" / "config.json"
    values = json.loads(path.read_text())
    values["encoder"]["precision"] = "bf16"
    path.write_text(json.dumps(values))
    result, found = visit(home)
    assert found["preprocessing"] == "ok"
    assert "which computed features in fp32" in result.stdout


@pytest.mark.parametrize("arithmetic", ["bf16 by oneDNN", "fp16 on cuda"])
def test_an_arithmetic_of_elsewhere_is_no_illness(home, arithmetic):
    encoder = Captioner.load(home / "run", "cpu").encoder
    for path in (home / "run" / "checkpoints").glob("step-*.safetensors"):
        saved = read_tensors(path)
        identity = json.loads(saved.header["identity"])
        identity |= {"arithmetic": arithmetic, "encoder": encoder.fingerprint(arithmetic)}
        write_tensors(path, saved.tensors, saved.header | {"identity": json.dumps(identity)})
    result, found = visit(home)
    assert found["preprocessing"] == "ok"
    assert f"which computed features in {arithmetic}" in result.stdout


def test_a_model_of_an_older_captioner_is_not_called_ill(home):
    for path in (home / "run" / "checkpoints").glob("step-*.safetensors"):
        saved = read_tensors(path)
        identity = json.loads(saved.header["identity"])
        del identity["arithmetic"]
        identity["encoder"] = "0" * 32
        write_tensors(path, saved.tensors, saved.header | {"identity": json.dumps(identity)})
    result, found = visit(home)
    assert found["preprocessing"] == "warning"
    assert "trained by an older captioner" in result.stdout
    assert result.exit_code == 0


def test_a_store_whose_rows_were_altered_is_the_problem(home):
    model = Captioner.load(home / "run", "cpu")
    path = FeatureStore.for_encoder(model.encoder).folder / "rows.f16"
    table = np.fromfile(path, np.float16)
    table[:] = table[::-1]
    table.tofile(path)
    result, found = visit(home)
    # Names are padded to the longest that is shown.
    names = {name.split("  ")[0]: status for name, status in found.items()}
    assert names == {"preprocessing": "ok", "feature store": "problem"}
    assert str(path.parent) in result.stdout
    assert "captioner features --prune" in result.stdout
    assert result.exit_code == 1


@pytest.mark.parametrize("rows", [slice(None), slice(0, 1)])
def test_a_store_with_rows_of_other_images(home, rows):
    model = Captioner.load(home / "run", "cpu")
    store = FeatureStore.for_encoder(model.encoder)
    keys = list(store._index)
    table = store.rows(keys)
    table[rows] = np.roll(table, 1, axis=0)[rows]
    for name in ("rows.f16", "rows.key", "rows.sum"):
        (store.folder / name).unlink()
    FeatureStore.for_encoder(model.encoder).append(keys, table)
    split = "dev" if rows == slice(None) else "train"
    result, found = visit(home, "--split", split)
    assert found["feature store"] == "problem"
    assert result.exit_code == 1
    assert "1 of 24 stored" in result.stdout or split == "dev"
    if split == "dev":
        assert found["shuffled images"] == "problem"
        assert found["distinct captions"] == "ok"  # captions move, with the wrong image


def test_a_dead_decoder(home):
    path = home / "run" / "model" / "model.safetensors"
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if name.startswith("decoder.cell."):
            tensor.zero_()
    tensors["decoder.init_hidden.projection.weight"][24:] = 0  # c of the LSTM
    tensors["decoder.init_hidden.projection.bias"][24:] = 0
    save_file(tensors, path)
    _, found = visit(home)
    assert found["hidden units"] == "problem"
    assert found["initial state"] == "problem"  # half of it: c never moves


def test_words_nobody_taught_it(home, trained):
    table = home / "captions.csv"
    text = (trained / "captions.csv").read_text()
    table.write_text(text.replace("square", "quadrangle thing").replace(",a ", ",one "))
    for picture in trained.glob("*.png"):
        shutil.copy(picture, home)
    result, found = visit(home, "--data", str(table))
    assert found["vocabulary"] == "problem"
    assert "lower text.min_count" in result.stdout


def test_a_model_without_its_run(home):
    (home / "alone").mkdir()
    (home / "run" / "model").rename(home / "alone" / "model")
    result = CliRunner().invoke(main, ["doctor", "--model", str(home / "alone" / "model")])
    assert result.exit_code == 2
    assert "name the data with --data DIR" in result.stderr
    config = toys.config(home)
    model = Captioner.load(home / "alone", "cpu")
    found = examine(model, config, home / "alone" / "model", say=lambda _: None)
    assert [check.name for check in found if check.status != "ok"] == ["preprocessing"]
    assert found[0].status == "warning"
    assert verdict(found) == (
        "the captions follow the images; look at 1 warning(s): preprocessing."
    )


def test_examine_falls_back_to_the_test_split(home):
    config = toys.config(home)
    root = home / "captions.csv"
    root.write_text(root.read_text().replace(",dev", ",test"))
    data = config.data.model_copy(update={"holdout": 0.0})
    said = []
    examine(
        Captioner.load(home / "run", "cpu"),
        config.model_copy(update={"data": data}),
        home / "run" / "model",
        say=said.append,
    )
    assert any(line.startswith("test: 6 images") for line in said)


def test_shuffling_leaves_no_caption_with_its_image():
    captions = [[word] * 4 for word in "abcdefg"]
    references = PreparedReferences([[caption] for caption in captions])
    scores = shuffled_scores(captions, references, np.random.default_rng(0))
    assert scores == [0.0] * len(scores) and len(scores) > 1


def test_store_check_measures_length_as_well_as_direction():
    fresh = np.random.default_rng(0).normal(size=(8, 16))
    assert checks.check_store(fresh.astype(np.float16), fresh).status == "ok"
    assert checks.check_store(fresh * 1.2, fresh).status == "problem"
    stored = fresh.copy()
    stored[3] = np.nan
    assert checks.check_store(stored, fresh).finding.startswith("1 of 8 stored")


def test_feature_check():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(50, 40))
    zero, one = np.zeros(40), np.ones(40)
    assert checks.check_features(features, zero, one).status == "ok"
    assert checks.check_features(features + 0.7, zero, one).status == "warning"
    assert checks.check_features(features + 2, zero, one).status == "problem"
    assert checks.check_features(features * np.nan, zero, one).status == "problem"
    constant = np.repeat(features[:1], 50, axis=0)
    assert "same features" in checks.check_features(constant, zero, one).finding
    half = np.where(np.arange(40) < 30, 0.0, features)
    found = checks.check_features(half, zero, one)
    assert found.status == "warning" and "75% of 40 dimensions" in found.finding


@pytest.mark.parametrize(("dead", "status"), [(0, "ok"), (2, "warning"), (5, "problem")])
def test_unit_check(dead, status):
    low, high = np.zeros(10), np.ones(10)
    high[:dead] = [1e-5, 0.0, np.nan, 0.0, 0.0][:dead]
    found = checks.check_units("hidden units", low, high, "do this")
    assert (found.status, found.advice) == (status, "" if status == "ok" else "do this")
    assert found.finding == f"{dead} of 10 units are constant"


def test_distinct_check_forgives_what_people_do_as_well():
    references = [[f"picture {i}"] for i in range(10)]
    assert checks.check_distinct([f"c {i}" for i in range(10)], references).status == "ok"
    some = ["a man"] * 3 + [f"c {i}" for i in range(7)]
    assert checks.check_distinct(some, references).status == "warning"
    assert checks.check_distinct(["a man"] * 6 + some[6:], references).status == "problem"
    assert checks.check_distinct(["a man"] * 10, [["a man"]] * 10).status == "ok"


def test_shuffle_check():
    assert checks.check_shuffle(0.4, [0.1, 0.05]).status == "ok"
    assert checks.check_shuffle(0.4, [0.32, 0.32]).status == "warning"
    assert checks.check_shuffle(0.4, [0.42, 0.4]).status == "problem"
    assert checks.check_shuffle(0.0, [0.0]).status == "problem"
    assert checks.check_shuffle(float("nan"), [0.0]).status == "problem"
    assert checks.check_shuffle(0.4, [float("nan")]).status == "problem"


def test_vocabulary_check():
    assert checks.check_vocabulary(0.97, 5, 10).status == "ok"
    assert checks.check_vocabulary(0.8, 5, 10).status == "warning"
    assert checks.check_vocabulary(0.5, 5, 10).status == "problem"


def test_preprocessing_check():
    check = checks.check_preprocessing
    assert check("aa", "aa", "bf16 on cpu", "aa").status == "ok"
    assert check("aa", "bb", "bf16 on cuda", "aa").status == "ok"
    mean = ["preprocess.mean: x, was y"]
    assert check("aa", "bb", "bf16 on cuda", "cc", mean).status == "problem"
    assert check(None, "bb", "", "bb").status == "warning"


def test_the_verdict_begins_with_the_first_problem():
    found = [
        Check("one", "ok", "fine"),
        Check("two", "warning", "hm", "look"),
        Check("three", "problem", "bad", "mend it"),
        Check("four", "problem", "bad", "mend that"),
    ]
    assert verdict(found) == "unhealthy: 2 problem(s) (three, four). Start with three: mend it."
    assert "1 warning(s): two" in verdict(found[:2])
    assert verdict(found[:1]).startswith("healthy")


def test_examining_leaves_no_gradients_behind(home):
    model = Captioner.load(home / "run", "cpu")
    before = {name: value.clone() for name, value in model.decoder.state_dict().items()}
    examine(model, toys.config(home), home / "run" / "model", say=lambda _: None)
    assert all(torch.equal(before[name], v) for name, v in model.decoder.state_dict().items())
    assert not model.decoder.training
