"""An Elman network and its gradients, derived by hand.

    H_t = phi(Z_t),   Z_t = X_t W_xh + H_t-1 W_hh + b        t = 1 ... T, from H_0
    O_t = H_t W_ho + b_o
    L   = sum over t of l(O_t, Y_t)

`docs/learn/recurrence.md` derives every line of the backward pass. The tests compare the results
with `torch.nn.RNN` and autograd. `Elman` is the captioner's cell `elman`.
"""

# The names are those of the formulas above. Some docstrings group arguments in one line.
# ruff: noqa: D417, E741, N803, N806

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import Tensor, nn

Phi = Literal["tanh", "relu"]

_PHI: Final[dict[str, Callable[[Tensor], Tensor]]] = {"tanh": torch.tanh, "relu": torch.relu}

# phi'(Z), computed from H = phi(Z): the backward pass needs no Z.
_SLOPE: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "tanh": lambda H: 1 - H * H,
    "relu": lambda H: (H > 0).to(H.dtype),
}


class Gradients(NamedTuple):
    """The gradients of the loss with respect to every input and weight."""

    X: Tensor
    H_0: Tensor
    W_xh: Tensor
    W_hh: Tensor
    b: Tensor
    W_ho: Tensor
    b_o: Tensor


def recurrence(
    X: Tensor, H_0: Tensor, W_xh: Tensor, W_hh: Tensor, b: Tensor, *, phi: Phi = "tanh"
) -> Tensor:
    """Compute every hidden state, H_t = phi(X_t W_xh + H_t-1 W_hh + b).

    Source: J. L. Elman, "Finding Structure in Time", Cognitive Science 14 (1990).

    Args:
        X: inputs, (B, T, E), T at least 1.
        H_0: the state before the first step, (B, H).
        W_xh, W_hh, b: weights (E, H) and (H, H), bias (H,).
        phi: the non-linearity, "tanh" or "relu".

    Returns:
        The states H_1 ... H_T, (B, T, H); the last one is `H[:, -1]`.
    """
    # The inputs' terms depend on no state: one product computes them for all steps.
    from_inputs = X @ W_xh + b  # (B, T, H)
    states = []
    H_t = H_0
    for from_input in from_inputs.unbind(1):
        H_t = _PHI[phi](torch.addmm(from_input, H_t, W_hh))
        states.append(H_t)
    return torch.stack(states).transpose(0, 1)  # (T, B, H) -> (B, T, H)


