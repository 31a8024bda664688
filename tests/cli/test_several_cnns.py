"""Two CNNs side by side, through every verb, as people write them in a YAML file."""

import json

import pytest
import yaml
from click.testing import CliRunner

from captioner.cli import main

import toys

pytestmark = pytest.mark.slow


def run(*words):
    result = CliRunner().invoke(main, list(words))
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a data set, and a finished run of two CNNs in `runs/two`."""
    folder = tmp_path_factory.mktemp("two")
    tree = toys.config_of_two(folder, epochs=8).model_dump()
    (folder / "two.yaml").write_text(yaml.safe_dump(tree))
    with toys.inside(folder):
        said = run("features", "two.yaml", "--device", "cpu").stderr
        assert said.count("images to encode") == 2  # of train and of dev
        assert "30 rows of 1,024 ready" in said
        said = run("train", "two.yaml", "--device", "cpu").stderr
        assert "images to encode" not in said
    return folder


@pytest.fixture(autouse=True)
def here(home):
    with toys.inside(home):
        yield


def test_one_store_holds_the_features_of_both(home):
    [store] = (home / "cache" / "features").iterdir()
    assert store.name.startswith("squeezenet1_1+squeezenet1_1-")
    assert len(json.loads((store / "about.json").read_text())["encoder"]) == 2


def test_caption(home):
    for colour in toys.COLOURS:
        caption = run("caption", f"dev_{colour}_5.png").stdout.rstrip("\n").split("\t")[1]
        assert caption.startswith(f"a {colour} square")
    both = run("caption", *sorted(map(str, home.glob("dev_*.png"))), "--format", "jsonl").stdout
    assert both.count('"status": "ok"') == 6


def test_evaluate_and_gradients(home):
    assert "cider_d" in run("evaluate", "--split", "dev").stdout
    run("gradients", "--model", "runs/two", "--output", "gradients")
    run("gradients", "two.yaml", "--steps", "1", "--output", "gradients")


def test_scores_of_an_ensemble_have_a_place_of_their_own(home):
    both = ["evaluate", "--model", "runs/two", "--model", "runs/two", "--split", "dev"]
    refused = CliRunner().invoke(main, both)
    assert refused.exit_code == 2
    assert "several --model need --output" in refused.stderr
    run(*both, "--output", "together")
    assert json.loads((home / "together" / "scores.json").read_text())


def test_a_run_goes_on_with_its_own_config_and_refuses_another():
    run("train", "two.yaml", "--device", "cpu", "--resume")
    words = ["train", "two.yaml", "--resume", "--set", "encoder.cnns=[{}]"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code != 0
    assert "encoder.cnns: the run has [{'backbone': 'squeezenet1_1'" in result.stderr
