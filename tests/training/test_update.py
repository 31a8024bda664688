import pytest
import torch
from torch import nn

from captioner.config import TrainingConfig
from captioner.training.update import Updater, learning_rate

import toys


def a_run(decoder, *, fp16=False, **training):
    """An updater whose learning rate stays as it is, unless told otherwise."""
    settings = {"schedule": "constant", "warmup_steps": 0, "weight_decay": 0.0} | training
    return Updater(decoder, TrainingConfig(**settings), 100, fp16=fp16)


def all_of(decoder, weight):
    for parameter in decoder.parameters():
        nn.init.constant_(parameter, weight)


def step_along(updater, step, gradient):
    for parameter in updater.decoder.parameters():
        parameter.grad = torch.full_like(parameter, gradient)
    return updater.update(step)


def assert_all(decoder, weight):
    for parameter in decoder.parameters():
        torch.testing.assert_close(parameter.detach(), torch.full_like(parameter, weight))


def test_the_moving_average_of_three_steps_is_that_by_hand():
    decoder = toys.decoder()
    all_of(decoder, 0.0)
    updater = a_run(decoder, ema_decay=0.2)
    # It keeps a tenth, then two elevenths, then `ema_decay`, which is less than three twelfths.
    for step, (weight, average) in enumerate([(1.0, 0.9), (2.0, 1.8), (3.0, 2.76)]):
        all_of(decoder, weight)
        updater.update(step)
        assert_all(updater.average, average)
        assert_all(decoder, weight)


def test_without_a_gradient_a_matrix_shrinks_by_its_decay_and_a_bias_stays():
    decoder = toys.decoder()
    updater = a_run(decoder, learning_rate=0.5, weight_decay=0.25)
    names = {name for name, _ in decoder.named_parameters()}
    assert {"init_hidden.projection.weight", "init_hidden.projection.bias"} <= names
    all_of(decoder, 2.0)
    for step in range(2):
        step_along(updater, step, 0.0)
        matrix = 2.0 * (1 - 0.5 * 0.25) ** (step + 1)
        for parameter in decoder.parameters():
            wanted = torch.full_like(parameter, matrix if parameter.dim() > 1 else 2.0)
            torch.testing.assert_close(parameter.detach(), wanted)


@pytest.mark.parametrize("beta2", [0.5, 0.98, 0.999])
def test_two_steps_of_adam_are_those_by_hand(beta2):
    decoder = toys.decoder()
    updater = a_run(decoder, learning_rate=0.1, beta2=beta2, clip_norm=1e9)
    all_of(decoder, 2.0)
    # Gradients 1 and 3 without a start's bias: mean 0.39 / 0.19, mean square (9 + b) / (1 + b).
    second = 0.39 / 0.19 / ((9 + beta2) / (1 + beta2)) ** 0.5
    for step, (gradient, weight) in enumerate([(1.0, 1.9), (3.0, 1.9 - 0.1 * second)]):
        step_along(updater, step, gradient)
        assert_all(decoder, weight)
        assert all(parameter.grad is None for parameter in decoder.parameters())


def test_every_weight_moves_by_the_learning_rate_of_the_schedule():
    decoder = toys.decoder()
    updater = a_run(decoder, learning_rate=0.1, schedule="linear", warmup_steps=4, clip_norm=1e9)
    all_of(decoder, 1.0)
    weight = 1.0
    for step, rate in enumerate([0.025, 0.05, 0.075, 0.1, 0.1, 0.1 * 95 / 96]):
        step_along(updater, step, 1.0)  # the same at each step: Adam moves by the rate itself
        assert updater.optimizer.param_groups[0]["lr"] == pytest.approx(rate)
        weight -= rate
        assert_all(decoder, weight)


def test_gradients_are_clipped_together_and_their_norm_before_is_told():
    decoder = toys.decoder()
    norm = sum(parameter.numel() for parameter in decoder.parameters()) ** 0.5
    updater = a_run(decoder, learning_rate=0.1, clip_norm=norm)
    all_of(decoder, 1.0)
    for step, gradient in enumerate([1.0, 7.0, 3.0]):  # all of them 1 once clipped
        told = step_along(updater, step, gradient)
        assert told.item() == pytest.approx(norm * gradient, rel=1e-5)
        assert_all(decoder, 1.0 - 0.1 * (step + 1))


def test_in_fp16_a_scaled_gradient_moves_as_its_own_and_one_too_large_moves_nothing():
    decoder = toys.decoder()
    norm = sum(parameter.numel() for parameter in decoder.parameters()) ** 0.5
    updater = a_run(decoder, learning_rate=0.1, clip_norm=norm, fp16=True)
    all_of(decoder, 1.0)
    updater.scaler.scale(torch.ones(()))  # as of a loss; the scale is made then
    for step, gradient in enumerate([1.0, 7.0]):
        told = step_along(updater, step, gradient * updater.scaler.get_scale())
        assert told.item() == pytest.approx(norm * gradient, rel=1e-5)
        assert_all(decoder, 1.0 - 0.1 * (step + 1))
    before = updater.scaler.get_scale()
    step_along(updater, 2, torch.inf)
    assert_all(decoder, 0.8)
    assert updater.scaler.get_scale() == before / 2
    assert not a_run(decoder).scaler.is_enabled()


def test_a_checkpoint_holds_the_decoder_and_its_average_where_there_is_one():
    decoder = toys.decoder()
    plain, averaged = a_run(decoder), a_run(decoder, ema_decay=0.5)
    assert plain.average is None
    assert plain.modules == {"decoder": decoder}
    assert averaged.modules == {"decoder": decoder, "average": averaged.average}
    assert averaged.average is not decoder
    assert not averaged.average.training


def test_the_schedule_warms_up_and_decays():
    def rate(step, kind, total_steps=1000):
        config = TrainingConfig(learning_rate=2.0, warmup_steps=100, schedule=kind)
        return learning_rate(config, step, total_steps) / 2

    assert rate(0, "cosine") == pytest.approx(0.01)
    assert rate(49, "linear") == pytest.approx(0.5)
    assert [rate(s, "constant") for s in (99, 500, 999)] == [1.0, 1.0, 1.0]
    assert rate(550, "cosine") == pytest.approx(0.5)
    assert rate(550, "linear") == pytest.approx(0.5)
    assert rate(999, "cosine") < 1e-5
    # a run shorter than its warm-up still warms up, over a tenth of it
    short = [rate(step, "cosine", 20) for step in range(20)]
    assert short[0] == 0.5
    assert max(short) == 1.0
