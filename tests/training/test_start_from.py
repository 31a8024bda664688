"""A run that starts from a model keeps the model's words and adds those of its own captions."""

import shutil

import pytest
import torch

from captioner.captioner import Captioner
from captioner.config import Config
from captioner.data.prepare import open_encoder
from captioner.errors import CheckpointError, ConfigError
from captioner.text import Vocabulary
from captioner.training.run import train
from captioner.training.start import start_weights

import toys


def change(config: Config, section: str, **values) -> Config:
    tree = config.model_dump()
    tree[section] |= values
    return Config.model_validate(tree)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The config and the folder of a finished run."""
    folder = tmp_path_factory.mktemp("first")
    config = toys.config(folder, epochs=2)
    return config, train(config, folder / "run", device="cpu").folder


@pytest.fixture
def second(first, tmp_path):
    """The config of a run with other captions that goes on from the first."""
    config, run = first
    table = toys.data_set(tmp_path)
    text = table.read_text().replace("square", "bright tile").replace("middle", "centre")
    table.write_text(text)
    config = change(config, "data", root=str(table))
    return change(config, "training", start_from=str(run), epochs=1)


@pytest.mark.parametrize("tied", [True, False])
def test_known_words_keep_their_weights_and_new_ones_are_as_initialised(tmp_path, tied):
    config = toys.config(tmp_path)
    encoder = open_encoder(config, torch.device("cpu"))
    settings = {"tie_weights": tied, "feature_size": encoder.feature_size}
    old = Vocabulary.build([["a", "red", "square"]], 1)
    new = Vocabulary.build([["a", "blue", "square"], ["a", "tile"]], 1, old)
    assert new.words == (*old.words, "blue", "tile")
    theirs = toys.decoder(vocab_size=len(old), seed=1, **settings)
    Captioner(encoder, theirs, old).save(tmp_path / "model")
    ours = toys.decoder(vocab_size=len(new), seed=2, **settings)
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    weights = start_weights(str(tmp_path / "model"), ours, encoder, new)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(weights[name][: len(tensor)], tensor)
        assert torch.equal(weights[name][len(tensor) :], before[name][len(tensor) :])
    ours.load_state_dict(weights)
    if tied:
        assert ours.output.weight is ours.embedding.weight
    with pytest.raises(ConfigError, match="the model has other words"):
        start_weights(str(tmp_path / "model"), ours, encoder, Vocabulary.build([["tile"]], 1))


def test_own_captions_add_words_to_a_model(first, second, tmp_path):
    words = Vocabulary.load(first[1] / "model" / "vocab.json").words
    folder = train(second, tmp_path / "run", device="cpu").folder
    found = Vocabulary.load(folder / "model" / "vocab.json")
    assert found.words == (*words, "bright", "tile", "centre")
    assert found.counts["tile"] == 48
    log = (folder / "train.log").read_text()
    assert f"{len(words) + 4} of the model to start from, and words" in log
    assert Captioner.load(folder, "cpu").caption(tmp_path / "dev_red_5.png")


def test_fewer_captions_lose_no_word(first, tmp_path):
    config, run = first
    rare = change(change(config, "text", min_count=40), "training", start_from=str(run), epochs=1)
    folder = train(rare, tmp_path / "run", device="cpu").folder
    counts = [Vocabulary.load(place / "model" / "vocab.json").counts for place in (run, folder)]
    assert counts[0] == counts[1]


def test_a_run_with_new_words_is_resumed(first, second, tmp_path):
    run = shutil.copytree(first[1], tmp_path / "start")
    config = change(second, "training", start_from=str(run))
    folder = train(config, tmp_path / "run", device="cpu").folder
    weights = (folder / "model" / "model.safetensors").read_bytes()
    train(config, folder, device="cpu", resume=True)
    assert (folder / "model" / "model.safetensors").read_bytes() == weights
    shutil.rmtree(run)  # then the ids of the words are not known
    with pytest.raises(CheckpointError, match="vocabulary changed"):
        train(config, folder, device="cpu", resume=True)


def test_a_model_that_does_not_fit_says_which_config_does(first, second, tmp_path):
    with pytest.raises(ConfigError) as caught:
        train(change(second, "decoder", hidden_size=20), tmp_path / "run", device="cpu")
    message = str(caught.value)
    assert "decoder.hidden_size is 24, the run has 20" in message
    assert message.endswith(f"{first[1]}/config.yaml has its settings")
    assert "\n" not in message


def test_a_model_that_looks_goes_on_with_other_dropout_of_places(tmp_path):
    config = change(toys.config(tmp_path, epochs=1), "decoder", attention="spatial")
    config = change(config, "encoder", grid=2, grid_channels=8, image_size=64)
    run = train(config, tmp_path / "run", device="cpu").folder
    again = change(config, "training", start_from=str(run))
    train(change(again, "decoder", place_dropout=0.3), tmp_path / "again", device="cpu")
    with pytest.raises(ConfigError, match=r"encoder\.grid is 2, the run has 3") as caught:
        train(change(again, "encoder", grid=3), tmp_path / "third", device="cpu")
    assert "another CNN" not in str(caught.value)
