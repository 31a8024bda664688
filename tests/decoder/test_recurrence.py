"""The hand-derived recurrence against torch.nn.RNN and autograd, in float64, to 1e-10."""

from __future__ import annotations

import doctest
import math
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from captioner.decoder import recurrence as written_out
from captioner.decoder.recurrence import (
    Elman,
    Gradients,
    Phi,
    loss_and_gradients,
    recurrence,
    recurrence_backward,
)

B, T, E, H, V = 3, 6, 5, 7, 4
PHIS: tuple[Phi, ...] = get_args(Phi)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


def network(steps: int = T) -> tuple[dict[str, Tensor], Tensor]:
    """Random float64 tensors for one network, by name, and random targets."""
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "X": (B, steps, E),
        "H_0": (B, H),
        "W_xh": (E, H),
        "W_hh": (H, H),
        "b": (H,),
        "W_ho": (H, V),
        "b_o": (V,),
    }
    tensors = {
        name: torch.randn(shape, dtype=torch.float64, generator=generator) / math.sqrt(shape[-1])
        for name, shape in shapes.items()
    }
    return tensors, torch.randint(V, (B, steps), generator=generator)


def torch_rnn(tensors: dict[str, Tensor], phi: Phi) -> nn.RNN:
    rnn = nn.RNN(E, H, nonlinearity=phi, batch_first=True, dtype=torch.float64)
    state = {
        "weight_ih_l0": tensors["W_xh"].T,
        "weight_hh_l0": tensors["W_hh"].T,
        "bias_ih_l0": tensors["b"],
        "bias_hh_l0": torch.zeros(H),
    }
    rnn.load_state_dict(state)
    return rnn


def autograd_gradients(
    tensors: dict[str, Tensor], Y: Tensor, phi: Phi, window: int
) -> tuple[Tensor, Gradients]:
    """What torch.nn.RNN, its cross-entropy and autograd say, the state detached at each window."""
    rnn = torch_rnn(tensors, phi)
    leaves = {name: tensors[name].clone().requires_grad_() for name in ("X", "H_0", "W_ho", "b_o")}
    hidden = leaves["H_0"][None]
    loss = torch.zeros((), dtype=torch.float64)
    for inputs, targets in zip(leaves["X"].split(window, 1), Y.split(window, 1), strict=True):
        states, hidden = rnn(inputs, hidden)
        logits = states @ leaves["W_ho"] + leaves["b_o"]
        loss = loss + nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), reduction="sum"
        )
        hidden = hidden.detach()
    loss.backward()
    grads = {name: leaf.grad for name, leaf in leaves.items()}
    grads["W_xh"], grads["W_hh"] = rnn.weight_ih_l0.grad.T, rnn.weight_hh_l0.grad.T
    grads["b"] = rnn.bias_ih_l0.grad
    return loss.detach(), Gradients(**grads)


def elman_beside_torch(layers: int, phi: Phi, dropout: float = 0.0) -> tuple[Elman, nn.RNN]:
    """Both modules from one seed; the second bias of torch.nn.RNN is zero and stays so."""
    torch.manual_seed(7)
    elman = Elman(E, H, layers, nonlinearity=phi, dropout=dropout)
    torch.manual_seed(7)
    rnn = nn.RNN(E, H, layers, nonlinearity=phi, batch_first=True, dropout=dropout)
    for name, parameter in rnn.named_parameters():
        if name.startswith("bias_hh"):
            nn.init.zeros_(parameter).requires_grad_(False)
    return elman, rnn


def as_torch_names(elman: Elman, *, grad: bool) -> dict[str, Tensor]:
    """The parameters of an Elman, or their gradients, named and turned as torch.nn.RNN does."""
    named = {}
    for layer, (W_xh, W_hh, b) in enumerate(zip(elman.W_xh, elman.W_hh, elman.b, strict=True)):
        pick = [p.grad if grad else p.detach() for p in (W_xh, W_hh, b)]
        named[f"weight_ih_l{layer}"], named[f"weight_hh_l{layer}"] = pick[0].T, pick[1].T
        named[f"bias_ih_l{layer}"] = pick[2]
    return named


def test_examples_of_the_page() -> None:
    page = Path(__file__).parents[2] / "docs" / "learn" / "recurrence.md"
    results = doctest.testfile(str(page), module_relative=False, encoding="utf-8")
    assert results.attempted > 8
    assert results.failed == 0


@pytest.mark.parametrize("phi", PHIS)
@pytest.mark.parametrize("steps", [1, T])
def test_states_equal_torch(phi: Phi, steps: int) -> None:
    tensors, _ = network(steps)
    expected, last = torch_rnn(tensors, phi)(tensors["X"], tensors["H_0"][None])
    states = recurrence(*(tensors[n] for n in ("X", "H_0", "W_xh", "W_hh", "b")), phi=phi)
    close(states, expected.detach())
    close(states[:, -1], last[0].detach())


