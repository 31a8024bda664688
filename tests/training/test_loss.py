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


def test_a_word_counts_as_often_as_its_weight_and_what_cannot_be_written_has_no_gradient():
    logits = torch.tensor([[0.0, 0.0, -torch.inf], [0.0, 3.0, 0.0]]).log_softmax(-1)
    logits.requires_grad_()
    weights = torch.tensor([3.0, -0.5])
    loss = cross_entropy(logits, torch.tensor([0, 1]), weights=weights)
    loss.backward()
    e = torch.tensor(3.0).exp()
    torch.testing.assert_close(loss, 3 * torch.tensor(2.0).log() - 0.5 * ((e + 2) / e).log())
    wanted = [[-1.5, 1.5, 0.0], (-0.5 * torch.stack((1 / e, -2 / e, 1 / e)) * e / (e + 2)).tolist()]
    torch.testing.assert_close(logits.grad, torch.tensor(wanted))
