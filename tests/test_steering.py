"""Captions that begin as told, hold no forbidden word and have a least length."""

from __future__ import annotations

import json
import math

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from captioner.captioner import Captioner
from captioner.cli import main
from captioner.config import DecodingConfig, load_config
from captioner.decoder.decoder import SPECIAL_IDS
from captioner.decoder.ensemble import Ensemble
from captioner.decoder.neighbours import Neighbours, count_ngrams
from captioner.errors import ConfigError
from captioner.steering import steered
from captioner.text import Vocabulary, tokenize
from captioner.training.run import train

import toys

IMAGES = 6


def features_of(model: Captioner) -> torch.Tensor:
    shape = IMAGES, model.encoder.feature_size
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(3))


def ensemble() -> Captioner:
    models = [toys.captioner(seed=seed, cell="gru") for seed in (18, 4)]
    with torch.no_grad():
        for model in models:  # else they end no caption
            model.decoder.output.bias[model.vocabulary.eos_id] += 1.5
    columns = [torch.arange(models[0].encoder.feature_size)] * 2
    decoder = Ensemble([model.decoder for model in models], columns)
    return Captioner(models[0].encoder, decoder, models[0].vocabulary)


def with_votes() -> Captioner:
    """A model whose neighbours say what the tests forbid."""
    model = toys.captioner(seed=18, cell="lstm")
    ids = torch.tensor(model.vocabulary.encode(["red", "blue", "square", "a"])).expand(8, -1)
    ngrams = count_ngrams(ids.contiguous(), torch.full((8,), 4), torch.arange(8))
    hidden = model.decoder.init_hidden(features_of(model)[:1])
    states = torch.nn.functional.normalize(hidden.transpose(0, 1).flatten(1)).expand(8, -1)
    model.neighbours = Neighbours(states.contiguous(), **ngrams)
    return model


MODELS = {
    "a step at a time": (toys.captioner(seed=18, cell="lstm"), {}),
    "plain decoder": (toys.captioner(seed=18, cell="elman"), {}),
    "bf16": (toys.captioner(seed=18, cell="lstm"), {"precision": "bf16"}),
    "attention": (
        toys.captioner(toys.encoder(grid=2, grid_channels=4), seed=18, attention="spatial"),
        {},
    ),
    "ensemble": (ensemble(), {}),
    "votes": (with_votes(), {"neighbours": 5.0}),
}


@st.composite
def steerings(draw):
    """Settings that some caption fulfils."""
    words = list(toys.WORDS)
    forbid = draw(st.lists(st.sampled_from(words), max_size=6, unique=True))
    left = [word for word in words if word not in forbid]
    start = draw(st.lists(st.sampled_from(left), max_size=4, unique=True))
    search = draw(st.sampled_from(["beam", "sample"]))
    wish = {"search": search, "max_length": draw(st.integers(4, 9))}
    if search == "beam":
        wish |= {"beam_size": draw(st.integers(1, 6))}
        wish |= {"no_repeat_ngram_size": draw(st.integers(0, 3))}
        wish |= {"repeat_penalty": draw(st.sampled_from([0.0, 2.0]))}
    else:
        wish |= {"seed": draw(st.integers(0, 99)), "top_k": draw(st.sampled_from([0, 3]))}
    wish["min_length"] = draw(st.integers(0, min(wish["max_length"], len(left))))
    return wish | {"start": " ".join(start), "forbid": forbid}


@pytest.mark.parametrize("name", MODELS)
@given(steerings(), st.integers(1, 6))
@settings(max_examples=40, derandomize=True)
def test_a_caption_keeps_to_what_steers_it(name, wish, n_best):
    model, own = MODELS[name]
    own = {} if wish["search"] == "sample" else own
    if wish["search"] == "beam":
        n_best = min(n_best, wish["beam_size"])
    options = model.settings(n_best=n_best, **own | wish)
    for best in model.search(features_of(model), options, n_best=n_best):
        assert best
        for caption in best:
            words = tokenize(caption.text)
            assert words[: len(tokenize(wish["start"]))] == tokenize(wish["start"])
            assert not {*wish["forbid"]} & {*words}
            assert wish["min_length"] <= len(words) <= wish["max_length"] - caption.finished


@pytest.mark.parametrize("name", ["a step at a time", "plain decoder", "ensemble", "votes"])
@pytest.mark.parametrize("search", ["beam", "sample"])
def test_log_prob_is_that_of_the_whole_caption_before_steering(name, search):
    model, own = MODELS[name]
    wish = {"start": "The yellow", "forbid": ["red", "in"], "min_length": 4, "precision": "fp32"}
    more = {"beam_size": 10, **own} if search == "beam" else {"seed": 2}
    options = model.settings(search=search, **wish, **more)
    picture = toys.Image.new("RGB", (40, 40), "green")
    [best] = model.search(model.encode(picture), options, n_best=10)
    finished = [caption for caption in best if caption.finished]
    assert finished
    for caption in finished:
        expected = model.score(picture, caption.text, per_token=False)
        assert caption.log_prob == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_by_default_only_empty_captions_change(name):
    model, _ = MODELS[name]
    features = features_of(model)
    before = model.search(features, model.settings(min_length=0, beam_size=5), n_best=5)
    after = model.search(features, model.settings(beam_size=5), n_best=5)
    for was, now in zip(before, after, strict=True):
        kept = [caption for caption in was if caption.text]
        assert now[: len(kept)] == kept


