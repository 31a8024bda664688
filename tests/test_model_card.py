"""The card says what is true of its model, shows foreign text as text, and names no path."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from captioner.captioner import Captioner
from captioner.cli import main
from captioner.config import load_config
from captioner.errors import ModelError
from captioner.metrics import compare_word_use, score_captions
from captioner.model_card import Results, Source, add_results, escape, record, write_card
from captioner.model_config import BUNDLED_MODELS, bundled_model
from captioner.model_dir import read_card
from captioner.system.ownership import CARD, CARD_START
from captioner.training.run import train

import toys

SOURCE = Source("mine", "csv", {"train": (24, 48)}, {"train captions": "0123abcd"})


def metadata_of(card: str) -> dict:
    assert card.startswith(CARD_START)
    return yaml.safe_load(card.removeprefix("---\n").partition("\n---\n")[0])


def results(split: str = "dev", caption: str = "a red square") -> Results:
    tokens = [caption.split(), ["a", "blue", "square"]]
    references = [[["a", "red", "square"]], [["a", "blue", "square"]]]
    scores = score_captions(tokens, references, metrics=("bleu", "cider"), resamples=20)
    return Results(split, scores, compare_word_use(tokens, references))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return toys.config(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(tmp_path_factory, config):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAPTIONER_CACHE", str(tmp_path_factory.mktemp("cache")))
        folder = tmp_path_factory.mktemp("runs") / "run"
        return train(config, folder, device="cpu").folder


def invoke(*words: object) -> tuple[str, str]:
    done = CliRunner().invoke(main, [*map(str, words)])
    assert done.exit_code == 0, done.output
    return done.stdout, done.stderr


def test_every_trained_model_has_a_card_with_the_scores_that_evaluate_measures(run, tmp_path):
    card = (run / "model" / CARD).read_text()
    invoke("evaluate", "--model", run, "--split", "dev", "--output", tmp_path / "out")
    measured = json.loads((tmp_path / "out" / "scores.json").read_text())
    [entry] = metadata_of(card)["model-index"][0]["results"]
    assert entry["dataset"] == {"name": "captions", "type": "captions", "split": "dev"}
    stated = {metric["name"]: metric for metric in entry["metrics"]}
    assert stated.keys() == {"BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr"}
    for name, metric in stated.items():
        score = measured[name.lower().replace("-", "_")]
        assert metric["value"] == round(score["value"], 4)
        assert metric["args"]["interval"] == [round(end, 4) for end in score["interval"]]
        assert metric["args"]["signature"] == score["signature"]
        low, high = score["interval"]
        assert f"| {name} | {score['value']:.3f} ({low:.3f} to {high:.3f}) |" in card
    use = measured["word_use"]["captions"]
    assert f"{use['words']} different words, and {use['different_captions']} of them" in card
    # The same scores again change nothing.
    assert (run / "model" / CARD).read_text() == card


def test_evaluate_adds_a_split_to_the_card_of_its_run_only(run, tmp_path):
    captioner = Captioner.load(run, "cpu")
    captioner.save(tmp_path / "copy")
    before = (run / "model" / CARD).read_text()
    assert (tmp_path / "copy" / CARD).read_text() == before
    evaluate = ("evaluate", "--model", run, "--split", "train", "--output", tmp_path / "out")
    root = load_config(str(run / "config.yaml")).data.root
    others = (
        (*evaluate, "--beam-size", 1),
        (*evaluate, "--n-best", 40),
        (*evaluate, "--data", root),
        (*evaluate, "--set", "data.holdout=0.1"),
        (*evaluate, "--model", run),
        ("evaluate", "--model", tmp_path / "copy", "--data", root, "--output", tmp_path / "out"),
    )
    for words in others:
        assert "card" not in invoke(*words)[1]
        assert (run / "model" / CARD).read_text() == before
        assert (tmp_path / "copy" / CARD).read_text() == before
    assert f"scores added to the model card: {run / 'model' / CARD}" in invoke(*evaluate)[1]
    after = (run / "model" / CARD).read_text()
    splits = [e["dataset"]["split"] for e in metadata_of(after)["model-index"][0]["results"]]
    assert splits == ["dev", "train"]
    assert "| score | dev | train |" in after
    assert Captioner.load(run, "cpu").card == after
    (run / "model" / CARD).write_text(before)


def test_the_card_names_the_model_and_its_training(run, config):
    card, captioner = (run / "model" / CARD).read_text(), Captioner.load(run, "cpu")
    decoder = captioner.single_decoder("examined")
    assert f"{sum(w.numel() for w in decoder.parameters()):,} weights" in card
    assert f"| {len(captioner.vocabulary):,} entries" in card
    assert "train: 24 images with 48 captions. dev: 6 images with 12 captions." in card
    settings = yaml.safe_load(re.search(r"```yaml\n(.*?)```", card, re.DOTALL)[1])
    settings["data"]["root"] = config.data.root
    for ours, theirs in zip(settings["encoder"]["cnns"], config.encoder.cnns, strict=True):
        assert ours["weights"] == Path(theirs.weights).name
        ours["weights"] = theirs.weights
    assert settings == config.model_dump(mode="json")
    assert "captioner train config.yaml --set data.root=PATH" in card
    assert "ask the data's owner" in card
    assert "\n\n\n" not in card


def test_no_card_names_a_path_of_the_machine(run, config):
    card = (run / "model" / CARD).read_text()
    assert str(Path(config.data.root).parent) not in card
    assert str(run) not in card
    assert str(Path.home()) not in card


@pytest.mark.parametrize(
    ("root", "name", "licence", "said"),
    [
        ("bundled:data/scenes", "scenes", "apache-2.0", "They need no licence"),
        ("/data/Flickr8k", "Flickr8k", "other", "research and education only"),
        ("/data/dataset_flickr8k.json", "x", "other", "research and education only"),
        ("/data/flickr8k_mine", "flickr8k_mine", "unknown", "ask the data's owner"),
        ("/data/photos", "photos", "unknown", "ask the data's owner"),
    ],
)
def test_the_licence_is_stated_only_where_it_is_known(config, root, name, licence, said):
    config = config.model_copy(update={"data": config.data.model_copy(update={"root": root})})
    card = write_card(toys.captioner(), config, replace(SOURCE, name=name))
    assert metadata_of(card)["license"] == licence
    assert said in card
    assert "Not measured." in card
    assert ("drawn scenes only" in card) == (licence == "apache-2.0")


def test_flickr8k_is_recognised_by_its_files_too(config, tmp_path):
    (tmp_path / "Flickr8k.token.txt").touch()
    data = config.data.model_copy(update={"root": str(tmp_path)})
    card = write_card(toys.captioner(), config.model_copy(update={"data": data}), SOURCE)
    assert "research and education only" in card
    assert metadata_of(card)["datasets"] == ["flickr8k"]


HOSTILE = "a|b\n# c <img src=x onerror=y> [d](http://e) `f` *g* _h_ &lt; $i$ \x1b[31m ~~j~~ @k"


def test_a_foreign_name_is_shown_and_does_nothing(config):
    card = write_card(toys.captioner(), config, replace(SOURCE, name=HOSTILE), results())
    body = card.partition("\n---\n")[2]
    assert "\x1b" not in body
    assert HOSTILE not in body
    for dangerous in ("<img", "[d](", "http://", "*g*", " _h_", "&lt;", "~~j", "$i", "@k", "`f"):
        assert not re.search(rf"(?<!\\){re.escape(dangerous)}", body), dangerous
    entry = metadata_of(card)["model-index"][0]["results"][0]
    assert entry["dataset"]["name"] == HOSTILE
    assert entry["dataset"]["type"] == "a-b-c-img-src-x-onerror-y-d-http-e-f-g-h-lt-i-31m-j-k"


@given(st.text())
def test_escaping_is_one_printable_line_and_keeps_what_is_harmless(text):
    escaped = escape(text)
    assert "\n" not in escaped
    assert escaped.isprintable()
    if re.fullmatch(r"[\w .,-]*", text) and "www." not in text and "_" not in text:
        assert escaped == text or not text.isprintable() or len(text) > 300


def test_results_of_a_split_replace_those_of_the_same_split_only(config):
    card = write_card(toys.captioner(), config, SOURCE, results())
    card = card.replace("# Image captioner", "# My captioner") + "\nA line of mine.\n"
    both = add_results(card, results("test|x", "a square"))
    again = add_results(both, results("test|x", "a red square"))
    assert add_results(again, results("test|x", "a square")) == both
    assert add_results(both, results()) != both  # dev moves behind the other
    assert both.startswith(CARD_START)
    assert "# My captioner" in both
    assert both.endswith("\nA line of mine.\n")
    assert r"| score | dev | test\|x |" in both
    entries = metadata_of(both)["model-index"][0]["results"]
    assert [entry["dataset"]["split"] for entry in entries] == ["dev", "test|x"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<!-- captioner: scores -->", ""),
        ("datasets:", "others:"),
        ("pipeline_tag: image-to-text", "pipeline_tag: {"),
        ("pipeline_tag: image-to-text", "- pipeline_tag"),
        ("\n---\n", "\n"),
        ("  results:", "  results: 3\n  old:"),
        ("    dataset:", "    set:"),
    ],
)
def test_a_card_that_somebody_changed_is_left_alone(config, old, new):
    card = write_card(toys.captioner(), config, SOURCE, results())
    assert add_results(card, results("test"))
    assert old in card
    assert add_results(card.replace(old, new), results("test")) is None


def test_a_card_without_scores_gets_its_first(config):
    card = write_card(toys.captioner(), config, SOURCE)
    assert "model-index" not in metadata_of(card)
    first = add_results(card, results("test"))
    assert metadata_of(first)["model-index"][0]["results"][0]["dataset"]["name"] == "mine"
    assert "Not measured." not in first.partition("## Speed")[0]


@pytest.mark.parametrize("name", BUNDLED_MODELS)
def test_a_bundled_model_has_a_card_and_evaluate_does_not_change_it(name, config):
    if run := bundled_model(name):
        card = read_card(run / "model")
        assert metadata_of(card)["model-index"][0]["results"]
        assert record(run / "model", results("test")) is None
        assert read_card(run / "model") == card


def test_undefined_scores_are_left_out(config):
    tokens, references = [["a"]], [[["a"]]]
    scores = score_captions(tokens, references, metrics=("bleu", "cider"))
    alone = Results("dev", scores, compare_word_use(tokens, references))
    card = write_card(toys.captioner(), config, SOURCE, alone)
    metrics = metadata_of(card)["model-index"][0]["results"][0]["metrics"]
    assert "CIDEr" not in {metric["name"] for metric in metrics}
    assert "nan" not in card.lower()


def test_a_model_is_saved_with_its_card_and_a_foreign_readme_is_not_replaced(tmp_path):
    captioner = toys.captioner()
    captioner.save(tmp_path / "m")
    assert not (tmp_path / "m" / CARD).exists()
    captioner.card = f"{CARD_START}---\r\n# Ours\n"
    captioner.save(tmp_path / "m")
    assert Captioner.load(tmp_path / "m", "cpu").card == captioner.card
    (tmp_path / "m" / CARD).write_text("---\nlibrary_name: other\n---\n")
    assert Captioner.load(tmp_path / "m", "cpu").card == ""
    with pytest.raises(ModelError, match=r"README\.md is not a model card of captioner"):
        captioner.save(tmp_path / "m")
    assert "other" in (tmp_path / "m" / CARD).read_text()


@pytest.mark.parametrize("content", [b"\xff\xfe", b"x" * (2**20 + 1), None])
def test_a_damaged_card_does_not_keep_a_model_from_captioning(tmp_path, content):
    toys.captioner().save(tmp_path)
    if content is None:
        (tmp_path / CARD).mkdir()
    else:
        (tmp_path / CARD).write_bytes(CARD_START.encode() + content)
    assert Captioner.load(tmp_path, "cpu").card == ""
