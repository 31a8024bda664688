"""`Caption.words`: the log-probability of every word adds up to the caption's."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from captioner.captioner import Captioner
from captioner.decoder.ensemble import Ensemble
from captioner.decoder.neighbours import Neighbours, count_ngrams
from captioner.errors import ConfigError
from captioner.text import Caption, Vocabulary, tokenize

import toys

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch.nn")

SEARCHES = (
    {},
    {"beam_size": 4, "length_penalty": 1.0},
    {"no_repeat_ngram_size": 1, "beam_size": 5},
    {"repeat_penalty": 0.5, "beam_size": 5},
    {"search": "sample", "temperature": 3.0},
    {"search": "sample", "top_p": 0.8},
)


def lively(seed: int = 0, **changes: object) -> Captioner:
    """A captioner of large random weights, whose captions differ."""
    captioner = toys.captioner(seed=seed, **changes)
    with torch.no_grad():
        for weight in captioner.decoder.parameters():
            weight.add_(torch.randn_like(weight) * (8 / captioner.decoder.hidden_size) ** 0.5)
    return captioner


def features(captioner: Captioner, count: int = 6) -> Tensor:
    draws = torch.Generator().manual_seed(1)
    return torch.randn(count, captioner.encoder.feature_size, generator=draws)


def together(*captioners: Captioner) -> Captioner:
    first = captioners[0]
    columns = [torch.arange(first.encoder.feature_size)] * len(captioners)
    ensemble = Ensemble([each.decoder for each in captioners], columns)
    return Captioner(first.encoder, ensemble, first.vocabulary)


def check(caption: Caption) -> None:
    words = [word.text for word in caption.words]
    assert words == [*tokenize(caption.text), *["<eos>"] * caption.finished]
    total = math.fsum(word.log_prob for word in caption.words)
    assert total == pytest.approx(caption.log_prob, abs=1e-5)


@pytest.mark.parametrize("options", SEARCHES, ids=str)
@pytest.mark.parametrize("max_length", [2, 40])
@pytest.mark.parametrize("kind", ["rnn", "lstm", "elman", "tied", "bf16", "ensemble", "bf16s"])
def test_the_words_add_up(kind: str, max_length: int, options: dict[str, object]) -> None:
    cells = {"cell": kind} if kind in ("lstm", "elman") else {"tie_weights": kind == "tied"}
    size = {"hidden_size": 256} if kind.startswith("bf16") else {}
    captioner = lively(**cells, **size)
    if kind in ("ensemble", "bf16s"):
        captioner = together(captioner, lively(seed=1, **size), lively(seed=2, **size))
    precision = {"precision": "bf16"} if size else {}
    chosen = captioner.settings(n_best=3, max_length=max_length, **options, **precision)
    found = captioner.search(features(captioner), chosen, n_best=3, words=True)
    for captions in found:
        for caption in captions:
            check(caption)
    every = [caption for captions in found for caption in captions]
    assert len({caption.text for caption in every}) > 1
    if max_length == 2:
        assert not all(caption.finished for caption in every)
    plain = captioner.search(features(captioner), chosen, n_best=3)
    assert [[replace(c, words=()) for c in captions] for captions in found] == plain


def test_votes_of_neighbours_keep_words_and_captions_together() -> None:
    captioner = lively()
    images = features(captioner, 12)
    found = captioner.search(images, captioner.settings(beam_size=4), n_best=4)
    rows = [captioner.vocabulary.encode(tokenize(best[2].text)) for best in found]
    ids = torch.nn.utils.rnn.pad_sequence(list(map(torch.tensor, rows)), batch_first=True)
    lengths = torch.tensor(list(map(len, rows)))
    ngrams = count_ngrams(ids.long(), lengths, torch.arange(len(rows)))
    captioner.neighbours = Neighbours.gather(captioner.decoder, [images], ngrams)
    options = captioner.settings(beam_size=4, neighbours=50.0)
    voted = captioner.search(images, options, n_best=2, alternatives=2)
    assert [v[0].text for v in voted] != [f[0].text for f in found]
    for captions in voted:
        for caption in captions:
            check(caption)


def test_alternatives_are_the_best_other_words_of_the_step() -> None:
    captioner = lively()
    vocabulary, decoder = captioner.vocabulary, captioner.decoder
    images = features(captioner)
    options = captioner.settings(search="sample", temperature=5.0, max_length=6, min_length=0)
    beside = 0
    for image, [caption] in zip(
        images, captioner.search(images, options, alternatives=3), strict=True
    ):
        check(caption)
        hidden, keys = decoder.begin(image[None])
        token = Vocabulary.bos_id
        for word in caption.words:
            with torch.inference_mode():
                logits, hidden = decoder.step(torch.tensor([token]), hidden, keys)
            token = Vocabulary.eos_id
            if word.text != "<eos>":
                [token] = vocabulary.encode([word.text])
            expected = {
                vocabulary.shown(other): value
                for other, value in enumerate(logits[0].log_softmax(0).tolist())
                if other not in (*Vocabulary.unwritable, token)
            }
            best = sorted(expected, key=expected.__getitem__, reverse=True)[:3]
            assert [text for text, _ in word.alternatives] == best
            for text, log_prob in word.alternatives:
                assert log_prob == pytest.approx(expected[text], abs=1e-5)
            values = [log_prob for _, log_prob in word.alternatives]
            beside += values[0] > word.log_prob
    assert beside  # a sampled word may be less probable than all of its alternatives


def test_there_are_no_more_alternatives_than_words() -> None:
    captioner = lively()
    [[caption]] = captioner.search(
        features(captioner, 1), captioner.settings(min_length=0), alternatives=1000
    )
    writable = len(captioner.vocabulary) - len(Vocabulary.unwritable)
    assert {len(word.alternatives) for word in caption.words} == {writable - 1}


def test_an_empty_caption_is_its_end_token() -> None:
    captioner = toys.captioner()
    with torch.no_grad():
        captioner.decoder.output.bias[Vocabulary.eos_id] = 50.0
    [[caption]] = captioner.search(
        features(captioner, 1), captioner.settings(min_length=0), words=True
    )
    assert (caption.text, [word.text for word in caption.words]) == ("", ["<eos>"])


@pytest.mark.parametrize("number", [-1, 1001, 2.0, True, "3"])
def test_a_number_of_alternatives_has_bounds(number: object) -> None:
    captioner = toys.captioner()
    with pytest.raises(ConfigError, match="alternatives: must be 0 to 1,000, given"):
        captioner.search(features(captioner, 1), alternatives=number)


def test_brackets_are_words_as_in_the_text() -> None:
    vocabulary = Vocabulary.build([tokenize("a dog (it's) n't")], min_count=1)
    ids = vocabulary.encode(["-lrb-", "'s", "dog"])
    assert [vocabulary.shown(each) for each in (*ids, Vocabulary.eos_id)] == [
        "(",
        "'s",
        "dog",
        "<eos>",
    ]
