"""A search keeps the log-probability of each token it writes, and of the best tokens there."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from captioner.search.top_tokens import ids_of, log_probs_of, to_keys

from search_toys import (
    BOS,
    EOS,
    PlainStep,
    beam_search,
    random_model,
    repeats_ngram,
    sample,
    tied_model,
)


def test_a_key_holds_both() -> None:
    log_probs = torch.tensor([0.0, -0.0, -1e-30, -0.5, -700.25, -torch.inf])
    ids = torch.tensor([0, 5, 2**31 - 1, 7, 1, 3])
    keys = to_keys(log_probs, ids)
    assert ids_of(keys).equal(ids)
    assert log_probs_of(keys).equal(log_probs)
    assert str(log_probs_of(keys)[1].item()) == "0.0"  # not -0.0
    assert log_probs_of(ids).count_nonzero() == 0


def forced(
    step: PlainStep, hidden: Tensor, ids: tuple[int, ...], suppress_ids: tuple[int, ...], ngram: int
) -> list[Tensor]:
    """The log-probabilities of every token at each place of a sentence; -inf: not to be written."""
    rows = []
    for place, before in enumerate((BOS, *ids[:-1])):
        logits, hidden = step(torch.tensor([before]), hidden)
        row = logits[0].log_softmax(0, dtype=torch.float32)
        for token in range(len(row)):
            if token in suppress_ids or (ngram and repeats_ngram((*ids[:place], token), ngram)):
                row[token] = -torch.inf
        rows.append(row)
    return rows


@given(
    st.sampled_from([random_model, tied_model]),
    st.integers(0, 10_000),
    st.booleans(),
    st.integers(2, 7),
    st.integers(0, 3),
    st.data(),
)
@settings(max_examples=120, derandomize=True)
def test_every_token_has_the_log_probability_of_its_step(
    model, seed, drawn, vocab_size, ngram, data
):
    step, hidden = model(seed, vocab_size=vocab_size)
    suppress_ids = data.draw(st.sampled_from([(), (BOS,)]))
    choices = data.draw(st.integers(0, vocab_size))
    options = {"max_length": data.draw(st.integers(1, 7)), "suppress_ids": suppress_ids}
    if drawn:
        ngram = 0
        options |= {"generator": torch.Generator().manual_seed(seed), "n_best": 3}
        found = sample(step, hidden, choices=choices, **options, temperature=3.0)
        options["generator"].manual_seed(seed)
        plain = sample(step, hidden, **options, temperature=3.0)
    else:
        beam_size = data.draw(st.integers(1, 6))
        options |= {"beam_size": beam_size, "n_best": beam_size, "no_repeat_ngram_size": ngram}
        options |= {"repeat_penalty": data.draw(st.sampled_from([0.0, 1.5]))}
        found = beam_search(step, hidden, choices=choices, **options)
        plain = beam_search(step, hidden, **options)
    for column, same in zip(found[1:], plain[1:], strict=True):
        assert column.equal(same)
    assert found.written[..., :1].equal(plain.written)
    assert found.written.shape[3] == 1 + choices
    ids, log_probs = ids_of(found.written), log_probs_of(found.written)
    for image in range(hidden.shape[1]):
        for number, total in enumerate(found.log_probs[image].tolist()):
            if total == -torch.inf:
                continue
            length = int(found.lengths[image, number] + found.finished[image, number])
            words = log_probs[image, number, :length, 0]
            assert words.double().sum().item() == pytest.approx(total, abs=1e-5)
            assert not log_probs[image, number, length:, 0].any()
            spelled = tuple(ids[image, number, :length, 0].tolist())
            rows = forced(step, hidden[:, image : image + 1], spelled, suppress_ids, ngram)
            for place, row in enumerate(rows):
                assert words[place].item() == pytest.approx(row[spelled[place]].item(), abs=1e-5)
                best = row.sort(descending=True, stable=True)
                torch.testing.assert_close(
                    log_probs[image, number, place, 1:], best.values[:choices]
                )
                assert ids[image, number, place, 1:].equal(best.indices[:choices])


@pytest.mark.parametrize("search", [beam_search, sample])
def test_the_words_of_a_long_sentence_add_up(search):
    """At a sum of -2,000 a float32 has steps of 1e-4: a rounded sum drifts away from its terms."""
    step, hidden = random_model(3, vocab_size=50, sharpness=0.2)

    def endless(token_ids: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        logits, hidden = step(token_ids, hidden)
        logits[:, EOS] -= 50
        return logits, hidden

    found = search(endless, hidden, suppress_ids=(BOS,), max_length=500, n_best=1)
    words = log_probs_of(found.written[..., 0]).double()
    assert found.log_probs.min() < -1000
    torch.testing.assert_close(words.sum(2), found.log_probs.double(), atol=1e-5, rtol=0)


def test_a_broken_image_spoils_no_other():
    step, hidden = random_model(0)

    def breaking(token_ids: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        logits, hidden = step(token_ids, hidden)
        logits[: len(logits) // 3] = torch.nan
        return logits, hidden

    for search in (beam_search, sample):
        found = search(breaking, hidden, max_length=1, choices=2)
        assert found.log_probs[0].isnan().all()
        assert found.log_probs[1:].isfinite().all()
        assert ids_of(found.written)[1:].max() <= 5
    assert EOS == 1
