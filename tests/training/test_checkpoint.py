import copy

import pytest
import torch

from captioner.errors import CheckpointError
from captioner.run_dir import saved_steps
from captioner.system.ownership import MARKER
from captioner.training import bptt
from captioner.training.checkpoint import (
    Progress,
    left_alone,
    read_checkpoint,
    restore,
    save_checkpoint,
)

import toys

SCALER = torch.amp.GradScaler("cpu", enabled=False)


def make():
    decoder = toys.decoder(dropout=0.3)
    return decoder, torch.optim.AdamW(decoder.parameters(), lr=0.01)


def step(decoder, optimizer, seed=0):
    torch.manual_seed(seed)
    optimizer.zero_grad()
    loss = bptt.backward(decoder, toys.batch())
    optimizer.step()
    return loss


@pytest.fixture
def saved(tmp_path):
    decoder, optimizer = make()
    for _ in range(3):
        step(decoder, optimizer)
    folder = tmp_path / "checkpoints"
    progress = Progress(epoch=2, batch=5, step=30, loss_sum=1.5, token_sum=9, best_score=0.25)
    save_checkpoint(
        folder,
        modules={"decoder": decoder},
        optimizer=optimizer,
        scaler=SCALER,
        progress=progress,
        identity={"captions": 4},
    )
    return folder / "step-30.safetensors", decoder, optimizer, progress


def test_everything_comes_back(saved):
    path, decoder, optimizer, progress = saved
    expected = [step(decoder, optimizer, seed) for seed in range(3)]
    other, other_optimizer = make()
    back = restore(
        read_checkpoint(path),
        modules={"decoder": other},
        optimizer=other_optimizer,
        scaler=SCALER,
        identity={"captions": 4},
    )
    assert back == progress
    # weights and moments: the next losses are the same, bit for bit
    assert [step(other, other_optimizer, seed) for seed in range(3)] == expected
    for name, tensor in decoder.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_a_checkpoint_of_another_run_is_refused_by_what_changed(saved):
    decoder, optimizer = make()
    with pytest.raises(CheckpointError, match=r"step-30\.safetensors.*captions changed"):
        restore(
            read_checkpoint(saved[0]),
            modules={"decoder": decoder},
            optimizer=optimizer,
            scaler=SCALER,
            identity={"captions": 5},
        )


def test_a_cut_off_file_is_refused_by_name(saved):
    path = saved[0]
    data = path.read_bytes()
    decoder, optimizer = make()
    before = copy.deepcopy(decoder.state_dict())
    for length in (0, 5, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"step-30\.safetensors"):
            restore(
                read_checkpoint(path),
                modules={"decoder": decoder},
                optimizer=optimizer,
                scaler=SCALER,
                identity={},
            )
    for name, tensor in before.items():
        assert torch.equal(tensor, decoder.state_dict()[name])


def test_a_failed_save_leaves_the_old_checkpoint(saved, monkeypatch):
    path, decoder, optimizer, progress = saved
    before = path.read_bytes()

    def no_space(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("captioner.training.checkpoint.save_file", no_space)
    with pytest.raises(CheckpointError, match=r"could not be written.*No space left"):
        save_checkpoint(
            path.parent,
            modules={"decoder": decoder},
            optimizer=optimizer,
            scaler=SCALER,
            progress=progress,
            identity={},
        )
    assert path.read_bytes() == before
    assert sorted(p.name for p in path.parent.iterdir()) == [MARKER, path.name]


def test_the_scale_of_fp16_gradients_comes_back(tmp_path):
    decoder, optimizer = make()
    parts = {"modules": {"decoder": decoder}, "optimizer": optimizer, "identity": {}}
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.zeros(1))
    save_checkpoint(tmp_path, scaler=scaler, progress=Progress(step=1), **parts)
    other = torch.amp.GradScaler("cpu", init_scale=2.0)
    restore(read_checkpoint(tmp_path / "step-1.safetensors"), scaler=other, **parts)
    assert other.state_dict() == scaler.state_dict()


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
    path, decoder, optimizer, _ = saved
    other = path.with_name(name)
    other.mkdir() if folder else other.write_bytes(b"mine")
    path.with_name("step-31.safetensors").mkdir()
    for step_number in (40, 50, 60):
        save_checkpoint(
            path.parent,
            modules={"decoder": decoder},
            optimizer=optimizer,
            scaler=SCALER,
            progress=Progress(step=step_number),
            identity={},
        )
    kept = ["step-50.safetensors", "step-60.safetensors"]
    assert [found.name for found in saved_steps(path.parent)] == kept
    assert left_alone(path.parent) == sorted(["step-31.safetensors", name])
    assert other.exists()
