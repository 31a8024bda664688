"""What a training starts from: the config that is chosen, its name, and the first mistakes."""

import shutil
from pathlib import Path
from urllib.error import URLError

import pytest
from click.testing import CliRunner

from captioner.cli import main
from captioner.cli.options import choose_config, name_of_results
from captioner.config import load_config, resolve_path

import toys

QUICK = (
    *("--set", "encoder.image_size=32", "--set", "text.min_count=1", "--set", "training.epochs=1"),
    *("--set", "decoding.beam_size=2", "--set", "decoder.hidden_size=8"),
)


@pytest.fixture(autouse=True)
def mine(tmp_path, monkeypatch):
    """A folder with the user's own pictures, `mine`, in the current folder."""
    (tmp_path / "mine").mkdir()
    toys.data_set(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAPTIONER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "mine"


@pytest.fixture
def offline(tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)


def run(*words):
    return CliRunner().invoke(main, list(words))


def test_own_photographs_get_a_config_for_photographs_and_a_run_of_their_name():
    root = ("--set", "data.root=mine", "--set", "encoder.weights=none")
    done = run("train", *root, *QUICK)
    assert done.exit_code == 0, done.output
    assert done.stderr.count("note: takes the configuration photos") == 1
    config = load_config("runs/mine/config.yaml")
    assert [cnn.backbone for cnn in config.encoder.cnns] == ["mobilenet_v2"]
    assert config.decoding.length_penalty == load_config("photos").decoding.length_penalty > 0
    resumed = run("train", *root, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert "configuration photos" not in resumed.stderr


def test_another_backbone_needs_no_other_setting():
    words = ("--set", "encoder.backbone=squeezenet1_1", "--set", "encoder.weights=none")
    for config in ([], ["scenes"]):
        output = f"runs/{len(config)}"
        done = run("train", *config, "--set", "data.root=mine", *words, *QUICK, "--output", output)
        assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("config", "overrides", "chosen", "name"),
    [
        (None, (), "scenes", "scenes"),
        (None, ("training.epochs=3",), "scenes", "scenes"),
        (None, ("data.root=mine",), "photos", "mine"),
        (None, ("data.root=mine/",), "photos", "mine"),
        (None, (" data.root = mine",), "photos", "mine"),
        (None, ("data.root=mine/captions.csv",), "photos", "captions"),
        (None, ("data.root=mine/..", "data.root=mine/."), "photos", "mine"),
        (None, ("data.root=2017",), "photos", "2017"),
        (None, ("data.root=/",), "photos", "photos"),
        (None, ("data.root=bundled:data/scenes",), "scenes", "scenes"),
        (None, ("data.root=drawn",), "scenes", "drawn"),
        (None, ("data.root=drawn/captions.jsonl",), "scenes", "captions"),
        ("flickr8k", ("data.root=mine",), "flickr8k", "flickr8k"),
        ("my.yaml", ("data.root=mine",), "my.yaml", "my"),
    ],
)
def test_which_config_and_which_name(config, overrides, chosen, name, capsys):
    Path("drawn").mkdir()
    shutil.copy(resolve_path("bundled:data/scenes") / "captions.jsonl", "drawn")
    assert choose_config(config, overrides) == chosen
    assert name_of_results(config, overrides) == name
    rooted = config is None and any("root" in override for override in overrides)
    assert capsys.readouterr().err.count("note: takes the configuration") == rooted


def test_the_cnn_of_drawn_scenes_is_never_taken_for_photographs_without_a_word():
    done = run("features", "scenes", "--set", "data.root=mine", "--set", "text.min_count=1")
    assert done.exit_code == 0, done.output
    assert done.stderr.count("warning: encoder.weights: this CNN knows drawn scenes only") == 1


def test_without_a_network_one_line_says_what_to_do(offline, tmp_path):
    done = run("train", "--set", "data.root=mine")
    assert done.exit_code == 1
    [line] = [line for line in done.stderr.splitlines() if "error" in line]
    assert f"mobilenet_v2-b0353104.pth into {tmp_path}/torch/hub/checkpoints (https://" in line
    assert not Path("runs").exists()


def test_missing_data_are_noticed_before_weights_are_downloaded(offline):
    for verb in ("train", "features"):
        done = run(verb, "--set", "data.root=nowhere")
        assert done.exit_code == 1
        assert "nowhere: no such" in done.stderr
    assert not Path("runs").exists()