def test_a_prefix_may_be_forced_token_by_token():
    """As a page does that offers the alternatives at each word."""
    model, _ = MODELS["a step at a time"]
    features = features_of(model)[:1]
    [[best]] = model.search(features)
    words = tokenize(best.text)
    assert len(words) > 2
    for length in range(len(words) + 1):
        [[again]] = model.search(features, model.settings(start=" ".join(words[:length])))
        assert again.text == best.text
        assert again.log_prob == pytest.approx(best.log_prob, abs=1e-4)
    for word in toys.WORDS:
        [[other]] = model.search(features, model.settings(start=f"{words[0]} {word}"))
        assert tokenize(other.text)[:2] == [words[0], word]
        assert (other.text == best.text) == (word == words[1])


@pytest.mark.parametrize("search", ["beam", "sample"])
def test_the_words_of_a_start_have_alternatives_too(search):
    model, _ = MODELS["a step at a time"]
    features = features_of(model)
    free = model.search(features, model.settings(search=search), alternatives=3)
    options = model.settings(search=search, start="white", forbid=["square"])
    for [told], [best] in zip(model.search(features, options, alternatives=3), free, strict=True):
        first, *_ = told.words
        assert first.text == "white"
        assert sum(word.log_prob for word in told.words) == pytest.approx(told.log_prob, abs=1e-5)
        known = {best.words[0].text: best.words[0].log_prob} | dict(best.words[0].alternatives)
        assert first.alternatives
        for word, log_prob in first.alternatives:
            assert word not in ("white", "square")
            assert log_prob == pytest.approx(known.get(word, log_prob), abs=1e-5)


def test_words_are_read_as_captions_are():
    vocabulary = toys.vocabulary()
    options = DecodingConfig(start="  A RED, square. ", forbid=["BLUE", "blue", "unicorn", "green"])
    ids = steered(SPECIAL_IDS, options, vocabulary)
    assert vocabulary.decode(ids.start) == ["a", "red", "square"]
    assert {*ids.suppress_ids} - {*SPECIAL_IDS.suppress_ids} == {
        *vocabulary.encode(["blue", "green"])
    }
    assert steered(SPECIAL_IDS, DecodingConfig(), vocabulary)[:4] == SPECIAL_IDS[:4]
    frequent = Vocabulary({"a": 99, "dog": 1}, 1)
    assert frequent.decode(steered(SPECIAL_IDS, DecodingConfig(), frequent).repeatable) == ["a"]
    assert load_config(None, ["decoding.forbid=", "decoding.start="]).decoding == DecodingConfig()
    assert DecodingConfig(forbid="blue") == DecodingConfig(forbid=["blue"])


EVERY = list(toys.WORDS)


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"start": "a Unicorn in blau"}, "decoding.start: the model does not know unicorn, blau; "),
        ({"start": "<unk>"}, "decoding.start: the model does not know "),
        ({"start": "..."}, "decoding.start: holds no word, given '...'"),
        ({"start": "a red a", "forbid": ["A"]}, "decoding.start: holds 'a', which decoding.forbid"),
        (
            {"start": "a red blue", "max_length": 2},
            "decoding.start: 3 words, more than decoding.max_length, 2",
        ),
        (
            {"start": "a red a red", "no_repeat_ngram_size": 2},
            "decoding.start: repeats 'a red', which decoding.no_repeat_ngram_size 2 forbids",
        ),
        ({"forbid": EVERY}, "decoding.forbid: forbids every word of the model; forbid fewer"),
        ({"forbid": EVERY, "min_length": 0}, "decoding.forbid: forbids every word"),
        (
            {"forbid": EVERY[1:], "start": "a", "min_length": 2, "no_repeat_ngram_size": 1},
            "min_len",
        ),
        ({"forbid": ["doesn't"]}, "given \"doesn't\", which is 2: does, n't; forbid one"),
        (
            {"forbid": ["red", " . "]},
            "decoding.forbid: must be words, as captions hold no punctuation, given ' . '",
        ),
        (
            {"forbid": [""]},
            "decoding.forbid: must be words, as captions hold no punctuation, given ''",
        ),
        ({"forbid": [3]}, "decoding.forbid.0: input should be a valid string, given 3"),
        ({"forbid": 3}, "decoding.forbid: should be a list of words, given 3"),
        ({"start": 3}, "decoding.start: input should be a valid string, given 3"),
        ({"min_length": 25}, "decoding.min_length: must be at most decoding.max_length, 24, given"),
        (
            {"min_length": 12, "no_repeat_ngram_size": 1},
            "decoding.min_length: 11 words do not fill 12 places with decoding.no_repeat_ngram",
        ),
        ({"start": "a " * 10**6}, "decoding.start: string should have at most 10000 characters"),
        ({"forbid": ["a"] * 10**6}, "decoding.forbid: "),
    ],
)
def test_what_no_caption_fulfils_is_refused_in_one_line(wish, message):
    model, _ = MODELS["a step at a time"]
    with pytest.raises(ConfigError) as caught:
        model.settings(**wish)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 900
    with pytest.raises(ConfigError):
        model.caption(Image.new("RGB", (40, 40)), **wish)


