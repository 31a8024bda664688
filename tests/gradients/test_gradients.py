import doctest
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

from captioner.cli import main
from captioner.data.caption_table import Batch, CaptionTable
from captioner.errors import ConfigError
from captioner.gradients.measure import (
    caption_lengths,
    join_captions,
    longest_batch,
    mean_keep_gate,
    measure_cuts,
    measure_flow,
    recurrent_sizes,
    state_gradients,
)
from captioner.text import Vocabulary

import toys

CELLS = [
    {"cell": "rnn"},
    {"cell": "rnn", "nonlinearity": "relu"},
    {"cell": "elman"},
    {"cell": "gru"},
    {"cell": "lstm"},
    {"cell": "lstm", "num_layers": 2},
    {"cell": "gru", "num_layers": 2},
]


def scaled_identity(scale, cell="rnn"):
    """A relu network that never closes and hears no words: each step multiplies by `scale`."""
    decoder = toys.decoder(cell=cell, nonlinearity="relu")
    weights = dict(decoder.named_parameters())
    with torch.no_grad():
        for name, p in weights.items():
            if name.startswith(("cell.", "init_hidden.projection.weight")):
                p.zero_()
        weights["init_hidden.projection.bias"].fill_(1)
        for name, matrix in (("weight_hh_l0", "bias_ih_l0"), ("W_hh.0", "b.0")):
            if f"cell.{name}" in weights:
                weights[f"cell.{name}"].copy_(scale * torch.eye(8))
                weights[f"cell.{matrix}"].fill_(1)
    return decoder


@pytest.mark.parametrize("cell", ["rnn", "elman"])
@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_a_scaled_identity_multiplies_the_gradient_at_every_step(scale, cell):
    decoder, batch = scaled_identity(scale, cell), toys.batch()
    flow = measure_flow(decoder, batch)
    expected = [scale**distance for distance in range(len(flow.median))]
    for quantile in (flow.low, flow.median, flow.high):
        assert quantile == pytest.approx(expected)
    assert flow.factor == pytest.approx(scale)
    lengths = caption_lengths(batch)
    assert flow.image == pytest.approx(np.median(scale ** lengths.numpy()))
    assert flow.image_distance == int(lengths.median())
    assert recurrent_sizes(decoder) == pytest.approx((scale, scale))


def test_vanishing_and_exploding_are_said_where_they_begin():
    batch = toys.batch(seed=2)
    assert caption_lengths(batch).median() >= 5
    vanishing = measure_flow(scaled_identity(0.25), batch)
    assert (vanishing.vanishes, vanishing.explodes) == (4, None)  # 0.25 ** 4 < 0.01
    exploding = measure_flow(scaled_identity(5.0), batch)
    assert (exploding.vanishes, exploding.explodes) == (None, 3)  # 5 ** 3 > 100
    steady = measure_flow(scaled_identity(1.0), batch)
    assert (steady.vanishes, steady.explodes) == (None, None)


