"""A trace shows the search that was, and the states and gradients of the caption that it found."""

from __future__ import annotations

import copy
import json
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from captioner.captioner import Captioner
from captioner.data.caption_table import Batch
from captioner.decoder.decoder import Decoder
from captioner.decoder.ensemble import Ensemble
from captioner.decoder.neighbours import Neighbours, count_ngrams
from captioner.errors import ConfigError, ImageError
from captioner.explanation.trace import Candidate, Trace, follow
from captioner.gradients.measure import state_gradients
from captioner.text import tokenize

import toys

COLOURS = ("red", "green", "blue")


def picture(colour: str = "green") -> Image.Image:
    return Image.new("RGB", (40, 40), colour)


def sharp(**changes: Any) -> Captioner:
    """A model that ends its captions."""
    model = toys.captioner(**changes)
    with torch.no_grad():
        model.decoder.output.bias[model.vocabulary.eos_id] += 1.5
    return model


def together(*models: Captioner) -> Captioner:
    columns = [torch.arange(models[0].encoder.feature_size)] * len(models)
    decoder = Ensemble([model.single_decoder("joined") for model in models], columns)
    return Captioner(models[0].encoder, decoder, models[0].vocabulary)


def with_votes() -> Captioner:
    """A model whose neighbours like a sentence that the model does not find most probable."""
    model = sharp(seed=18, cell="lstm", num_layers=2)
    liked = tokenize(model.trace(picture(), n_best=6, beam_size=6).captions[3].text)
    others = ["square", "in", "the", "middle"][: len(liked)]
    captions = [model.vocabulary.encode(words) for words in (liked, others) for _ in range(4)]
    lengths = torch.full((8,), len(liked))
    ngrams = count_ngrams(torch.tensor(captions), lengths, torch.arange(8))
    hidden = model.decoder.init_hidden(model.encode([picture()]))[:2].detach()  # h of two layers
    states = torch.nn.functional.normalize(hidden.transpose(0, 1).flatten(1)).repeat(8, 1)
    states[4:] *= -1  # the images of the other captions are not similar
    model.neighbours = Neighbours(states, **ngrams)
    return model


GRID = {"grid": 2, "grid_channels": 4}
MODELS: dict[str, tuple[Captioner, dict[str, Any]]] = {
    "rnn": (sharp(seed=3, cell="rnn"), {}),
    "elman": (sharp(seed=18, cell="elman"), {}),
    "gru": (sharp(seed=5, cell="gru", num_layers=2), {}),
    "lstm": (sharp(seed=18, cell="lstm", num_layers=2), {}),
    "bf16": (sharp(seed=18, cell="lstm"), {"precision": "bf16"}),
    "attention": (sharp(eyes=toys.encoder(**GRID), seed=18, attention="spatial"), {}),
    "ensemble": (together(sharp(seed=18, cell="gru"), sharp(seed=4, cell="lstm")), {}),
    "votes": (with_votes(), {"neighbours": 5.0}),
}
STEERED = (
    {},
    {"start": "the yellow"},
    {"forbid": ["a", "red", "square"]},
    {"min_length": 5},
    {"start": "in", "forbid": ["blue"], "min_length": 3, "no_repeat_ngram_size": 2},
    {"max_length": 3, "min_length": 3},
    {"repeat_penalty": 1.0},
)


def by_id(trace: Trace) -> dict[int, Candidate]:
    everything = [candidate for step in trace.beam.steps for candidate in step]
    numbered = {candidate.id: candidate for candidate in everything}
    assert sorted(numbered) == [*range(1, len(everything) + 1)]
    for before, after in pairwise(trace.beam.steps):
        assert max(each.id for each in before) < min(each.id for each in after)
    return numbered


def sentence(numbered: dict[int, Candidate], last: int) -> list[Candidate]:
    """The candidates from the first word to one of them."""
    path = []
    while last:
        path.append(numbered[last])
        last = numbered[last].parent
    return path[::-1]


