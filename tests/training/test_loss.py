import pytest
import torch
from torch.nn import functional

from captioner.training.loss import cross_entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_loss_and_gradient_are_those_of_torch(dtype, smoothing):
    torch.manual_seed(0)
    values = (torch.randn(50, 30) * 4).to(dtype)
    targets = torch.randint(30, (50,))
    ours, theirs = values.clone().requires_grad_(), values.clone().requires_grad_()
    loss = cross_entropy(ours, targets, smoothing)
    wanted = functional.cross_entropy(
        theirs.float(), targets, reduction="sum", label_smoothing=smoothing
    )
    torch.testing.assert_close(loss, wanted)
    (loss * 3).backward()
    (wanted * 3).backward()
    assert ours.grad.dtype == dtype
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_scores_of_any_size_stay_finite_and_an_empty_batch_costs_nothing():
    logits = torch.tensor([[6e4, -6e4, 0.0]], requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([1]))
    loss.backward()
    assert loss.item() == pytest.approx(1.2e5)
    torch.testing.assert_close(logits.grad, torch.tensor([[1.0, -1.0, 0.0]]))
    assert cross_entropy(torch.empty(0, 3), torch.empty(0, dtype=torch.int64)) == 0
