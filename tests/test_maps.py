"""`Word.attention`: where the model looked before each word."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from captioner.captioner import Captioner
from captioner.decoder.ensemble import Ensemble
from captioner.errors import ModelError
from captioner.text import Vocabulary, tokenize

import toys

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch.nn")

GRID = 3


def looking(seed: int = 0, grid: int = GRID, **changes: object) -> Captioner:
    """A captioner of large random weights: words differ, and so does where it looks."""
    captioner = toys.captioner(toys.encoder(grid=grid), attention="spatial", seed=seed, **changes)
    with torch.no_grad():
        for weight in captioner.decoder.parameters():
            weight.add_(torch.randn_like(weight))
    return captioner


def features(captioner: Captioner, count: int = 5) -> Tensor:
    draws = torch.Generator().manual_seed(1)
    return torch.randn(count, captioner.encoder.feature_size, generator=draws)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm", "elman"])
def test_each_word_has_the_weights_of_the_step_that_wrote_it(cell: str) -> None:
    captioner = looking(cell=cell)
    decoder, images = captioner.decoder, features(captioner)
    options = captioner.settings(search="sample", temperature=9, max_length=12)  # some end early
    found = captioner.search(images, options, n_best=4, maps=True)
    lengths = set()
    for image, captions in zip(images, found, strict=True):
        for caption in captions:
            words = tokenize(caption.text)
            lengths.add(len(words))
            assert [word.text for word in caption.words] == words + ["<eos>"] * caption.finished
            hidden, keys = decoder.begin(image[None])
            token = Vocabulary.bos_id
            for word in caption.words:
                with torch.inference_mode():
                    outputs, hidden = decoder.run_cell(torch.tensor([[token]]), hidden)
                    weights = decoder.attention(outputs, keys)[1].flatten()
                places = torch.tensor(word.attention.places)
                assert places.shape == (GRID, GRID)
                expected = weights[:-1].view(GRID, GRID)
                torch.testing.assert_close(places, expected, atol=1e-4, rtol=1e-4)
                assert word.attention.sentinel == pytest.approx(weights[-1].item(), abs=1e-4)
                token = captioner.vocabulary.encode([word.text])[0]
    assert len(lengths) > 1


@pytest.mark.parametrize("search", ["beam", "sample"])
def test_maps_change_no_caption(search: str) -> None:
    captioner = looking()
    options = captioner.settings(search=search)
    plain = captioner.search(features(captioner), options)
    mapped = captioner.search(features(captioner), options, maps=True)
    assert all(caption.words == () for [caption] in plain)
    assert [[replace(caption, words=())] for [caption] in mapped] == plain


def test_without_attention_there_is_no_map() -> None:
    captioner = toys.captioner()
    assert captioner.map_size() == 0
    [[caption]] = captioner.search(features(captioner, 1), maps=True)
    assert caption.words
    assert all(word.attention is None for word in caption.words)


def test_an_ensemble_has_the_mean_map_of_the_models_that_look() -> None:
    one, other = looking(), looking(seed=1)
    size = one.encoder.feature_size
    blind = toys.decoder(vocab_size=len(one.vocabulary), feature_size=one.encoder.vector_size)
    columns = [torch.arange(size), torch.arange(size), torch.arange(one.encoder.vector_size)]
    members = [one.decoder, other.decoder, blind.eval()]
    captioner = Captioner(one.encoder, Ensemble(members, columns), one.vocabulary)
    assert captioner.map_size() == GRID
    images = features(one, 2)
    options = captioner.settings(search="sample", temperature=9)
    for image, [caption] in zip(images, captioner.search(images, options, maps=True), strict=True):
        ids = captioner.vocabulary.encode(tokenize(caption.text))
        assert ids
        inputs = torch.tensor([[[Vocabulary.bos_id, *ids[:-1]]]])
        weights = [each.decoder.attend(image[None], inputs) for each in (one, other)]
        expected = torch.stack(weights).mean(0)[0, 0, :, :-1].unflatten(1, (GRID, GRID))
        found = torch.tensor([word.attention.places for word in caption.words[: len(ids)]])
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_models_of_other_grids_have_no_common_map() -> None:
    one, other = looking(), looking(grid=2)
    sizes = [one.encoder.feature_size, other.encoder.feature_size]
    columns = [torch.arange(size) for size in sizes]
    captioner = Captioner(
        one.encoder, Ensemble([one.decoder, other.decoder], columns), one.vocabulary
    )
    captioner.name = "model a and model b"
    with pytest.raises(ModelError, match=r"different encoder\.grid, 2 and 3"):
        captioner.search(features(one, 1), maps=True)


def test_a_map_comes_from_float32_whatever_the_search_rounds() -> None:
    captioner = looking(hidden_size=256)
    images = features(captioner)
    rounded, exact = (
        captioner.search(images, captioner.settings(precision=precision, max_length=5), maps=True)
        for precision in ("bf16", "fp32")
    )
    same = [
        [torch.tensor([w.attention.places for w in caption.words]) for caption in (a, b)]
        for [a], [b] in zip(rounded, exact, strict=True)
        if a.text == b.text
    ]
    assert same
    for one, other in same:
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