def test_what_one_caption_fulfils_is_found():
    model, _ = MODELS["a step at a time"]
    features = features_of(model)
    for wish, text, finished in (
        ({"start": "a red square", "forbid": EVERY[2:5], "max_length": 3}, "a red square", False),
        ({"start": "a", "forbid": EVERY[1:]}, "a", True),
        ({"forbid": EVERY[1:], "min_length": 3, "max_length": 3}, "a a a", False),
        ({"start": "a a", "no_repeat_ngram_size": 1, "search": "sample"}, "a a", None),
    ):
        if "search" in wish:
            wish.pop("no_repeat_ngram_size")
        for [best, *_] in model.search(features, model.settings(**wish)):
            assert best.text.startswith(text)
            assert finished is None or (best.text, best.finished) == (text, finished)
            assert math.isfinite(best.log_prob)


def test_a_model_of_before_is_read_and_writes_at_least_a_word(tmp_path):
    model, _ = MODELS["a step at a time"]
    model.save(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for name in ("start", "forbid", "min_length"):
        del config["decoding"][name]
    path.write_text(json.dumps(config))
    assert Captioner.load(tmp_path, "cpu").decoding == DecodingConfig()


def test_a_model_keeps_what_steers_it(tmp_path):
    toy = toys.captioner(seed=18, cell="lstm")
    steering = DecodingConfig(start="the red", forbid=["blue"], min_length=3)
    model = Captioner(toy.encoder, toy.decoder, toy.vocabulary, steering)
    model.save(tmp_path)
    back = Captioner.load(tmp_path, "cpu")
    assert back.decoding == steering
    picture = Image.new("RGB", (40, 40))
    assert back.caption(picture).startswith("the red ")
    assert not back.caption(picture, start="", forbid=(), min_length=0).startswith("the red")


# ---------------------------------------------------------------------- the command line


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("steering")
    MODELS["a step at a time"][0].save(place / "model")
    toys.draw(place / "red.png", "red")
    return place


def caption(folder, *words):
    fixed = ["caption", str(folder / "red.png"), "--model", str(folder / "model")]
    done = CliRunner().invoke(main, [*fixed, *map(str, words)])
    assert not done.exception or isinstance(done.exception, SystemExit), done.exception
    return done


def test_options_steer(folder, tmp_path):
    text = caption(folder).stdout.strip().split("\t")[1]
    (tmp_path / "words.txt").write_text(
        f"{text.split()[0]}\r\n\nnobody knows\n".replace(" knows", "")
    )
    done = caption(folder, "--forbid", f"@{tmp_path / 'words.txt'}", "--min-length", 4)
    found = done.stdout.strip().split("\t")[1].split()
    assert text.split()[0] not in found
    assert len(found) >= 4
    done = caption(folder, "--start", "The yellow", "--forbid", "red", "--forbid", "green")
    assert done.stdout.strip().split("\t")[1].startswith("the yellow")
    assert caption(folder, "--forbid", "", "--start", "").stdout.strip().split("\t")[1] == text


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--start", "a unicorn"], 2, "--start: the model does not know unicorn; start with"),
        (
            ["--forbid", "hot dog"],
            2,
            "--forbid: must be single words, given 'hot dog', which is 2: hot, dog; ",
        ),
        (["--min-length", "9", "--max-length", "8"], 2, "--min-length: must be at most"),
        (["--forbid", "@nothing.txt"], 1, "nothing.txt: cannot be read: No such file"),
        (["--start", "a", "--forbid", "a"], 2, "--start: holds 'a', which decoding.forbid forbids"),
    ],
)
def test_mistakes_are_one_line(folder, words, code, message):
    for more in ([], ["--output", folder / "out.jsonl"]):
        done = caption(folder, *words, *more)
        assert done.exit_code == code
        assert message in done.stderr.splitlines()[-1]
        assert not done.stdout


def test_a_job_started_with_other_words_is_another_job(folder):
    output = folder / "job.jsonl"
    assert caption(folder, "--output", output, "--forbid", "red", "--start", "a").exit_code == 0
    first = output.read_text()
    assert caption(folder, "--output", output, "--forbid", "red", "--start", "a").exit_code == 0
    assert output.read_text() == first
    other = caption(folder, "--output", output, "--forbid", "blue", "--start", "a")
    assert other.exit_code == 2
    assert "forbid" in other.stderr


def test_training_refuses_a_start_that_its_words_cannot_write(tmp_path):
    with toys.inside(tmp_path):
        tree = toys.config(tmp_path).model_dump() | {"decoding": {"start": "a unicorn"}}
        config = type(toys.config(tmp_path)).model_validate(tree)
        with pytest.raises(ConfigError, match=r"decoding\.start: the model does not know unicorn"):
            train(config, tmp_path / "run", device="cpu")
        assert not (tmp_path / "run").exists()