@pytest.mark.parametrize("wish", STEERED, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_the_trace_shows_the_search_that_caption_makes(name: str, wish: dict[str, Any]) -> None:
    model, own = MODELS[name]
    wish = own | wish
    for colour, n_best in zip(COLOURS, (1, 2, 4), strict=True):
        trace = model.trace(picture(colour), n_best=n_best, beam_size=4, alternatives=3, **wish)
        options = model.settings(n_best=n_best, beam_size=4, **wish)
        [captions] = model.search(
            model.encode([picture(colour)]), options, n_best=n_best, alternatives=3
        )
        assert [*trace.captions] == captions
        numbered = by_id(trace)
        chosen = sentence(numbered, trace.beam.chosen[-1])
        assert tuple(each.id for each in chosen) == trace.beam.chosen
        assert [(each.text, each.log_prob) for each in chosen] == [
            (word.text, word.log_prob) for word in captions[0].words
        ]
        ranked = trace.beam.ranked
        assert len(ranked) == (4 if name == "votes" else n_best)
        assert [each.score for each in ranked[:n_best]] == [each.score for each in captions]
        for each in ranked:
            path = sentence(numbered, each.id)
            finished = path[-1].finished
            assert all(candidate.kept for candidate in path)
            words = [candidate.text for candidate in path][: len(path) - finished]
            assert words == tokenize(each.text)
            assert path[-1].caption == each.text
            assert [tokenize(candidate.caption) for candidate in path] == [
                words[:length] for length in range(1, len(path) + 1)
            ]
            assert each.votes == each.score - path[-1].score
            assert (each.votes == 0) or name == "votes"


@pytest.mark.parametrize("wish", STEERED, ids=str)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_step_keeps_the_best_and_cuts_the_others(
    name: str, wish: dict[str, Any], size: int
) -> None:
    model, own = MODELS[name]
    trace = model.trace(picture(), beam_size=size, **own | wish)
    numbered = by_id(trace)
    penalty = model.decoding.length_penalty
    alive = {0}  # what the next step extends
    for length, step in enumerate(trace.beam.steps, 1):
        assert 1 <= len(step) <= 2 * size
        assert {each.parent for each in step} <= alive
        totals = []
        for each in step:
            path = sentence(numbered, each.id)
            assert len(path) == length
            totals.append(sum(candidate.log_prob for candidate in path))
            assert each.score == pytest.approx(totals[-1] / length**penalty, abs=1e-5)
            assert each.finished == (each.text == "<eos>")
        assert all(one >= other - 1e-5 for one, other in pairwise(totals))
        ended = [place for place, each in enumerate(step) if each.finished]
        assert [step[place].kept for place in ended] == [place < size for place in ended]
        going = [each for each in step if not each.finished]
        if length < len(trace.beam.steps):
            assert [each.kept for each in going] == [place < size for place in range(len(going))]
            alive = {each.id for each in going if each.kept}
        else:  # only a caption that the maximum length cut off ends here
            assert {each.id for each in going if each.kept} <= {r.id for r in trace.beam.ranked}


def test_all_that_the_model_can_write_is_in_a_wide_beam() -> None:
    """The first step of a beam of V words shows the whole distribution."""
    model, _ = MODELS["lstm"]
    writable = len(model.vocabulary) - 3  # but padding, start and unknown
    trace = model.trace(picture(), beam_size=20, min_length=0)
    first = trace.beam.steps[0]
    assert len({each.text for each in first}) == len(first) == writable
    features = model.encode([picture()])
    hidden, step = model.decoder.stepper().start(features)
    logits, _ = step(torch.tensor([1]), hidden, torch.tensor([0]))
    log_probs = logits.detach().log_softmax(1)[0]
    for each in first:
        token_id = 2 if each.finished else model.vocabulary.encode([each.text])[0]
        assert each.log_prob == pytest.approx(float(log_probs[token_id]), abs=1e-5)


def test_votes_may_choose_another_caption_than_the_score() -> None:
    model, own = MODELS["votes"]
    without = model.trace(picture(), beam_size=6)
    trace = model.trace(picture(), beam_size=6, **own)
    scores = [each.score for each in trace.beam.ranked]
    assert scores == sorted(scores, reverse=True)
    assert len(trace.captions) == 1 and len(trace.beam.ranked) == 6
    assert min(each.votes for each in trace.beam.ranked) >= 0
    before = {each.text: each.score - each.votes for each in trace.beam.ranked}
    assert max(before, key=lambda text: before[text]) == without.captions[0].text
    assert trace.captions[0].text != without.captions[0].text
    assert trace.beam.ranked[0].votes > 0
    assert trace.beam.chosen[-1] == trace.beam.ranked[0].id


@pytest.mark.parametrize("name", [name for name in MODELS if name != "votes"])
@given(
    st.integers(0, 99), st.integers(1, 4), st.sampled_from(STEERED[:4]), st.sampled_from([0.3, 1.5])
)
@settings(max_examples=8, derandomize=True)
def test_a_sample_shows_the_words_drawn_and_those_that_were_not(
    name: str, seed: int, n_best: int, wish: dict[str, Any], temperature: float
) -> None:
    model, own = MODELS[name]
    wish = own | wish | {"search": "sample", "seed": seed, "temperature": temperature}
    trace = model.trace(picture(), n_best=n_best, alternatives=2, **wish)
    [captions] = model.search(
        model.encode([picture()]), model.settings(**wish), n_best=n_best, alternatives=2
    )
    assert [*trace.captions] == captions
    numbered = by_id(trace)
    drawn = set()
    for each, caption in zip(trace.beam.ranked, captions, strict=True):
        path = sentence(numbered, each.id)
        drawn |= {candidate.id for candidate in path}
        assert [c.text for c in path] == [word.text for word in caption.words]
        assert path[-1].score == pytest.approx(caption.log_prob, abs=1e-4)
        assert each.votes == 0
        for candidate, word in zip(path, caption.words, strict=True):
            beside = {c.text: c.log_prob for c in numbered.values() if c.parent == candidate.parent}
            for text, log_prob in ((word.text, word.log_prob), *word.alternatives):
                # Of two equal samples, one may hold the word and the other the alternative,
                # and the word's is a difference of sums.
                assert beside[text] == pytest.approx(log_prob, abs=1e-5)
    assert drawn == {candidate.id for candidate in numbered.values() if candidate.kept}
    for step in trace.beam.steps:
        scores = [each.score for each in step]
        assert scores == sorted(scores, reverse=True)


def token_ids(model: Captioner, trace: Trace) -> list[int]:
    ids = model.vocabulary.encode(word.text for word in trace.captions[0].words)
    return [*ids[:-1], model.vocabulary.eos_id] if trace.captions[0].finished else ids


def members(model: Captioner) -> list[Decoder]:
    return [*model.decoder.members] if isinstance(model.decoder, Ensemble) else [model.decoder]


@pytest.mark.parametrize("name", MODELS)
def test_states_are_those_that_write_the_words(name: str) -> None:
    """The output layer gives each word's probability from the state of the same time."""
    model, own = MODELS[name]
    trace = model.trace(picture(), units=10**4, **own)
    length, features = len(trace.captions[0].words), model.encode([picture()]).clone()
    ids = token_ids(model, trace)
    hidden_size = sum(member.hidden_size for member in members(model))
    assert sorted(trace.state.units) == [*range(hidden_size)]
    values = torch.tensor(trace.state.values)
    assert values.shape == (length + 1, hidden_size)
    h = values[:, torch.tensor(trace.state.units).argsort()]
    torch.testing.assert_close(torch.tensor(trace.state.norms), h.norm(dim=1))
    probs = torch.zeros(length, len(model.vocabulary))
    start = 0
    with torch.no_grad():
        for member in members(model):
            own_h = h[:, start : start + member.hidden_size]
            start += member.hidden_size
            expected = member.init_hidden(features)[member.num_layers - 1, 0]
            torch.testing.assert_close(own_h[0], expected, rtol=1e-4, atol=1e-5)
            looked = member.look(own_h[None, 1:], member.keys(features))
            probs += member.to_logits(looked)[0].softmax(1) / len(members(model))
    found = probs.log().gather(1, torch.tensor(ids)[:, None])[:, 0].tolist()
    near = 0.05 if own.get("precision") == "bf16" else 1e-4
    assert found == pytest.approx([w.log_prob for w in trace.captions[0].words], abs=near)


@pytest.mark.parametrize("name", MODELS)
def test_units_that_move_most_come_first(name: str) -> None:
    model, own = MODELS[name]
    everything = model.trace(picture(), units=10**4, **own).state
    movement = torch.tensor(everything.values).diff(dim=0).abs().sum(0).tolist()
    assert all(one >= other - 1e-6 for one, other in pairwise(movement))
    few = model.trace(picture(), units=3, **own).state
    assert few.units == everything.units[:3]
    assert few.values == tuple(row[:3] for row in everything.values)
    assert (few.norms, few.influence) == (everything.norms, everything.influence)
    none = model.trace(picture(), units=0, **own).state
    assert none.units == () and set(none.values) == {()}


@pytest.mark.parametrize("name", [name for name in MODELS if name != "ensemble"])
def test_influence_is_the_quantity_that_gradients_measures(name: str) -> None:
    """`captioner gradients` differentiates the loss of a caption's last word, at the same state."""
    model, own = MODELS[name]
    trace = model.trace(picture(), **own)
    ids = token_ids(model, trace)
    features = model.encode([picture()]).clone()
    for length in range(1, len(ids) + 1):
        inputs = torch.tensor([[model.vocabulary.bos_id, *ids[: length - 1]]])
        batch = Batch(features, inputs, torch.tensor([ids[:length]]), length)
        gradients = state_gradients(model.single_decoder("measured"), batch)
        expected = float(gradients[0].norm())
        assert trace.state.influence[length - 1] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["gru", "lstm", "ensemble"])
