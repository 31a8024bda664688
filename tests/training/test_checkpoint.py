import copy

import pytest
import torch

from captioner.config import TrainingConfig
from captioner.errors import CheckpointError
from captioner.run_dir import saved_steps
from captioner.system.ownership import MARKER
from captioner.training import bptt
from captioner.training.checkpoint import (
    Progress,
    left_alone,
    read_tensors,
    restore,
    save_checkpoint,
)
from captioner.training.update import Updater

import toys


def make():
    return Updater(toys.decoder(dropout=0.3), TrainingConfig(learning_rate=0.01), 100, fp16=False)


def step(updater, number=0):
    torch.manual_seed(number)
    loss = bptt.backward(updater.decoder, toys.batch())
    updater.update(number)
    return loss


@pytest.fixture
def saved(tmp_path):
    updater = make()
    for number in range(3):
        step(updater, number)
    folder = tmp_path / "checkpoints"
    progress = Progress(epoch=2, batch=5, step=30, loss_sum=1.5, token_sum=9, best_score=0.25)
    save_checkpoint(folder, updater, progress, {"captions": 4})
    return folder / "step-30.safetensors", updater, progress


def test_everything_comes_back(saved):
    path, updater, progress = saved
    expected = [step(updater, number) for number in range(3, 6)]
    other = make()
    assert restore(read_tensors(path), other, {"captions": 4}) == progress
    # weights and moments: the next losses are the same, bit for bit
    assert [step(other, number) for number in range(3, 6)] == expected
    for name, tensor in updater.decoder.state_dict().items():
        assert torch.equal(tensor, other.decoder.state_dict()[name]), name


def test_a_checkpoint_of_another_run_is_refused_by_what_changed(saved):
    with pytest.raises(CheckpointError, match=r"step-30\.safetensors.*captions changed"):
        restore(read_tensors(saved[0]), make(), {"captions": 5})


def test_a_checkpoint_of_another_decoder_is_refused(saved):
    other = Updater(toys.decoder(hidden_size=9), TrainingConfig(), 100, fp16=False)
    with pytest.raises(CheckpointError, match=r"step-30\.safetensors: does not fit this run"):
        restore(read_tensors(saved[0]), other, {"captions": 4})


def test_a_cut_off_file_is_refused_by_name(saved):
    path, updater, _ = saved
    data = path.read_bytes()
    before = copy.deepcopy(updater.decoder.state_dict())
    for length in (0, 5, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"step-30\.safetensors"):
            restore(read_tensors(path), updater, {})
    for name, tensor in before.items():
        assert torch.equal(tensor, updater.decoder.state_dict()[name])


def test_a_failed_save_leaves_the_old_checkpoint(saved, monkeypatch):
    path, updater, progress = saved
    before = path.read_bytes()

    def no_space(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("captioner.training.checkpoint.save_file", no_space)
    with pytest.raises(CheckpointError, match=r"could not be written.*No space left"):
        save_checkpoint(path.parent, updater, progress, {})
    assert path.read_bytes() == before
    assert sorted(p.name for p in path.parent.iterdir()) == [MARKER, path.name]


def test_the_scale_of_fp16_gradients_comes_back(tmp_path):
    one, other = make(), make()
    one.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    one.scaler.scale(torch.zeros(1))
    save_checkpoint(tmp_path, one, Progress(step=1), {})
    other.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    restore(read_tensors(tmp_path / "step-1.safetensors"), other, {})
    assert other.scaler.state_dict() == one.scaler.state_dict()


@pytest.mark.parametrize(
    "name",
    [
        *("step-564 (copy).safetensors", "step-abc.safetensors", "step-.safetensors"),
        *(
            "step-007.safetensors",
            "step-٣.safetensors",
            "step--1.safetensors",
            f"step-{10**30}.safetensors",
        ),
    ],
)
@pytest.mark.parametrize("folder", [False, True])
def test_files_of_other_names_are_no_checkpoints_and_stay(saved, name, folder):
    path, updater, _ = saved
    other = path.with_name(name)
    other.mkdir() if folder else other.write_bytes(b"mine")
    path.with_name("step-31.safetensors").mkdir()
    for number in (40, 50, 60):
        save_checkpoint(path.parent, updater, Progress(step=number), {})
    kept = ["step-50.safetensors", "step-60.safetensors"]
    assert [found.name for found in saved_steps(path.parent)] == kept
    assert left_alone(path.parent) == sorted(["step-31.safetensors", name])
    assert other.exists()