@pytest.mark.parametrize("changes", CELLS, ids=str)
def test_step_by_step_is_what_autograd_finds_on_the_fused_path(changes):
    decoder, batch = toys.decoder(dropout=0.5, **changes), toys.batch()
    gradients = state_gradients(decoder, batch, label_smoothing=0.1)
    assert decoder.training and next(decoder.parameters()).dtype == torch.float32
    decoder.eval()
    lengths, every = caption_lengths(batch), torch.arange(len(batch.inputs))
    image = decoder.init_hidden(batch.features).detach().requires_grad_()
    for start in (0, 2):  # from the image, and from the state after two tokens
        with torch.no_grad():
            hidden = decoder.run_cell(batch.inputs[:, :start], image)[1] if start else image
        hidden.requires_grad_()
        outputs, _ = decoder.run_cell(batch.inputs[:, start:], hidden)
        loss = nn.functional.cross_entropy(
            decoder.to_logits(outputs[every, lengths - 1 - start]),
            batch.targets[every, lengths - 1],
            reduction="sum",
            label_smoothing=0.1,
        )
        (expected,) = torch.autograd.grad(loss, hidden)
        torch.testing.assert_close(gradients[start].float(), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("changes", CELLS, ids=str)
def test_captions_are_lined_up_at_their_own_ends(changes):
    decoder, batch = toys.decoder(**changes), toys.batch()
    lengths = caption_lengths(batch)
    assert len(set(lengths.tolist())) > 1
    gradients = state_gradients(decoder, batch)
    top = decoder.num_layers - 1
    for i, length in enumerate(lengths.tolist()):
        assert (gradients[length + 1 :, :, i] == 0).all()
        # The last state only matters by what scores the words: h of the topmost layer.
        others = [s for s in range(gradients.shape[1]) if s != top]
        assert (gradients[length, others, i] == 0).all()
        assert gradients[length, top, i].norm() > 0
        alone = Batch(
            batch.features[i : i + 1],
            batch.inputs[i : i + 1, :length],
            batch.targets[i : i + 1, :length],
            length,
        )
        torch.testing.assert_close(
            state_gradients(decoder, alone)[:, :, 0], gradients[: length + 1, :, i]
        )
    flow = measure_flow(decoder, batch)
    assert flow.median[0] == flow.low[0] == flow.high[0] == 1
    norms = gradients.square().sum((1, 3)).sqrt()
    for distance in range(1, len(flow.median)):
        ratios = [
            float(norms[length - distance, i] / norms[length, i])
            for i, length in enumerate(lengths.tolist())
            if length > distance
        ]
        assert flow.median[distance] == pytest.approx(np.median(ratios))


def test_h_and_c_of_an_lstm_make_up_its_state():
    decoder, batch = toys.decoder(cell="lstm"), toys.batch(size=1)
    flow = measure_flow(decoder, batch)
    assert set(flow.parts) == {"h", "c"}
    assert flow.parts["c"][0] == 0
    for whole, h, c in zip(flow.median, flow.parts["h"], flow.parts["c"], strict=True):
        assert whole == pytest.approx(math.hypot(h, c))
    assert not measure_flow(toys.decoder(cell="gru"), batch).parts


@pytest.mark.parametrize("changes", CELLS, ids=str)
def test_truncation_loses_less_with_longer_windows_and_nothing_with_the_longest(changes):
    decoder, batch = toys.decoder(dropout=0.5, **changes), toys.batch()
    cuts = measure_cuts(decoder, batch)
    longest = batch.inputs.shape[1]
    assert [cut.window for cut in cuts] == [*(2**n for n in range(9) if 2**n < longest), longest]
    for group in ("recurrent", "image"):
        assert cuts[-1].cosine[group] == pytest.approx(1, abs=1e-9)
        assert cuts[0].cosine[group] < 0.9999
    assert all(p.grad is None for p in decoder.parameters())


def test_truncation_is_measured_on_the_very_gradients_of_training():
    decoder, batch = toys.decoder(cell="gru").eval(), toys.batch()

    def gradient(window):
        from captioner.training import bptt

        decoder.zero_grad()
        bptt.backward(decoder, batch, label_smoothing=0.1, window=window)
        return torch.cat([p.grad.flatten() for p in decoder.init_hidden.parameters()])

    cut, full = gradient(2), gradient(None)
    (measured,) = [c for c in measure_cuts(decoder, batch, label_smoothing=0.1) if c.window == 2]
    cosine = float(cut @ full / (cut.norm() * full.norm()))
    assert measured.cosine["image"] == pytest.approx(cosine, abs=1e-5)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_the_gate_that_keeps_is_the_one_measured(cell):
    """With all weights zero but one gate's bias, that gate is the sigmoid of its bias."""
    decoder, batch = toys.decoder(cell=cell), toys.batch()
    with torch.no_grad():
        for p in decoder.cell.parameters():
            p.zero_()
        decoder.cell.bias_hh_l0[8:16] = 40.0  # the second gate of both
    assert mean_keep_gate(decoder, batch) == pytest.approx(1)
    # Wide open, it keeps: the gradient arrives as it was.
    gradients = state_gradients(decoder, batch)
    kept = gradients[:, -1]  # c of an LSTM, h of a GRU
    torch.testing.assert_close(kept[0], kept[1])
    with torch.no_grad():
        decoder.cell.bias_hh_l0[8:16] = -1.0
    assert mean_keep_gate(decoder, batch) == pytest.approx(1 / (1 + math.e))


def test_only_ungated_cells_have_one_recurrent_matrix():
    matrix = toys.decoder(cell="rnn").cell.weight_hh_l0.detach().double()
    sizes = recurrent_sizes(toys.decoder(cell="rnn"))
    assert sizes == pytest.approx(recurrent_sizes(toys.decoder(cell="elman")))
    assert sizes == pytest.approx(
        (np.abs(np.linalg.eigvals(matrix)).max(), np.linalg.svd(matrix)[1].max())
    )
    assert recurrent_sizes(toys.decoder(cell="lstm")) is None
    assert mean_keep_gate(toys.decoder(cell="rnn"), toys.batch()) is None


def table():
    words = [[["a"] * n for n in (1, 3)], [["b"] * n for n in (5, 2, 4)], [["a", "b"] * 3]]
    vocabulary = Vocabulary.build([["a", "b"]], min_count=1)
    features = torch.zeros((3, 6), dtype=torch.float16)
    return CaptionTable.build(features, words, vocabulary)


def test_joined_captions_are_the_captions_one_after_the_other():
    captions = table()
    joined = join_captions(captions, 6)
    stream = [ids[:n].tolist() for ids, n in zip(captions.token_ids, captions.lengths, strict=True)]
    assert joined.token_ids.tolist() == [
        (stream[0] + stream[1])[:7],
        stream[2],
        (stream[3] + stream[4])[:7],
        stream[5][:7],
    ]
    assert joined.lengths.tolist() == [7] * 4
    assert joined.rows.flatten().tolist() == [0, 1, 1, 2]
    assert not (joined.token_ids == Vocabulary.pad_id).any()
    with pytest.raises(ConfigError, match="33 tokens"):
        join_captions(captions, 100)


def test_the_batch_looked_at_is_full_and_has_the_longest_captions():
    batch = longest_batch(table(), 2, seed=0)
    assert sorted(caption_lengths(batch).tolist()) == [6, 7]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(toys.config(tmp_path, epochs=1).to_yaml())
    return tmp_path


def run(*words):
    return CliRunner().invoke(main, ["gradients", *words, "--device", "cpu"])


@pytest.mark.slow
def test_the_command_studies_every_cell_and_writes_table_figure_and_figures(folder):
    result = run("toy.yaml", "--steps", "3", "--set", "training.clip_norm=0.001")
    assert result.exit_code == 0, result.output
    with Image.open("gradients/toy/gradients.png") as picture:
        assert picture.size > (800, 600)
    study = json.loads((folder / "gradients/toy/gradients.json").read_text())
    assert [cell["name"] for cell in study["cells"]] == ["rnn tanh", "rnn relu", "gru", "lstm"]
    for cell in study["cells"]:
        assert cell["name"] in result.stdout
        assert cell["before"] != cell["after"]
        assert cell["before"]["flow"]["median"][0] == 1
        assert cell["after"]["cuts"][-1]["cosine"]["image"] == pytest.approx(1)
        norms = cell["log"]["norms"]
        assert len(norms) == 3
        assert cell["log"]["clipped"] == 1
        expected = sum(0.001 / norm for norm in norms) / 3
        assert cell["log"]["factor"] == pytest.approx(expected, rel=1e-4)
    assert "100.0%" in result.stdout
    assert run("toy.yaml", "--steps", "3", "--output", "again").exit_code == 0
    again = json.loads((folder / "again/gradients.json").read_text())
    # The weights and the gradients are those of the seed, whatever the norm they are clipped to.
    assert [c["before"] for c in again["cells"]] == [c["before"] for c in study["cells"]]
    assert again["cells"][0]["log"]["clipped"] == 0
    assert again["cells"][0]["log"]["factor"] is None


def test_a_gradient_that_is_no_number_ends_the_training_and_not_the_study(folder):
    result = run("toy.yaml", "--steps", "20", "--set", "training.learning_rate=1e6")
    assert result.exit_code == 0, result.output
    study = json.loads((folder / "gradients/toy/gradients.json").read_text())
    norms = study["cells"][1]["log"]["norms"]
    assert len(norms) < 20
    assert norms[-1] is None
    assert None not in norms[:-1]


def test_a_trained_model_is_measured_beside_what_it_was_before_training(folder):
    trained = CliRunner().invoke(main, ["train", "toy.yaml", "--device", "cpu"])
    assert trained.exit_code == 0, trained.output
    result = run("--model", "runs/toy", "--length", "20")
    assert result.exit_code == 0, result.output
    study = json.loads((folder / "runs/toy/gradients/gradients.json").read_text())
    (cell,) = study["cells"]
    assert (cell["name"], study["longest"], study["steps"]) == ("lstm", 20, None)
    assert cell["before"] != cell["after"]
    line = json.loads((folder / "runs/toy/metrics.jsonl").read_text().splitlines()[0])
    assert cell["log"]["norms"] == [pytest.approx(line["grad_norm"], rel=1e-5)]
    assert cell["log"]["clipped"] == line["clipped"]
    assert (folder / "runs/toy/gradients/gradients.png").is_file()


def test_a_model_of_other_words_and_impossible_wishes_are_refused(folder):
    trained = CliRunner().invoke(main, ["train", "toy.yaml", "--device", "cpu"])
    assert trained.exit_code == 0, trained.output
    result = run("--model", "runs/toy", "--set", "text.min_count=9")
    assert result.exit_code == 1
    assert "vocabulary" in result.stderr
    assert run("toy.yaml", "--model", "runs/toy").exit_code == 2
    assert run("--model", "runs/toy", "--steps", "2").exit_code == 2
    result = run("toy.yaml", "--length", "100000")
    assert result.exit_code == 2
    assert "--length 100000" in result.stderr


def test_the_example_in_the_page_prints_what_it_says():
    page = Path(__file__).parents[2] / "docs" / "learn" / "gradients.md"
    results = doctest.testfile(str(page), module_relative=False, encoding="utf-8")
    assert (results.failed, results.attempted) == (0, 2)