def test_influence_is_how_a_small_change_of_the_first_state_changes_the_words(name: str) -> None:
    """Finite differences along random directions, of all models of an ensemble together."""
    model, _ = MODELS[name]
    trace = model.trace(picture())
    ids, features = token_ids(model, trace), model.encode([picture()]).clone()
    inputs = torch.tensor([[model.vocabulary.bos_id, *ids[:-1]]])
    doubled = [copy.deepcopy(member).double() for member in members(model)]
    starts = [member.init_hidden(features).double() for member in members(model)]

    def log_probs(states: list[torch.Tensor]) -> torch.Tensor:
        each = [m(inputs, s)[0][0].softmax(1) for m, s in zip(doubled, states, strict=True)]
        return torch.stack(each).mean(0).log().gather(1, torch.tensor(ids)[:, None])[:, 0]

    with torch.no_grad():
        slopes = []
        for number, start in enumerate(starts):
            for place in range(start.numel()):
                ends = []
                for step in (1e-5, -1e-5):
                    moved = [each.clone() for each in starts]
                    moved[number].view(-1)[place] += step
                    ends.append(log_probs(moved))
                slopes.append((ends[0] - ends[1]) / 2e-5)
    expected = torch.stack(slopes).norm(dim=0).tolist()
    assert trace.state.influence == pytest.approx(expected, rel=1e-5)


