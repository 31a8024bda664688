from __future__ import annotations

import pytest
import torch

from captioner.search.common import token_log_probs, top_tokens


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


def test_suppression_leaves_the_other_probabilities_alone():
    logits = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 5.0]], dtype=torch.float16)
    found = token_log_probs(logits, torch.tensor([2]))
    expected = logits.float().log_softmax(1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[:, :2], expected[:, :2])
    assert found[:, 2].isneginf().all()
    assert logits.isfinite().all(), "the model's own tensor is not written to"
