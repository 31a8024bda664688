from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from greedy import greedy_search
from search_toys import (
    BOS,
    EOS,
    random_model,
    sample,
    sentences_of,
    teacher_forced,
    tied_model,
)


@pytest.mark.parametrize("model", [random_model, tied_model])
def test_greedy_follows_the_largest_logit(model):
    step, hidden = model(1, num_images=12)
    written = greedy_search(step, hidden, max_length=9, suppress_ids=(BOS, 3))
    for image, row in enumerate(written.tolist()):
        state, token, ended = hidden[:, image : image + 1], BOS, False
        for found in row:
            logits, state = step(torch.tensor([token]), state)
            logits[:, [BOS, 3]] = -torch.inf
            token = EOS if ended else int(logits.argmax())
            ended = token == EOS
            assert found == token


def test_greedy_stops_when_every_row_ended():
    rows = []

    def ends_in_turn(token_ids: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        rows.append(len(token_ids))
        logits = torch.zeros(len(token_ids), 4)
        logits[:, 2] = 1.0
        logits[state[0, :, 0] == 0, EOS] = 2.0
        return logits, state - 1

    hidden = torch.tensor([2.0, 0.0, 1.0]).view(1, 3, 1)
    written = greedy_search(ends_in_turn, hidden, max_length=50)
    assert written.tolist() == [[2, 2, EOS], [EOS, EOS, EOS], [2, EOS, EOS]]
    assert written.dtype == torch.int64
    assert rows == [3, 2, 1]


def test_greedy_stops_at_max_length():
    step, hidden = random_model(0)
    long = greedy_search(step, hidden, max_length=6)
    assert greedy_search(step, hidden, max_length=2).equal(long[:, :2])
    assert greedy_search(step, hidden[:, :0], max_length=2).shape == (0, 0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}])
def test_narrowest_sampling_is_greedy(narrow, seed):
    step, hidden = random_model(seed, num_images=10)
    options = {"max_length": 8, "suppress_ids": (BOS,)}
    found = sample(step, hidden, **options, **narrow, n_best=2)
    greedy = greedy_search(step, hidden, **options)
    assert found.token_ids[:, 0].equal(greedy)
    assert found.token_ids[:, 1].equal(greedy)


@given(
    st.integers(0, 10_000),
    st.integers(1, 7),
    st.sampled_from([{}, {"top_k": 2}, {"top_p": 0.7}, {"temperature": 3.0}]),
    st.data(),
)
@settings(max_examples=60, derandomize=True)
def test_samples_keep_to_start_least_length_and_suppressed_tokens(seed, max_length, narrow, data):
    step, hidden = random_model(seed, sharpness=1.0)
    start = tuple(data.draw(st.lists(st.sampled_from([2, 3, 5]), max_size=max_length)))
    least = data.draw(st.integers(0, max_length))
    limits = {"start": start, "min_length": least, "max_length": max_length}
    generator = torch.Generator().manual_seed(seed)
    found = sample(
        step, hidden, suppress_ids=(BOS, 4), n_best=4, generator=generator, **limits, **narrow
    )
    for image in range(hidden.shape[1]):
        sentences = sentences_of(found, image)
        assert len(sentences) == 4
        for s in sentences:
            assert s.token_ids[: len(start)] == start
            assert len(s.token_ids) - s.finished >= least
            assert not {BOS, 4} & {*s.token_ids}
            log_prob = teacher_forced(step, hidden[:, image : image + 1], s.token_ids)
            assert s.log_prob == pytest.approx(log_prob, abs=1e-4)


@pytest.mark.parametrize("seed", range(40))
def test_a_word_at_least_changes_no_sample_but_an_empty_one(seed):
    step, hidden = random_model(seed, num_images=1)
    before, after = (
        sample(
            step,
            hidden,
            max_length=8,
            min_length=least,
            generator=torch.Generator().manual_seed(seed),
        )
        for least in (0, 1)
    )
    assert after.lengths.item() > 0
    assert sentences_of(after, 0) == sentences_of(before, 0) or not before.lengths.item()


PROBS = torch.tensor([0.1, 0.05, 0.4, 0.25, 0.2])


