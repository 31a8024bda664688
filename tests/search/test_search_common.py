from __future__ import annotations

import doctest
import sys

import pytest
import torch

from captioner.search.common import Hypotheses, SpecialIds, TokenRules, finished_first
from captioner.search.top_tokens import top_tokens


@pytest.mark.parametrize(
    ("vocab_size", "k"), [(5, 1), (5, 5), (70, 3), (700, 1), (1000, 6), (2571, 4), (2600, 2600)]
)
def test_top_tokens_is_a_stable_sort(vocab_size, k):
    log_probs = -torch.randn(40, vocab_size, generator=torch.Generator().manual_seed(k)).abs()
    log_probs = log_probs.bfloat16().float()  # coarse enough for plenty of ties
    log_probs[0] = 0.0
    log_probs[1, : vocab_size - 1] = -torch.inf
    log_probs[2, ::2] = log_probs[2].max()
    values, token_ids = top_tokens(log_probs, k)
    expected = log_probs.sort(dim=1, descending=True, stable=True)
    assert values.equal(expected.values[:, :k])
    assert token_ids.equal(expected.indices[:, :k])


def test_the_worked_example_of_top_tokens():
    results = doctest.testmod(sys.modules[top_tokens.__module__])
    assert results.attempted == 2
    assert not results.failed


def test_suppression_leaves_the_other_probabilities_alone():
    logits = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 5.0]], dtype=torch.float16)
    found = TokenRules(SpecialIds(0, 1, (2,)), 0, logits.device).log_probs(logits, 0)
    expected = logits.float().log_softmax(1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[:, :2], expected[:, :2])
    assert found[:, 2].isneginf().all()
    assert logits.isfinite().all(), "the model's own tensor is not written to"


def test_the_end_waits_and_a_start_leaves_its_token():
    logits = torch.tensor([[1.0, 2.0, 3.0, 0.5], [0.0, 0.0, 5.0, 4.0]])
    rules = TokenRules(SpecialIds(0, 1, (0,), start=(3, 2)), 3, logits.device)
    every = logits.log_softmax(1)

    def holds(found, allowed):
        for token in range(4):
            expected = every[:, token] if token in allowed else torch.full((2,), -torch.inf)
            torch.testing.assert_close(found[:, token], expected)

    for length, given, free in ((0, {3}, {2, 3}), (1, {2}, {2, 3}), (2, {2, 3}, {2, 3})):
        found = rules.log_probs(logits, length)
        holds(found, free)
        rules.force(found, length)
        holds(found, given)
    holds(rules.log_probs(logits, 3), {1, 2, 3})


def three_of_two_images() -> Hypotheses:
    return Hypotheses(
        written=torch.tensor([[[4, 5, 6], [7, 1, 1], [8, 9, 1]], [[2, 3, 1], [2, 1, 1], [1] * 3]])[
            ..., None
        ],
        lengths=torch.tensor([[3, 1, 2], [2, 1, 0]]),
        log_probs=torch.tensor([[-1.0, -4.0, -3.0], [-3.0, -2.0, -0.5]]),
        scores=torch.tensor([[-10.0, -40.0, -30.0], [-30.0, -20.0, -5.0]]),
        finished=torch.tensor([[False, True, True], [True, True, True]]),
    )


def test_sentences_are_taken_whole():
    found = three_of_two_images()
    taken = found.take(torch.tensor([[2, 0], [1, 1]]))
    assert taken.token_ids.tolist() == [[[8, 9, 1], [4, 5, 6]], [[2, 1, 1], [2, 1, 1]]]
    assert taken.lengths.tolist() == [[2, 3], [1, 1]]
    assert taken.log_probs.tolist() == [[-3.0, -1.0], [-2.0, -2.0]]
    assert taken.scores.tolist() == [[-30.0, -10.0], [-20.0, -20.0]]
    assert taken.finished.tolist() == [[True, False], [True, True]]


def test_other_scores_rank_the_finished_first_and_equal_ones_as_they_were():
    scores = torch.tensor([[9.0, 1.0, 2.0], [5.0, 6.0, 5.0]])
    ranked = finished_first(three_of_two_images(), scores)
    assert ranked.lengths.tolist() == [[2, 1, 3], [1, 2, 0]]
    assert ranked.scores.tolist() == [[2.0, 1.0, 9.0], [6.0, 5.0, 5.0]]
    assert ranked.log_probs.tolist() == [[-3.0, -4.0, -1.0], [-2.0, -3.0, -0.5]]
    many = Hypotheses(
        written=torch.arange(200).view(1, 200, 1, 1),
        lengths=torch.ones(1, 200, dtype=torch.int64),
        log_probs=torch.zeros(1, 200),
        scores=torch.zeros(1, 200),
        finished=torch.arange(200).lt(100)[None],
    )
    assert finished_first(many, torch.zeros(1, 200)).token_ids.flatten().tolist() == [*range(200)]
