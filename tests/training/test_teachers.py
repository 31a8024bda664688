"""Distillation: what teachers hold for probable is learnt beside what people wrote."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from captioner.config import Config, TrainingConfig
from captioner.errors import CaptionerError, ConfigError
from captioner.models.captioner import Captioner
from captioner.models.decoder import Decoder
from captioner.training import bptt
from captioner.training.loss import cross_entropy
from captioner.training.run import train
from captioner.training.tables import Batch
from captioner.training.teachers import Teachers

import toys


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_the_mixture_of_two_cross_entropies(share, smoothing):
    torch.manual_seed(0)
    logits, targets = torch.randn(20, 7), torch.randint(7, (20,))
    taught = torch.randn(20, 7).softmax(1)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = cross_entropy(ours, targets, smoothing, None, taught, share)
    from_people = functional.cross_entropy(
        theirs, targets, reduction="sum", label_smoothing=smoothing
    )
    from_teachers = functional.cross_entropy(theirs, taught, reduction="sum")
    wanted = (1 - share) * from_people + share * from_teachers
    torch.testing.assert_close(loss, wanted)
    loss.backward()
    wanted.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def logits(decoder: Decoder, batch: Batch) -> Tensor:
    return decoder(batch.inputs, decoder.init_hidden(batch.features))[0]


def test_a_lesson_is_the_mean_of_what_the_teachers_say():
    batch = toys.batch()
    decoders = [toys.decoder(seed=1), toys.decoder(seed=2, cell="gru", dropout=0.9)]
    lesson = Teachers(decoders, 0.4).read(batch)
    places = torch.tensor([0, 3, 5])
    taught, share = lesson(slice(1, 3), places)  # 4 captions, tokens 1 and 2
    assert share == 0.4
    said = [logits(each.eval(), batch)[:, 1:3].softmax(-1) for each in decoders]
    torch.testing.assert_close(taught, torch.stack(said).mean(0).flatten(0, 1)[places])
    assert not taught.requires_grad


@pytest.mark.parametrize("window", [1, 2, None])
def test_windows_do_not_change_what_is_taught(window):
    batch, teachers = toys.batch(), Teachers([toys.decoder(seed=1)], 0.5)
    losses = [
        bptt.backward(toys.decoder(), batch, window=each, teachers=teachers)
        for each in (None, window)
    ]
    torch.testing.assert_close(*losses)


def test_a_pupil_becomes_like_its_teachers():
    batch, teachers = toys.batch(), Teachers([toys.decoder(seed=1), toys.decoder(seed=2)], 1.0)
    places = torch.arange(batch.inputs.numel())
    taught, _ = teachers.read(batch)(slice(None), places)
    pupil = toys.decoder(hidden_size=32, embed_size=16)
    optimizer = torch.optim.Adam(pupil.parameters(), lr=0.02)

    def apart() -> float:
        said = logits(pupil, batch).flatten(0, 1).log_softmax(-1)
        real = (batch.targets != 0).flatten()
        return functional.kl_div(said[real], taught[real], reduction="batchmean").item()

    before = apart()
    for _ in range(150):
        optimizer.zero_grad()
        bptt.backward(pupil, batch, teachers=teachers)
        optimizer.step()
    assert apart() < before / 20


@pytest.fixture(scope="module")
def taught(tmp_path_factory) -> Config:
    """Train two toys of different cells; return the config of one that learns from them."""
    folder = tmp_path_factory.mktemp("teachers")
    config = toys.config(folder, epochs=2)
    other = change(config, "decoder", cell="gru", hidden_size=16)
    train(config, folder / "lstm", device="cpu")
    train(other, folder / "gru", device="cpu")
    return change(config, "training", teachers=[str(folder / "lstm"), str(folder / "gru")])


def change(config: Config, section: str, **values) -> Config:
    tree = config.model_dump()
    tree[section] |= values
    return Config.model_validate(tree)


def test_a_run_learns_from_models_of_other_cells_and_is_a_model_like_any(taught, tmp_path):
    done = train(taught, tmp_path / "run", device="cpu")
    again = train(taught, tmp_path / "again", device="cpu")
    alone = train(change(taught, "training", teachers=[]), tmp_path / "alone", device="cpu")
    model, same, other = (
        (each.folder / "model" / "model.safetensors").read_bytes() for each in (done, again, alone)
    )
    assert model == same != other
    assert Captioner.load(done.folder, "cpu").decoder.settings["cell"] == "lstm"


def test_a_run_is_not_resumed_with_teachers_that_changed(taught, tmp_path):
    teacher = tmp_path / "teacher"
    shutil.copytree(Path(taught.training.teachers[0]) / "model", teacher)
    config = change(taught, "training", teachers=[str(teacher)])
    done = train(config, tmp_path / "run", device="cpu")
    train(config, tmp_path / "run", device="cpu", resume=True)
    shutil.rmtree(teacher)
    shutil.copytree(Path(taught.training.teachers[1]) / "model", teacher)
    with pytest.raises(CaptionerError, match="teachers"):
        train(config, done.folder, device="cpu", resume=True)


def test_teachers_that_do_not_fit_are_refused_in_one_line(taught, tmp_path):
    other = change(taught, "text", min_count=9)
    with pytest.raises(ConfigError, match=r"^training\.teachers: .*vocabulary is another[^\n]*$"):
        train(other, tmp_path / "a", device="cpu")
    other = change(taught, "training", teachers=[str(tmp_path / "nowhere")])
    with pytest.raises(ConfigError, match=r"training\.teachers: .*nowhere: no model here"):
        train(other, tmp_path / "b", device="cpu")
    with pytest.raises(ConfigError, match=r"training\.teachers: .*--overwrite deletes"):
        train(taught, Path(taught.training.teachers[1]), device="cpu", overwrite=True)
    assert Captioner.load(taught.training.teachers[1], "cpu")
    with pytest.raises(ValueError, match=r"training\.teachers: they teach the next word"):
        TrainingConfig(objective="scst", start_from="x", teachers=["y"])