@pytest.mark.parametrize("phi", PHIS)
@pytest.mark.parametrize("steps", [1, T])
def test_full_gradients_equal_autograd(phi: Phi, steps: int) -> None:
    tensors, Y = network(steps)
    loss, gradients = loss_and_gradients(**tensors, Y=Y, phi=phi)
    expected_loss, expected = autograd_gradients(tensors, Y, phi, window=steps)
    close(loss, expected_loss)
    for name in Gradients._fields:
        assert getattr(expected, name).abs().max() > 1e-3, f"{name} would prove nothing"
        close(getattr(gradients, name), getattr(expected, name))


@pytest.mark.parametrize("phi", PHIS)
@pytest.mark.parametrize("window", [1, 2, 3, 4, T, T + 1])
def test_truncated_gradients_equal_autograd_detached_at_the_window(phi: Phi, window: int) -> None:
    tensors, Y = network()
    loss, gradients = loss_and_gradients(**tensors, Y=Y, phi=phi, window=window)
    expected_loss, expected = autograd_gradients(tensors, Y, phi, window)
    close(loss, expected_loss)
    for name in Gradients._fields:
        close(getattr(gradients, name), getattr(expected, name))


def test_truncation_is_no_full_gradient() -> None:
    tensors, Y = network()
    _, full = loss_and_gradients(**tensors, Y=Y)
    _, truncated = loss_and_gradients(**tensors, Y=Y, window=2)
    for name in ("X", "H_0", "W_xh", "W_hh", "b"):
        assert (getattr(full, name) - getattr(truncated, name)).abs().max() > 1e-4
    close(truncated.W_ho, full.W_ho)
    close(truncated.b_o, full.b_o)


def test_a_window_of_no_steps_is_refused() -> None:
    tensors, Y = network()
    with pytest.raises(ValueError, match="window must be at least 1 step, got 0"):
        loss_and_gradients(**tensors, Y=Y, window=0)


def test_tanh_gradients_shrink_at_least_as_fast_as_the_recurrent_matrix() -> None:
    """The bound of the page: with |tanh'| <= 1, each step back costs a factor ||W_hh||."""
    tensors, _ = network()
    tensors["W_hh"] *= 0.5 / torch.linalg.matrix_norm(tensors["W_hh"], ord=2)
    inputs = tuple(tensors[n] for n in ("X", "H_0", "W_xh", "W_hh"))
    states = recurrence(*inputs, tensors["b"])
    grad_states = torch.zeros_like(states)
    grad_states[:, -1] = 1.0
    _, grad_first, *_ = recurrence_backward(grad_states, *inputs, states)
    assert 0 < grad_first.norm() <= 0.5**T * grad_states[:, -1].norm()


def test_a_network_that_knows_nothing_loses_log_v_each_step() -> None:
    tensors, Y = network()
    tensors["W_ho"], tensors["b_o"] = torch.zeros(H, V).double(), torch.full((V,), 3.0).double()
    loss, _ = loss_and_gradients(**tensors, Y=Y)
    assert loss.item() == pytest.approx(B * T * math.log(V), rel=1e-6)


