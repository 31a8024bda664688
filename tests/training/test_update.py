import pytest
import torch
from torch import nn

from captioner.config import TrainingConfig
from captioner.training import bptt
from captioner.training.update import Updater

import toys


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_search_writes_with_the_weights_of_now(ema_decay):
    """`stepper` remembers its layout until the weights change; a step of the optimizer is one."""
    decoder = toys.decoder()
    updater = Updater(decoder, TrainingConfig(ema_decay=ema_decay), 10, fp16=False)
    for step in range(3):
        bptt.backward(decoder, toys.batch())
        updater.update(step)
        for writer in filter(None, (decoder, updater.average)):
            token_ids, hidden = torch.tensor([1]), writer.init_hidden(torch.ones(1, 6)).detach()
            fast, slow = writer.stepper()(token_ids, hidden)[0], writer.step(token_ids, hidden)[0]
            torch.testing.assert_close(fast, slow.detach(), rtol=1e-5, atol=1e-6)


def a_run(decoder, **training):
    """An updater whose learning rate stays as it is."""
    settings = {"schedule": "constant", "warmup_steps": 0} | training
    return Updater(decoder, TrainingConfig(**settings), 100, fp16=False)


def test_the_moving_average_of_three_steps_is_that_by_hand():
    decoder = toys.decoder()
    for parameter in decoder.parameters():
        nn.init.zeros_(parameter)
    updater = a_run(decoder, ema_decay=0.2)
    # It keeps a tenth, then two elevenths, then `ema_decay`, which is less than three twelfths.
    for step, (weight, average) in enumerate([(1.0, 0.9), (2.0, 1.8), (3.0, 2.76)]):
        for parameter in decoder.parameters():
            nn.init.constant_(parameter, weight)
        updater.update(step)
        for parameter in updater.average.parameters():
            torch.testing.assert_close(parameter, torch.full_like(parameter, average))
        for parameter in decoder.parameters():
            assert (parameter == weight).all()


def test_without_a_gradient_a_matrix_shrinks_by_its_decay_and_a_bias_stays():
    decoder = toys.decoder()
    updater = a_run(decoder, learning_rate=0.5, weight_decay=0.25)
    names = {name for name, _ in decoder.named_parameters()}
    assert {"init_hidden.projection.weight", "init_hidden.projection.bias"} <= names
    for parameter in decoder.parameters():
        nn.init.constant_(parameter, 2.0)
        parameter.grad = torch.zeros_like(parameter)
    for step in range(2):
        updater.update(step)
        for parameter in decoder.parameters():
            matrix = 2.0 * (1 - 0.5 * 0.25) ** (step + 1)
            wanted = torch.full_like(parameter, matrix if parameter.dim() > 1 else 2.0)
            torch.testing.assert_close(parameter.detach(), wanted)
            parameter.grad = torch.zeros_like(parameter)


@pytest.mark.parametrize("beta2", [0.5, 0.98, 0.999])
def test_two_steps_of_adam_are_those_by_hand(beta2):
    decoder = toys.decoder()
    updater = a_run(decoder, learning_rate=0.1, weight_decay=0.0, beta2=beta2, clip_norm=1e9)
    for parameter in decoder.parameters():
        nn.init.constant_(parameter, 2.0)
    # Gradients 1 and 3 without a start's bias: mean 0.39 / 0.19, mean square (9 + b) / (1 + b).
    second = 0.39 / 0.19 / ((9 + beta2) / (1 + beta2)) ** 0.5
    for step, (gradient, weight) in enumerate([(1.0, 1.9), (3.0, 1.9 - 0.1 * second)]):
        for parameter in decoder.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        updater.update(step)
        for parameter in decoder.parameters():
            torch.testing.assert_close(parameter.detach(), torch.full_like(parameter, weight))
            assert parameter.grad is None