def test_a_trace_from_known_features_is_that_of_the_image() -> None:
    model = toys.captioner(toys.encoder(grid=2), attention="spatial")
    features, options = model.encode(picture()), model.settings(beam_size=4, n_best=2)
    wanted = {"n_best": 2, "alternatives": 2}
    found = model.trace_features(features, options, **wanted, maps=True)
    [captions] = model.search(features, options, **wanted, maps=True)
    assert [*found.captions] == captions
    assert all(word.attention for word in captions[0].words)
    plain = model.trace(picture(), beam_size=4, **wanted)
    assert (found.beam, found.state) == (plain.beam, plain.state)
    with pytest.raises(ConfigError, match=r"features: must be a tensor \(1, "):
        model.trace_features(features.repeat(2, 1))
    with pytest.raises(ConfigError, match="n_best: must be 1 to the beam size"):
        model.trace_features(features, options, n_best=9)


def test_a_trace_changes_nothing_of_the_model() -> None:
    model, _ = MODELS["lstm"]
    before = [weight.clone() for weight in model.decoder.parameters()]
    wanted = [weight.requires_grad for weight in model.decoder.parameters()]
    first = model.trace(picture())
    with torch.inference_mode():  # as a server may call it
        assert model.trace(picture()) == first
    assert all(map(torch.equal, before, model.decoder.parameters()))
    assert [weight.requires_grad for weight in model.decoder.parameters()] == wanted
    assert all(weight.grad is None for weight in model.decoder.parameters())
    assert not model.decoder.training


