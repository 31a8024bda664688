from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from greedy import greedy_search
from search_toys import (
    BOS,
    EOS,
    beam_search,
    penalties,
    plain_beam_search,
    random_model,
    repeats_ngram,
    sentences_of,
    teacher_forced,
    tied_model,
    whole_space,
)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("model", [random_model, tied_model])
def test_beam_one_is_greedy(model, seed):
    step, hidden = model(seed, num_images=8)
    greedy = greedy_search(step, hidden, max_length=7)
    found = beam_search(step, hidden, beam_size=1, max_length=7)
    assert found.token_ids[:, 0].equal(greedy)


@pytest.mark.parametrize("length_penalty", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(5))
def test_beam_as_wide_as_the_space_ranks_the_whole_space(seed, length_penalty):
    step, hidden = random_model(seed, vocab_size=4)
    limits = {"max_length": 3, "length_penalty": length_penalty}
    size = 1 + 3 + 9 + 27
    every = beam_search(step, hidden, beam_size=size, n_best=size, **limits)
    few = beam_search(step, hidden, beam_size=size, n_best=3, **limits)
    for image in range(3):
        expected = whole_space(step, hidden[:, image : image + 1], vocab_size=4, **limits)
        found = sentences_of(every, image)
        assert [s.token_ids for s in found] == [s.token_ids for s in expected]
        assert [s.finished for s in found] == [s.finished for s in expected]
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.log_prob == pytest.approx(theirs.log_prob, abs=1e-5)
            assert ours.score == pytest.approx(theirs.score, abs=1e-5)
        assert sentences_of(few, image) == found[:3]


@st.composite
def searches(draw):
    model = draw(st.sampled_from([random_model, tied_model]))
    vocab_size = draw(st.integers(2, 7))
    step, hidden = model(draw(st.integers(0, 10_000)), vocab_size=vocab_size)
    beam_size, max_length = draw(st.integers(1, 6)), draw(st.integers(1, 7))
    options = {
        "beam_size": beam_size,
        "n_best": draw(st.integers(1, beam_size)),
        "max_length": max_length,
        "length_penalty": draw(st.sampled_from([0.0, 0.3, 1.0, 1.7])),
        "no_repeat_ngram_size": draw(st.integers(0, 3)),
        "repeat_penalty": draw(st.sampled_from([0.0, 0.0, 0.75, 3.0])),
        "repeatable": draw(st.sampled_from([(), (vocab_size - 1,)])),
        "suppress_ids": draw(st.sampled_from([(), (BOS,), (BOS, vocab_size - 1)]))
        if vocab_size > 2
        else (),
    }
    words = sorted({*range(vocab_size)} - {EOS, *options["suppress_ids"]})
    if not words:
        return step, hidden, options | {"start": (), "min_length": 0}
    start = tuple(draw(st.lists(st.sampled_from(words), max_size=max_length)))
    longest = max_length
    if size := options["no_repeat_ngram_size"]:  # `steered` refuses other values
        start = () if repeats_ngram(start, size) else start
        longest = min(max_length, len(words) + size - 1)
    min_length = draw(st.integers(0, longest))
    return step, hidden, options | {"start": start, "min_length": min_length}


@given(searches())
@settings(max_examples=150, derandomize=True)
def test_equals_plain_search_without_early_exit(search):
    step, hidden, options = search
    found = beam_search(step, hidden, **options)
    for image in range(hidden.shape[1]):
        expected = plain_beam_search(step, hidden[:, image : image + 1], **options)
        for ours, theirs in zip(sentences_of(found, image), expected, strict=True):
            costs = sum(penalties(theirs.token_ids, options["repeatable"]))
            log_prob = theirs.log_prob + options["repeat_penalty"] * costs
            assert ours.log_prob == pytest.approx(log_prob, abs=1e-5)
            assert replace(ours, log_prob=theirs.log_prob) == theirs