@pytest.mark.parametrize("layers", [1, 2])
def test_gradcheck(layers: int) -> None:
    torch.manual_seed(0)
    elman = Elman(2, 3, layers).double()
    inputs = torch.randn(2, 4, 2, dtype=torch.float64, requires_grad=True)
    hidden = torch.randn(layers, 2, 3, dtype=torch.float64, requires_grad=True)
    parameters = tuple(elman.parameters())

    def run(inputs: Tensor, hidden: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
        return elman(inputs, hidden)

    assert torch.autograd.gradcheck(run, (inputs, hidden, *parameters))


def test_elman_trains_by_the_written_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def spy(*args: Tensor, **kwargs: Phi) -> tuple[Tensor, ...]:
        calls.append(kwargs)
        return recurrence_backward(*args, **kwargs)

    monkeypatch.setattr(written_out, "recurrence_backward", spy)
    outputs, _ = Elman(E, H, 2, nonlinearity="relu")(torch.randn(B, T, E), torch.zeros(2, B, H))
    outputs.sum().backward()
    assert calls == [{"phi": "relu"}] * 2


@pytest.mark.parametrize("phi", PHIS)
@pytest.mark.parametrize("layers", [1, 3])
def test_elman_starts_as_torch_and_leaves_the_generator_where_torch_does(
    phi: Phi, layers: int
) -> None:
    elman, rnn = elman_beside_torch(layers, phi)
    drawn_after_torch = torch.rand(3)
    torch.manual_seed(7)
    elman = Elman(E, H, layers, nonlinearity=phi)
    assert torch.equal(torch.rand(3), drawn_after_torch)
    ours = as_torch_names(elman, grad=False)
    assert ours.keys() == {n for n, p in rnn.named_parameters() if p.requires_grad}
    for name, parameter in ours.items():
        assert torch.equal(parameter, getattr(rnn, name).detach())


@pytest.mark.parametrize("phi", PHIS)
@pytest.mark.parametrize(("layers", "steps"), [(1, 1), (1, T), (3, 1), (3, T)])
def test_elman_equals_torch(phi: Phi, layers: int, steps: int) -> None:
    pair = [module.double() for module in elman_beside_torch(layers, phi)]
    X = torch.randn(B, steps, E, dtype=torch.float64)
    H_0 = torch.randn(layers, B, H, dtype=torch.float64)
    weights = torch.randn(B, steps, H, dtype=torch.float64)
    seen = []
    for module in pair:
        leaves = X.clone().requires_grad_(), H_0.clone().requires_grad_()
        outputs, hidden = module(*leaves)
        ((outputs * weights).sum() + hidden.square().sum()).backward()
        seen.append((outputs.detach(), hidden.detach(), leaves[0].grad, leaves[1].grad))
    for actual, expected in zip(*seen, strict=True):
        close(actual, expected)
    for name, gradient in as_torch_names(pair[0], grad=True).items():
        close(gradient, getattr(pair[1], name).grad)


@pytest.mark.parametrize("phi", PHIS)
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_elman_trains_to_the_same_losses_as_torch(phi: Phi, dropout: float) -> None:
    """Six steps of clipped SGD in float32, the same masks dropped between the layers."""
    X, Y = torch.randn(B, T, E), torch.randint(H, (B, T))
    losses: list[list[float]] = []
    for module in elman_beside_torch(2, phi, dropout):
        torch.manual_seed(1)
        optimiser = torch.optim.SGD(module.parameters(), lr=0.5)
        losses.append([])
        for _ in range(6):
            outputs, _ = module(X, torch.zeros(2, B, H))
            loss = nn.functional.cross_entropy(outputs.flatten(0, 1), Y.flatten())
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 5.0)
            optimiser.step()
            losses[-1].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][-1] != pytest.approx(losses[0][0], rel=1e-4)


def test_dropout_rests_in_eval_mode_and_spares_the_topmost_layer() -> None:
    X, H_0 = torch.randn(B, T, E), torch.randn(2, B, H)
    torch.manual_seed(7)
    plain = Elman(E, H, 2)
    elman, _ = elman_beside_torch(2, "tanh", dropout=0.9)
    assert not torch.equal(elman(X, H_0)[0], plain(X, H_0)[0])
    assert torch.equal(elman.eval()(X, H_0)[0], plain(X, H_0)[0])
    single, rnn = elman_beside_torch(1, "tanh")
    single.dropout.p = 0.9
    torch.testing.assert_close(single(X, H_0[:1])[0], rnn(X, H_0[:1])[0])


@pytest.mark.parametrize("backward_inside", [True, False])
def test_autocast_costs_no_precision(backward_inside: bool) -> None:
    elman, _ = elman_beside_torch(2, "tanh")
    X, H_0 = torch.randn(B, T, E), torch.randn(2, B, H)
    expected, _ = elman(X, H_0)
    expected.sum().backward()
    gradients = [p.grad for p in elman.parameters()]
    elman.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        outputs, hidden = elman(X, H_0)
        if backward_inside:
            outputs.sum().backward()
    if not backward_inside:
        outputs.sum().backward()
    assert outputs.dtype == hidden.dtype == torch.float32
    assert torch.equal(outputs, expected)
    for parameter, gradient in zip(elman.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)
        assert parameter.grad.dtype == torch.float32


def test_autocast_inputs_of_low_precision_are_welcome() -> None:
    elman, _ = elman_beside_torch(2, "relu")
    X = torch.randn(B, T, E, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        outputs, hidden = elman(X, torch.randn(2, B, H, dtype=torch.bfloat16))
    outputs.sum().backward()
    assert outputs.dtype == hidden.dtype == torch.float32
    assert X.grad is not None
    assert X.grad.dtype == torch.bfloat16


def test_what_elman_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="nonlinearity"):
        Elman(E, H, nonlinearity="gelu")
    with pytest.raises(ValueError, match="dropout"):
        Elman(E, H, 2, dropout=1.5)
    with pytest.raises(ValueError, match="argument"):
        Elman(E, H, 2)(torch.randn(B, T, E), torch.zeros(1, B, H))
