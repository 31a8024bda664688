import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from captioner.training import bptt

import toys


def gradients(decoder, batch, **options):
    decoder.zero_grad()
    loss = bptt.backward(decoder, batch, **options)
    grads = {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in decoder.named_parameters()
    }
    return loss, grads


def test_loss_and_gradients_are_those_of_cross_entropy_over_real_tokens():
    decoder, batch = toys.decoder(), toys.batch()
    loss, grads = gradients(decoder, batch, label_smoothing=0.1)
    decoder.zero_grad()
    logits, _ = decoder(batch.inputs, decoder.init_hidden(batch.features))
    expected = nn.functional.cross_entropy(
        logits.flatten(0, 1), batch.targets.flatten(), ignore_index=0, label_smoothing=0.1
    )
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    for name, p in decoder.named_parameters():
        torch.testing.assert_close(grads[name], p.grad, msg=name)


def test_padding_teaches_nothing():
    decoder, batch = toys.decoder(), toys.batch()
    _, grads = gradients(decoder, batch)
    assert (grads["embedding.weight"][0] == 0).all() or decoder.config.tie_weights
    wider = copy.copy(batch)
    pad = torch.zeros(len(batch.inputs), 3, dtype=torch.long)
    object.__setattr__(wider, "inputs", torch.cat((batch.inputs, pad), 1))
    object.__setattr__(wider, "targets", torch.cat((batch.targets, pad), 1))
    _, more = gradients(decoder, wider)
    for name in grads:
        torch.testing.assert_close(grads[name], more[name], msg=name)


def test_the_vector_of_the_padding_token_gets_no_gradient_from_being_read():
    decoder, batch = toys.decoder(tie_weights=False), toys.batch()
    _, grads = gradients(decoder, batch)
    assert (batch.inputs == 0).any()
    assert (grads["embedding.weight"][0] == 0).all()


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm", "elman"])
def test_a_window_as_long_as_the_caption_is_full_bptt(cell):
    decoder, batch = toys.decoder(cell=cell, num_layers=2), toys.batch()
    full_loss, full = gradients(decoder, batch)
    for window in (batch.inputs.shape[1], 1000):
        loss, grads = gradients(decoder, batch, window=window)
        assert torch.equal(loss, full_loss)
        assert all(torch.equal(grads[name], full[name]) for name in full)


@pytest.mark.parametrize("cell", ["gru", "lstm", "elman"])
@pytest.mark.parametrize("window", [1, 2, 3])
def test_a_shorter_window_keeps_the_loss_and_cuts_the_gradient(cell, window):
    decoder, batch = toys.decoder(cell=cell), toys.batch()
    full_loss, full = gradients(decoder, batch)
    loss, grads = gradients(decoder, batch, window=window)
    torch.testing.assert_close(loss, full_loss)

    decoder.zero_grad()  # the definition: autograd with the state detached at each window
    hidden, total = decoder.init_hidden(batch.features), 0.0
    for t in range(batch.inputs.shape[1]):
        if t and t % window == 0:
            hidden = hidden.detach()
        logits, hidden = decoder.step(batch.inputs[:, t], hidden)
        total = total + nn.functional.cross_entropy(
            logits, batch.targets[:, t], ignore_index=0, reduction="sum"
        )
    (total / batch.tokens).backward()
    for name, p in decoder.named_parameters():
        expected = torch.zeros_like(p) if p.grad is None else p.grad
        torch.testing.assert_close(grads[name], expected, msg=name, atol=1e-6, rtol=1e-4)
    assert not torch.allclose(
        grads["init_hidden.projection.weight"], full["init_hidden.projection.weight"]
    )


@pytest.mark.parametrize("window", [None, 1, 3])
def test_a_caption_counts_as_often_as_its_weight_among_the_words_that_may_be_written(window):
    decoder, weights = toys.decoder(), torch.tensor([2.0, -1.0, 0.0, 0.5])
    batch = replace(toys.batch(), weights=weights)
    assert batch.inputs.shape[1] not in (1, 3)
    with torch.device("meta"):  # nothing may be made elsewhere than where the decoder is
        loss, grads = gradients(decoder, batch, window=window)
    decoder.zero_grad()
    hidden, rows = decoder.init_hidden(batch.features), []
    for t in range(batch.inputs.shape[1]):
        if window and t and t % window == 0:
            hidden = hidden.detach()
        logits, hidden = decoder.step(batch.inputs[:, t], hidden)
        logits = logits.index_fill(1, torch.tensor([0, 1, 3]), -torch.inf)
        losses = nn.functional.cross_entropy(
            logits, batch.targets[:, t], ignore_index=0, reduction="none"
        )
        rows.append(losses @ weights)
    expected = torch.stack(rows).sum() / batch.tokens
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    for name, p in decoder.named_parameters():
        wanted = torch.zeros_like(p) if p.grad is None else p.grad
        torch.testing.assert_close(grads[name], wanted, msg=name, atol=1e-6, rtol=1e-4)


def test_a_scaler_scales_the_gradients_and_not_the_loss():
    decoder, batch = toys.decoder(), toys.batch()
    loss, grads = gradients(decoder, batch)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    same, scaled = gradients(decoder, batch, scaler=scaler)
    assert torch.equal(same, loss)
    for name in grads:
        torch.testing.assert_close(scaled[name], 8 * grads[name], msg=name)


def test_a_part_without_captions_teaches_nothing_and_costs_nothing():
    decoder = toys.decoder()
    empty = toys.batch(size=3).subset(3, of=4)
    assert len(empty.inputs) == 0
    loss, _ = gradients(decoder, empty)
    assert loss.dtype == torch.float32
    assert loss.item() == 0
    assert all(parameter.grad is None for parameter in decoder.parameters())


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm", "elman"])
def test_one_batch_can_be_learnt_by_heart(cell):
    decoder, batch = toys.decoder(cell=cell, hidden_size=32, embed_size=16), toys.batch()
    optimizer = torch.optim.Adam(decoder.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        loss = bptt.backward(decoder, batch)
        nn.utils.clip_grad_norm_(decoder.parameters(), 5.0)
        optimizer.step()
    assert loss.item() < 0.1