def recurrence_backward(
    grad_H: Tensor,
    X: Tensor,
    H_0: Tensor,
    W_xh: Tensor,
    W_hh: Tensor,
    H: Tensor,
    *,
    phi: Phi = "tanh",
    window: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Backpropagate the gradients of the states through time to inputs, H_0 and weights.

    Sources: P. J. Werbos, "Backpropagation Through Time: What It Does and How to Do It", Proc.
    IEEE 78 (1990); truncated: R. J. Williams and J. Peng, "An Efficient Gradient-Based Algorithm
    for On-Line Training of Recurrent Network Trajectories", Neural Computation 2 (1990).

    Args:
        grad_H: gradient of the loss with respect to each state, paths through later states
            excluded, (B, T, H).
        X, H_0, W_xh, W_hh: the arguments of `recurrence`.
        H: the states that `recurrence` returned, (B, T, H).
        phi: the non-linearity of `recurrence`.
        window: steps of truncated backpropagation, at least 1: no gradient passes from step
            k * window + 1 back to step k * window; None: no truncation.

    Returns:
        dL/dX, dL/dH_0, dL/dW_xh, dL/dW_hh and dL/db, each with the shape of its tensor.

    Raises:
        ValueError: if window < 1.
    """
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1 step, got {window}")
    steps = H.shape[1]
    slope = _SLOPE[phi](H)
    deltas = []  # Delta_t = dL/dZ_t, from the last step to the first
    from_later = torch.zeros_like(H_0)  # dL/dH_t through H_t+1
    for t in reversed(range(steps)):
        if window is not None and (t + 1) % window == 0:
            from_later = torch.zeros_like(H_0)
        delta = (grad_H[:, t] + from_later) * slope[:, t]
        from_later = delta @ W_hh.T
        deltas.append(delta)
    Delta = torch.stack(deltas[::-1], dim=1)  # (B, T, H)
    H_before = torch.cat([H_0[:, None], H[:, :-1]], dim=1)  # H_t-1 for each Delta_t
    return (
        Delta @ W_xh.T,
        from_later,
        torch.einsum("bte,bth->eh", X, Delta),
        torch.einsum("btg,bth->gh", H_before, Delta),
        Delta.sum((0, 1)),
    )


def loss_and_gradients(
    X: Tensor,
    Y: Tensor,
    H_0: Tensor,
    W_xh: Tensor,
    W_hh: Tensor,
    b: Tensor,
    W_ho: Tensor,
    b_o: Tensor,
    *,
    phi: Phi = "tanh",
    window: int | None = None,
) -> tuple[Tensor, Gradients]:
    """Compute the loss of the whole network, in nats, and all its gradients.

    Args:
        X, H_0, W_xh, W_hh, b, phi: see `recurrence`.
        Y: target of each step, int64 (B, T), from 0 to V - 1.
        W_ho, b_o: hidden to output, (H, V), and its bias, (V,).
        window: truncation of the gradients, see `recurrence_backward`; no effect on the loss.

    Raises:
        ValueError: if window < 1.
    """
    H = recurrence(X, H_0, W_xh, W_hh, b, phi=phi)
    O = H @ W_ho + b_o  # logits, (B, T, V)
    loss = -O.log_softmax(-1).gather(-1, Y[..., None]).sum()
    grad_O = O.softmax(-1) - nn.functional.one_hot(Y, O.shape[-1])
    grad_W_ho, grad_b_o = torch.einsum("bth,btv->hv", H, grad_O), grad_O.sum((0, 1))
    recurrent = recurrence_backward(grad_O @ W_ho.T, X, H_0, W_xh, W_hh, H, phi=phi, window=window)
    return loss, Gradients(*recurrent, W_ho=grad_W_ho, b_o=grad_b_o)


class _Recurrence(torch.autograd.Function):
    """`recurrence` as an autograd function with `recurrence_backward` as its backward pass."""

    @staticmethod
    def forward(X: Tensor, H_0: Tensor, W_xh: Tensor, W_hh: Tensor, b: Tensor, phi: Phi) -> Tensor:
        return recurrence(X, H_0, W_xh, W_hh, b, phi=phi)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        X, H_0, W_xh, W_hh, _, ctx.phi = inputs
        ctx.save_for_backward(X, H_0, W_xh, W_hh, output)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_H: Tensor) -> tuple[Tensor | None, ...]:
        # A caller may run backward() inside autocast, which would lower the precision.
        with torch.autocast(grad_H.device.type, enabled=False):
            gradients = recurrence_backward(grad_H, *ctx.saved_tensors, phi=ctx.phi)
        return *gradients, None


class Elman(nn.Module):
    """A replacement for `torch.nn.RNN(batch_first=True)` that uses the functions above.

    With the same seed, the initial weights equal those of `torch.nn.RNN`. There is one bias, not
    two. The weights' dtype is the precision of the computation, even under autocast.

    Args as for `torch.nn.RNN`; `nonlinearity` is phi, and layer n + 1 reads the states of layer n.

    Raises:
        ValueError: if an argument is outside its range.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        nonlinearity: Phi = "tanh",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        rnn = nn.RNN(input_size, hidden_size, num_layers, nonlinearity=nonlinearity)
        self.phi: Phi = nonlinearity
        self.dropout = nn.Dropout(dropout)
        self.W_xh = nn.ParameterList()
        self.W_hh = nn.ParameterList()
        self.b = nn.ParameterList()
        for weight_ih, weight_hh, bias_ih, _ in rnn.all_weights:
            self.W_xh.append(nn.Parameter(weight_ih.detach().T.contiguous()))
            self.W_hh.append(nn.Parameter(weight_hh.detach().T.contiguous()))
            self.b.append(nn.Parameter(bias_ih.detach()))

    def forward(self, inputs: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the states of all layers for all steps.

        Args:
            inputs: (B, T, E), T at least 1.
            hidden: the state of each layer before the first step, (L, B, H).

        Returns:
            The states of the last layer, (B, T, H), and the last state of each layer, (L, B, H).
        """
        dtype = self.b[0].dtype
        H = inputs.to(dtype)
        last = []
        with torch.autocast(inputs.device.type, enabled=False):
            layers = zip(hidden.to(dtype), self.W_xh, self.W_hh, self.b, strict=True)
            for layer, (H_0, W_xh, W_hh, b) in enumerate(layers):
                # Dropout draws in memory order. `recurrence` leaves time first, which is the
                # order in which torch.nn.RNN draws on a CPU.
                X = self.dropout(H) if layer else H
                H = _Recurrence.apply(X, H_0, W_xh, W_hh, b, self.phi)
                last.append(H[:, -1])
        return H, torch.stack(last)