@given(searches())
@settings(max_examples=100, derandomize=True)
def test_hypotheses_are_what_they_say(search):
    step, hidden, options = search
    found = beam_search(step, hidden, **options)
    assert found.token_ids.dtype == found.lengths.dtype == torch.int64
    assert found.log_probs.dtype == found.scores.dtype == torch.float32
    assert found.token_ids.shape[:2] == (hidden.shape[1], options["n_best"])
    assert found.token_ids.shape[2] <= options["max_length"]
    for image in range(hidden.shape[1]):
        sentences = sentences_of(found, image)
        assert sentences, "there is always a best hypothesis"
        assert len({s.token_ids for s in sentences}) == len(sentences)
        ranks = [(not s.finished, -s.score) for s in sentences]
        assert ranks == sorted(ranks)
        for s in sentences:
            log_prob = teacher_forced(step, hidden[:, image : image + 1], s.token_ids)
            assert s.log_prob == pytest.approx(log_prob, abs=1e-4)
            costs = sum(penalties(s.token_ids, options["repeatable"]))
            ranked = log_prob - options["repeat_penalty"] * costs
            score = ranked / len(s.token_ids) ** options["length_penalty"]
            assert s.score == pytest.approx(score, abs=1e-4)
            assert not set(s.token_ids) & set(options["suppress_ids"])
            if options["no_repeat_ngram_size"]:
                assert not repeats_ngram(s.token_ids, options["no_repeat_ngram_size"])
            assert s.finished or len(s.token_ids) == options["max_length"]
            assert s.token_ids[: len(options["start"])] == options["start"]
            assert len(s.token_ids) - s.finished >= options["min_length"]


@given(searches())
@settings(max_examples=100, derandomize=True)
def test_a_word_at_least_changes_no_sentence_but_empty_ones(search):
    step, hidden, options = search
    options |= {"start": (), "suppress_ids": (BOS,)}
    before = beam_search(step, hidden, **options | {"min_length": 0})
    after = beam_search(step, hidden, **options | {"min_length": 1})
    for image in range(hidden.shape[1]):
        kept = [s for s in sentences_of(before, image) if s.token_ids != (EOS,)]
        assert sentences_of(after, image)[: len(kept)] == kept


def test_images_do_not_touch_each_other():
    step, hidden = random_model(3, num_images=9)
    options = {"beam_size": 4, "n_best": 3, "max_length": 8, "length_penalty": 0.7}
    together = beam_search(step, hidden, **options)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    shuffled = beam_search(step, hidden[:, order], **options)
    assert shuffled.token_ids.equal(together.token_ids[order])
    assert shuffled.scores.equal(together.scores[order])
    for image in range(9):
        alone = beam_search(step, hidden[:, image : image + 1], **options)
        assert sentences_of(alone, 0) == sentences_of(together, image)


@pytest.mark.parametrize("vocab_size", [6, 500])
def test_nothing_is_made_on_another_device_than_the_images(vocab_size):
    step, hidden = random_model(3, vocab_size=vocab_size)
    options = {"beam_size": 3, "n_best": 3, "max_length": 5, "no_repeat_ngram_size": 1}
    expected = beam_search(step, hidden, suppress_ids=(BOS,), **options)
    with torch.device("meta"):
        found = beam_search(step, hidden, suppress_ids=(BOS,), **options)
    assert found.token_ids.equal(expected.token_ids)
    assert found.scores.equal(expected.scores)


