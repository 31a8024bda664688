import pytest
import torch

from captioner.decoder.decoder import Dropout


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.9])
def test_the_share_is_dropped_at_every_place_and_the_mean_is_kept(share):
    dropped = Dropout(share)(torch.ones(100_000, 8))
    # four neighbours come from one random number: each must be dropped as often as the others
    torch.testing.assert_close((dropped == 0).float().mean(0), torch.full((8,), share), atol=0.01,
                               rtol=0)  # fmt: skip
    torch.testing.assert_close(dropped[dropped != 0].unique(), torch.tensor([1 / (1 - share)]))


def test_neighbours_are_dropped_independently():
    zeros = (Dropout(0.5)(torch.ones(100_000, 8)) == 0).float()
    torch.testing.assert_close(torch.corrcoef(zeros.T), torch.eye(8), atol=0.02, rtol=0)


def test_evaluation_and_a_share_of_zero_change_nothing():
    values = torch.randn(5, 7)
    assert torch.equal(Dropout(0.5).eval()(values), values)
    assert torch.equal(Dropout(0.0)(values), values)


def test_gradients_flow_where_values_did():
    values = torch.ones(3, 5, 7, requires_grad=True)  # no multiple of four
    dropped = Dropout(0.4)(values)
    dropped.sum().backward()
    assert torch.equal(values.grad, dropped)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_seed_alone_decides_whatever_the_layout(dtype):
    values = torch.randn(6, 4, dtype=dtype)
    torch.manual_seed(3)
    first = Dropout(0.5)(values)
    torch.manual_seed(3)
    again = Dropout(0.5)(values.t().contiguous().t())
    assert first.dtype == dtype
    assert torch.equal(first, again)