@pytest.mark.parametrize("name", MODELS)
def test_the_form_of_json(name: str) -> None:
    model, own = MODELS[name]
    trace = model.trace(picture(), beam_size=3, **own)
    form = json.loads(json.dumps(trace.to_json(), allow_nan=False))
    assert form.keys() == {"beam", "state"}
    assert form["beam"].keys() == {"steps", "chosen", "ranked"}
    keys = ["id", "parent", "text", "caption", "log_prob", "score", "kept", "finished"]
    for step, candidates in zip(form["beam"]["steps"], trace.beam.steps, strict=True):
        for row, candidate in zip(step, candidates, strict=True):
            assert [*row] == keys
            assert row["text"] == ("" if candidate.finished else candidate.text)
            assert row["caption"] == candidate.caption
            for key in keys:
                if key not in ("text", "caption"):
                    assert row[key] == pytest.approx(getattr(candidate, key), abs=1e-6)
    assert form["beam"]["chosen"] == [*trace.beam.chosen]
    for row, ranked in zip(form["beam"]["ranked"], trace.beam.ranked, strict=True):
        assert [*row] == ["id", "caption", "log_prob", "score", "votes"]
        assert (row["id"], row["caption"]) == (ranked.id, ranked.text)
        for key in ("log_prob", "score", "votes"):
            assert row[key] == pytest.approx(getattr(ranked, key), abs=1e-6)
    state, length = form["state"], len(trace.captions[0].words)
    assert state["units"] == [*trace.state.units]
    assert [len(row) for row in state["values"]] == [len(state["units"])] * (length + 1)
    assert state["norms"] == pytest.approx(trace.state.norms, abs=1e-6)
    assert state["influence"] == pytest.approx(trace.state.influence, abs=1e-6)
    assert (len(state["norms"]), len(state["influence"])) == (length + 1, length)


def test_the_empty_caption_has_one_word_its_end() -> None:
    model, _ = MODELS["lstm"]
    state = follow(model.decoder, model.encode([picture()]), [model.vocabulary.eos_id], 4)
    assert (len(state.values), len(state.norms), len(state.influence)) == (2, 2, 1)
    assert all(map(math.isfinite, state.influence))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"units": -1}, "units: must be 0 to 65,536, given -1"),
        ({"units": True}, "units: must be 0 to 65,536, given True"),
        ({"units": 2.5}, "units: must be 0 to 65,536"),
        ({"alternatives": -1}, "alternatives: must be 0 to 1,000"),
        ({"n_best": 4, "beam_size": 3}, "n_best: must be 1 to the beam size"),
        ({"beam_sice": 3}, "beam_sice: no such setting .did you mean beam_size"),
        ({"start": "zebra"}, "decoding.start: the model does not know zebra"),
    ],
)
def test_bad_settings_are_one_line(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MODELS["lstm"][0].trace(picture(), **wrong)


@pytest.mark.parametrize("image", [[], [picture()], None, 3, b"no image", "nowhere.jpg"])
def test_what_is_not_one_image_is_one_line(image: Any) -> None:
    with pytest.raises(ImageError):
        MODELS["lstm"][0].trace(image)
