"""Spatial attention: each word looks at the places of its own image."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from captioner.config import DecodingConfig
from captioner.decoder.decoder import SPECIAL_IDS, Decoder
from captioner.decoder.ensemble import Ensemble
from captioner.decoder.likelihood import log_likelihoods
from captioner.search import beam_search, sample
from captioner.text import Vocabulary
from captioner.training import bptt

import toys

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch.nn")

CELLS = ["rnn", "gru", "lstm", "elman"]
P, C, VECTOR = 4, 3, 2
BOS, EOS = Vocabulary.bos_id, Vocabulary.eos_id


def looking(**changes: object) -> Decoder:
    """A decoder of large random weights, so that what it looks at decides what it writes."""
    decoder = toys.decoder(
        attention="spatial", feature_size=VECTOR + P * C, places=P, channels=C, **changes
    ).eval()
    with torch.no_grad():
        for weight in decoder.parameters():
            weight.add_(torch.randn_like(weight))
        decoder.output.bias[EOS] += 2  # some captions end early
    return decoder


def features(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, VECTOR + P * C, generator=torch.Generator().manual_seed(seed))


def test_the_output_is_the_formula_of_lu_et_al():
    decoder = looking()
    attention, outputs, images = decoder.attention, torch.randn(2, 3, 8), features(2)
    looked, weights = attention(outputs, decoder.keys(images))
    for b in range(2):
        for t in range(3):
            h = outputs[b, t]
            places = images[b, VECTOR:].view(P, C)
            keys = [functional.relu(attention.key(place)) for place in places]
            sentinel = functional.relu(attention.sentinel(h))
            seen = [*keys, sentinel]
            scores = torch.stack([attention.query(h) @ each / 5**0.5 for each in seen])
            shares = scores.exp() / scores.exp().sum()
            context = sum(share * each for share, each in zip(shares, seen, strict=True))
            expected = torch.tanh(attention.merge(torch.cat((context, h))))
            torch.testing.assert_close(weights[b, t], shares)
            torch.testing.assert_close(looked[b, t], expected)


def test_where_a_place_stands_changes_no_word():
    decoder, images = looking(), features(5)
    moved = images.clone()
    moved[:, VECTOR:] = images[:, VECTOR:].view(5, P, C)[:, torch.randperm(P)].flatten(1)
    ids, hidden = torch.randint(4, 20, (5, 6)), decoder.init_hidden(images)
    assert torch.equal(hidden, decoder.init_hidden(moved))  # the vector alone starts the RNN
    one, other = (
        decoder(ids, hidden, decoder.keys(images)),
        decoder(ids, hidden, decoder.keys(moved)),
    )
    torch.testing.assert_close(one, other)
    blind = decoder(ids, hidden, decoder.keys(torch.zeros_like(images)))
    assert (one[0] - blind[0]).abs().max() > 0.1


@pytest.mark.parametrize("cell", CELLS)
def test_images_searched_together_get_the_captions_they_get_alone(cell):
    decoder, images = looking(cell=cell), features(12)
    options = DecodingConfig(beam_size=3, max_length=9, length_penalty=0)
    stepper = decoder.stepper()

    def found(some: Tensor) -> list[list[list[int]]]:
        hidden, step = stepper.start(some)
        return beam_search(step, hidden, SPECIAL_IDS, options, n_best=2).token_ids.tolist()

    def words(ids: list[int]) -> list[int]:
        return ids[: ids.index(EOS)] if EOS in ids else ids

    with torch.inference_mode():
        together = found(images)
        alone = [found(image[None])[0] for image in images]
    lengths = {len(words(best[0])) for best in together}
    assert len(lengths) > 1  # some images are done before others
    assert [[*map(words, each)] for each in together] == [[*map(words, each)] for each in alone]


def test_drawn_captions_look_at_their_own_image():
    decoder, images = looking(), features(6)
    options = DecodingConfig(search="sample", max_length=40, temperature=9)
    with torch.inference_mode():
        hidden, step = decoder.stepper().start(images)
        drawn = sample(step, hidden, SPECIAL_IDS, options, n_best=4)
        assert drawn.finished.any(1).sum() > 3
        for image, sentences, totals in zip(images, drawn.token_ids, drawn.log_probs, strict=True):
            hidden, step = decoder.stepper().start(image[None])
            captions = [[i for i in ids.tolist() if i != EOS] for ids in sentences]
            ended = [EOS in ids.tolist() for ids in sentences]
            again = log_likelihoods(step, hidden, captions)[0]
            torch.testing.assert_close(again[ended], totals[ended], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cell", CELLS)
def test_a_caption_is_as_likely_as_its_words(cell):
    decoder, images = looking(cell=cell), features(3)
    captions = [[4, 5, 6], [7], []]
    with torch.inference_mode():
        hidden, step = decoder.stepper().start(images)
        found = log_likelihoods(step, hidden, captions)
        for i, words in enumerate(captions):
            ids = torch.tensor([[BOS, *words]]).repeat(3, 1)
            logits, _ = decoder(ids, hidden, decoder.keys(images))
            target = torch.tensor([*words, EOS])
            expected = logits.log_softmax(-1)[:, range(len(target)), target].sum(1)
            torch.testing.assert_close(found[:, i], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("window", [1, 2, 100])
def test_truncation_cuts_the_recurrence_and_not_the_looks(window):
    decoder = looking().train()
    batch = replace(toys.batch(), features=features(4))
    loss = bptt.backward(decoder, batch, window=window)
    grads = {name: p.grad.clone() for name, p in decoder.named_parameters() if p.requires_grad}

    decoder.zero_grad()
    hidden, total = decoder.init_hidden(batch.features), 0.0
    keys = decoder.keys(batch.features)
    for t in range(batch.inputs.shape[1]):
        if t and t % window == 0:
            hidden = hidden.detach()
        logits, hidden = decoder.step(batch.inputs[:, t], hidden, keys)
        total = total + functional.cross_entropy(
            logits, batch.targets[:, t], ignore_index=0, reduction="sum"
        )
    total = total / batch.tokens
    total.backward()
    torch.testing.assert_close(loss, total.detach())
    torch.testing.assert_close(bptt.total_loss(decoder, batch), loss * batch.tokens)
    for name, p in decoder.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(grads[name], p.grad, msg=name, atol=1e-5, rtol=1e-4)


def test_a_dropped_place_has_no_weight_and_the_sentinel_stays():
    attention = looking(place_dropout=0.9).attention.train()
    _, weights = attention(torch.randn(200, 2, 8), torch.randn(200, P, 5))
    torch.testing.assert_close(weights.sum(2), torch.ones(200, 2))
    gone = weights[:, :, :P] == 0
    assert torch.equal(gone[:, 0], gone[:, 1])  # for the whole caption
    assert gone.float().mean().item() == pytest.approx(0.9, abs=0.05)
    assert (weights[:, :, P] > 0).all()
    assert (attention.eval()(torch.randn(9, 2, 8), torch.randn(9, P, 5))[1] > 0).all()


def test_places_are_standardised_by_channel():
    decoder = looking()
    images = torch.randn(500, VECTOR + P * C) * 3
    images[:, VECTOR:] += torch.arange(P * C)
    decoder.measure(images)
    places = images[:, VECTOR:].reshape(-1, C)
    torch.testing.assert_close(decoder.attention.mean, places.mean(0), atol=1e-4, rtol=1e-4)
    expected = places.std(0, correction=0)
    torch.testing.assert_close(decoder.attention.std, expected, atol=1e-4, rtol=1e-4)


def test_an_ensemble_of_one_that_looks_and_one_that_does_not():
    members = [looking(), toys.decoder(feature_size=VECTOR).eval()]
    ensemble = Ensemble(members, [torch.arange(VECTOR + P * C), torch.arange(VECTOR)])
    images, ids, rows = features(5), torch.randint(4, 20, (5, 1)), torch.arange(5)
    with torch.inference_mode():
        hidden, step = ensemble.stepper().start(images)
        found, _ = step(ids[:, 0], hidden, rows)
        vectors = images[:, :VECTOR]
        one, _ = members[0](ids, members[0].init_hidden(images), members[0].keys(images))
        other, _ = members[1](ids, members[1].init_hidden(vectors))
        expected = (one.softmax(-1) + other.softmax(-1))[:, 0] / 2
    torch.testing.assert_close(found.exp(), expected, atol=1e-6, rtol=1e-4)
