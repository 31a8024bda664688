"""Consensus: of its own candidates the model keeps the one that the others agree with."""

import math
from collections import Counter

import pytest
import torch

from captioner.search import Hypotheses, by_consensus

END = 1


def hypotheses(sentences, scores, finished=None):
    """Make hypotheses of one image from lists of token ids."""
    width = max(map(len, sentences)) + 1
    ids = torch.full((1, len(sentences), width), END)
    for row, sentence in zip(ids[0], sentences, strict=True):
        row[: len(sentence)] = torch.tensor(sentence, dtype=torch.int64)
    lengths = torch.tensor([[len(sentence) for sentence in sentences]])
    scores = torch.tensor([scores])
    done = torch.ones_like(lengths, dtype=torch.bool) if finished is None else finished
    return Hypotheses(ids, lengths, scores * 10, scores, done)


def similarity(one, other):
    """Compute by the book what `by_consensus` computes for a batch."""
    total = 0.0
    for order in (1, 2, 3, 4):
        a, b = (
            Counter(tuple(s[i : i + order]) for i in range(len(s) - order + 1))
            for s in (one, other)
        )
        if a and b:
            total += sum((a & b).values()) / math.sqrt(sum(a.values()) * sum(b.values())) / 4
    return total * math.exp(-((len(one) - len(other)) ** 2) / (2 * 6.0**2))


def test_scores_are_expected_similarities_by_the_book():
    generator = torch.Generator().manual_seed(0)
    sentences = [
        torch.randint(2, 5, (length,), generator=generator).tolist()
        for length in (1, 4, 4, 7, 9, 3)
    ]
    scores = [-1.0, -1.2, -0.8, -2.0, -1.1, -0.9]
    found = by_consensus(hypotheses(sentences, scores), 0.5)
    weights = torch.tensor(scores).div(0.5).softmax(0).tolist()
    expected = {
        tuple(one): sum(
            w * similarity(one, other) for w, other in zip(weights, sentences, strict=True)
        )
        for one in sentences
    }
    for ids, length, score in zip(
        found.token_ids[0].tolist(),
        found.lengths[0].tolist(),
        found.scores[0].tolist(),
        strict=True,
    ):
        assert score == pytest.approx(expected[tuple(ids[:length])], abs=1e-6)
    assert found.scores[0].tolist() == sorted(found.scores[0].tolist(), reverse=True)


def test_the_odd_one_out_loses_unless_it_is_trusted():
    sentences = [[9, 8, 7], [2, 3, 4, 5], [2, 3, 4, 6], [2, 3, 4, 5, 5]]
    found = hypotheses(sentences, [-0.5, -0.7, -0.8, -0.9])
    chosen = by_consensus(found, 10.0)
    assert chosen.token_ids[0, 0, :4].tolist() == [2, 3, 4, 5]
    assert chosen.token_ids[0, 3, :3].tolist() == [9, 8, 7]
    assert chosen.log_probs[0, 0].item() == pytest.approx(-7.0)  # its own, not the best one's
    assert by_consensus(found, 0.01).token_ids[0, 0, :3].tolist() == [9, 8, 7]


def test_places_that_hold_nothing_and_unfinished_sentences_do_not_vote():
    finished = torch.tensor([[True, True, False, False]])
    found = hypotheses([[2, 3], [2, 4], [9, 9], []], [-1.0, -1.1, -0.1, -math.inf], finished)
    chosen = by_consensus(found, 1.0)
    assert {tuple(ids[:2]) for ids in chosen.token_ids[0, :2].tolist()} == {(2, 3), (2, 4)}
    assert chosen.finished[0].tolist() == [True, True, False, False]
    assert chosen.scores[0, 2] == 0  # a number, which every format can hold
    assert chosen.scores[0, 3] == -math.inf
    alone = by_consensus(hypotheses([[2, 3]], [-1.0], torch.tensor([[False]])), 1.0)
    assert alone.lengths.tolist() == [[2]]
    assert alone.scores.isfinite().all()


def test_images_compared_apart_agree_as_those_compared_together(monkeypatch):
    torch.manual_seed(0)
    token_ids = torch.randint(0, 5, (7, 6, 9))
    log_probs = torch.randn(7, 6)
    found = Hypotheses(token_ids, torch.full((7, 6), 9), log_probs, log_probs, log_probs > -9)
    together = by_consensus(found, 1.0)
    monkeypatch.setattr("captioner.search.consensus.ROOM", 2 * (6 * 9) ** 2)
    apart = by_consensus(found, 1.0)
    assert torch.equal(together.token_ids, apart.token_ids)
    assert torch.equal(together.scores, apart.scores)