def one_step(token_ids: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    return PROBS.log().expand(len(token_ids), -1), state


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, PROBS),
        ({"temperature": 2.0}, PROBS.sqrt()),
        ({"top_k": 3}, torch.tensor([0, 0, 0.4, 0.25, 0.2])),
        ({"top_k": 99}, PROBS),
        ({"top_p": 0.6}, torch.tensor([0, 0, 0.4, 0.25, 0])),
        ({"top_p": 0.7}, torch.tensor([0, 0, 0.4, 0.25, 0.2])),
        # Of the 3 kept, renormalised, the first two hold 0.76.
        ({"top_k": 3, "top_p": 0.75}, torch.tensor([0, 0, 0.4, 0.25, 0])),
        # Temperature flattens before top-p counts: sqrt makes the first two 0.51.
        ({"temperature": 2.0, "top_p": 0.55}, torch.tensor([0, 0, 0.4, 0.25, 0.2]).sqrt()),
        ({"suppress_ids": (BOS, 2)}, torch.tensor([0, 0.05, 0, 0.25, 0.2])),
    ],
)
def test_frequencies_match_the_distribution(options, expected):
    draws = 40_000
    rng = torch.Generator().manual_seed(0)
    found = sample(
        one_step,
        torch.zeros(1, 2, 1),
        max_length=1,
        n_best=draws // 2,
        generator=rng,
        **options,
    )
    counts = torch.bincount(found.token_ids.flatten(), minlength=5)
    expected = expected / expected.sum()
    assert counts[expected == 0].sum() == 0
    assert (counts / draws - expected).abs().max() < 0.01
    log_probs = PROBS.log()[found.token_ids[:, :, 0]]
    torch.testing.assert_close(found.log_probs, log_probs)
    assert found.scores.equal(found.log_probs)


@pytest.mark.parametrize(("top_p", "drawn"), [(0.5, {EOS}), (0.51, {EOS, 3})])
def test_the_fewest_tokens_that_sum_to_top_p_are_drawn_from(top_p, drawn):
    def halves(token_ids: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0])
        return logits.expand(len(token_ids), -1), state

    found = sample(halves, torch.zeros(1, 64, 1), max_length=1, top_p=top_p)
    assert found.token_ids.shape == (64, 1, 1)
    assert set(found.token_ids.flatten().tolist()) == drawn


@pytest.mark.parametrize("narrow", [{}, {"top_k": 2}])
def test_the_coldest_draws_of_an_unsure_image_are_drawn_beside_a_sure_one(narrow):
    def step(token_ids: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return torch.outer(state[0, :, 0], torch.tensor([0.0, 0.0, 0.0, 50.0])), state

    options = {"max_length": 1, "temperature": 1e-39, "suppress_ids": (BOS,), **narrow}
    found = sample(step, torch.tensor([[[1.0], [0.0]]]), n_best=64, **options)
    assert set(found.token_ids[0].flatten().tolist()) == {3}
    assert set(found.token_ids[1].flatten().tolist()) == ({EOS, 2} if narrow else {EOS, 2, 3})


def test_samples_belong_to_their_image():
    step, hidden = random_model(2, num_images=6)
    found = sample(step, hidden, max_length=5, n_best=4, temperature=1.5, top_k=4)
    assert found.token_ids.shape[:2] == found.log_probs.shape == (6, 4)
    for image in range(6):
        sentences = sentences_of(found, image)
        assert len(sentences) == 4
        for s in sentences:
            log_prob = teacher_forced(step, hidden[:, image : image + 1], s.token_ids)
            assert s.log_prob == pytest.approx(log_prob, abs=1e-4)
            assert s.finished or len(s.token_ids) == 5


@pytest.mark.parametrize("narrow", [{}, {"top_k": 3}, {"top_p": 0.9}])
def test_nothing_is_made_on_another_device_than_the_images(narrow):
    step, hidden = random_model(2)

    def draw() -> Tensor:
        rng = torch.Generator().manual_seed(0)
        options = {"max_length": 5, "n_best": 4, "generator": rng, "suppress_ids": (BOS,)}
        return sample(step, hidden, **options, **narrow).token_ids

    expected = draw()
    with torch.device("meta"):
        assert draw().equal(expected)


def test_same_generator_same_samples():
    step, hidden = random_model(4, num_images=20)

    def draw(seed: int) -> Tensor:
        rng = torch.Generator().manual_seed(seed)
        return sample(step, hidden, max_length=6, generator=rng).token_ids

    assert draw(7).equal(draw(7))
    assert not draw(7).equal(draw(8))


def test_samples_can_be_trained_on_once_cloned():
    step, hidden = random_model(4)
    token_ids = sample(step, hidden, max_length=6).token_ids.clone()
    embedding = torch.nn.Embedding(6, 2)
    embedding(token_ids).sum().backward()
    assert embedding.weight.grad is not None