def test_images_that_are_done_cost_no_further_step():
    step, hidden = random_model(0, num_images=16, sharpness=4.0)
    rows = []

    def counted(token_ids: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        assert state.shape == (1, len(token_ids), 4)
        rows.append(len(token_ids))
        return step(token_ids, state)

    found = beam_search(counted, hidden, beam_size=3, max_length=30)
    assert found.finished.sum() > 8
    assert rows[0] == 16
    assert all(count % 3 == 0 for count in rows[1:])
    assert rows[1:] == sorted(rows[1:], reverse=True)
    assert rows[-1] <= 24


def test_stops_before_max_length_once_nothing_can_win():
    lengths = []

    def ends_at_third(token_ids: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        lengths.append(len(lengths) + 1)
        logits = torch.zeros(len(token_ids), 5)
        logits[:, EOS if lengths[-1] == 3 else 2] = 20.0
        return logits, state

    options = {"beam_size": 2, "max_length": 40}
    found = beam_search(ends_at_third, torch.zeros(1, 2, 1), **options)
    assert found.token_ids.tolist() == [[[2, 2, EOS]]] * 2
    assert found.lengths.tolist() == [[2], [2]]


def test_length_penalty_prefers_the_longer_sentence():
    # Ending at once has probability 0.4; three certain words after token 2 have 0.3.
    first = torch.tensor([0.0, 0.4, 0.3, 0.3, 0.0]).log()
    later = torch.full((5, 5), -torch.inf)
    later[2, 4] = later[4, EOS] = later[3, 3] = 0.0

    def step(token_ids: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        rows = torch.where((token_ids == BOS)[:, None], first, later[token_ids])
        return rows, state

    hidden = torch.zeros(1, 1, 1)
    best = {
        penalty: beam_search(
            step, hidden, beam_size=3, max_length=6, length_penalty=penalty
        ).token_ids[0, 0, :3]
        for penalty in (0.0, 1.0)
    }
    assert best[0.0][0] == EOS
    assert best[1.0].tolist() == [2, 4, EOS]
    # Greedy takes the likeliest word, though it could look for a longer sentence of higher score.
    greedy = beam_search(step, hidden, beam_size=1, max_length=6, length_penalty=1.0)
    assert greedy.token_ids.tolist() == [[[EOS]]]


def test_unfinished_beams_return_their_best():
    def never_ends(token_ids: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        logits = torch.tensor([0.0, -torch.inf, 1.0, 2.0])
        return logits.expand(len(token_ids), -1), state

    found = beam_search(never_ends, torch.zeros(1, 2, 1), beam_size=3, n_best=2, max_length=3)
    assert not found.finished.any()
    assert found.token_ids[0, 0].tolist() == [3, 3, 3]
    assert sorted(found.token_ids[0, 1].tolist()) == [2, 3, 3]
    assert found.lengths.tolist() == [[3, 3], [3, 3]]


def test_missing_hypotheses_are_marked():
    def only_two(token_ids: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros(len(token_ids), 3), state

    found = beam_search(
        only_two,
        torch.zeros(1, 1, 1),
        beam_size=5,
        n_best=5,
        max_length=2,
        suppress_ids=(BOS,),
    )
    assert [s.token_ids for s in sentences_of(found, 0)] == [(EOS,), (2, EOS), (2, 2)]
    assert found.log_probs[0, 3:].tolist() == [-torch.inf] * 2
    assert not found.finished[0, 2:].any()
    assert found.token_ids[0, 3:].eq(EOS).all()


def test_half_precision_logits_are_summed_in_float32():
    step, hidden = random_model(5)

    def half(token_ids: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        logits, state = step(token_ids, state)
        return logits.bfloat16(), state

    found = beam_search(half, hidden, beam_size=3, max_length=6)
    for image in range(3):
        (sentence,) = sentences_of(found, image)
        log_prob = teacher_forced(half, hidden[:, image : image + 1], sentence.token_ids)
        assert sentence.log_prob == pytest.approx(log_prob, abs=1e-5)


def test_no_images_give_no_hypotheses():
    step, hidden = random_model(0, num_images=0)
    found = beam_search(step, hidden, beam_size=2, n_best=2, max_length=4, length_penalty=1.0)
    assert found.token_ids.shape == (0, 2, 0)
    assert found.scores.shape == (0, 2)
