import math

import pytest
import torch
from torch import nn

from captioner.errors import ConfigError

import toys

CELLS = ["rnn", "gru", "lstm", "elman"]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("tie_weights", [True, False])
def test_steps_and_teacher_forcing_share_weights_and_answers(cell, num_layers, tie_weights):
    decoder = toys.decoder(cell=cell, num_layers=num_layers, tie_weights=tie_weights).eval()
    batch = toys.batch()
    start = decoder.init_hidden(batch.features)
    logits, last = decoder(batch.inputs, start)
    hidden = start
    for t in range(batch.inputs.shape[1]):
        step_logits, hidden = decoder.step(batch.inputs[:, t], hidden)
        torch.testing.assert_close(step_logits, logits[:, t], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(hidden, last, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("cell", "phi"), [*((cell, "tanh") for cell in CELLS), ("rnn", "relu"), ("elman", "relu")]
)
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("tie_weights", [True, False])
@pytest.mark.parametrize("looks", [{}, {"attention": "spatial", "places": 2, "channels": 2}])
def test_steps_of_search_are_those_of_teacher_forcing(cell, num_layers, phi, tie_weights, looks):
    decoder = toys.decoder(
        cell=cell, num_layers=num_layers, nonlinearity=phi, tie_weights=tie_weights, **looks
    ).eval()
    with torch.no_grad():  # biases start at zero, where a lost one would not show
        for weight in decoder.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
        ids = torch.randint(decoder.vocab_size, (9, 4))
        features = torch.randn(9, decoder.feature_size)
        logits, last = decoder(ids, decoder.init_hidden(features), decoder.keys(features))
        images = torch.arange(9)
        for dtype, near in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):
            hidden, step = decoder.stepper(dtype).start(features)
            for t in range(4):
                step_logits, hidden = step(ids[:, t], hidden, images)
                assert hidden.dtype == torch.float32
                torch.testing.assert_close(step_logits.float(), logits[:, t], atol=near, rtol=near)
            torch.testing.assert_close(hidden, last, atol=near, rtol=near)


def test_a_stepper_has_the_weights_of_the_moment_it_is_made():
    decoder = toys.decoder(cell="lstm").eval()
    ids, features = torch.tensor([4, 5]), torch.randn(2, 6)
    hidden = decoder.init_hidden(features).detach()
    with torch.no_grad():
        for name, weight in decoder.named_parameters():
            weight.add_(torch.randn_like(weight))
            _, step = decoder.stepper().start(features)
            found, expected = step(ids, hidden, ids)[0], decoder.step(ids, hidden)[0]
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5, msg=name)


def test_weights_made_in_inference_mode_are_searched_too():
    with torch.inference_mode():
        decoder = toys.decoder(cell="gru").eval()
        ids = torch.zeros(9, dtype=torch.int64)
        hidden, step = decoder.stepper().start(torch.randn(9, 6))
        found, _ = step(ids, hidden, ids)
        torch.testing.assert_close(found, decoder.step(ids, hidden)[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_every_layer_starts_from_the_image(cell):
    decoder = toys.decoder(cell=cell, num_layers=2).eval()
    one, other = decoder.init_hidden(torch.randn(2, 6)).unbind(1)
    assert one.shape == ((4 if cell == "lstm" else 2), 8)
    assert ((one - other).abs().amax(1) > 0).all()


def test_h_is_bounded_by_tanh_and_c_is_not():
    decoder = toys.decoder(cell="lstm").eval()
    h, c = decoder.init_hidden(1000 * torch.randn(16, 6))
    assert h.abs().max() <= 1
    assert c.abs().max() > 1


def test_standardised_features_have_mean_zero_and_deviation_one_per_dimension():
    features = torch.randn(500, 6) * torch.tensor([1, 10, 0.1, 5, 0, 2]) + torch.arange(6.0)
    decoder = toys.decoder(cell="gru")
    decoder.measure(features)
    seen = []
    decoder.init_hidden.projection.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    decoder.init_hidden(features)
    (standard,) = seen
    moves = torch.tensor([True, True, True, True, False, True])
    torch.testing.assert_close(standard.mean(0), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        standard.std(0, unbiased=False)[moves], torch.ones(5), atol=1e-4, rtol=0
    )
    assert (standard[:, 4] == 0).all()


@pytest.mark.parametrize("tie_weights", [True, False])
def test_an_untrained_decoder_knows_nothing_the_loss_is_log_v(tie_weights):
    vocab_size = 500
    decoder = toys.decoder(
        vocab_size=vocab_size, hidden_size=64, embed_size=32, tie_weights=tie_weights
    ).eval()
    batch = toys.batch(vocab_size=vocab_size, size=64)
    logits, _ = decoder(batch.inputs, decoder.init_hidden(batch.features))
    real = batch.targets != 0
    loss = nn.functional.cross_entropy(logits[real], batch.targets[real])
    assert loss.item() == pytest.approx(math.log(vocab_size), rel=0.03)


def test_tied_weights_are_one_matrix_and_fewer_parameters():
    tied, untied = toys.decoder(tie_weights=True), toys.decoder(tie_weights=False)
    assert tied.output.weight is tied.embedding.weight
    assert untied.output.weight is not untied.embedding.weight
    count = [sum(p.numel() for p in d.parameters()) for d in (tied, untied)]
    assert count[0] < count[1]


def test_an_unknown_cell_is_refused():
    with pytest.raises(ConfigError, match="cell: input should be"):
        toys.decoder(cell="transformer")
