import copy
import json
import os
import re
import signal
from pathlib import Path

import pytest
import torch
import yaml

from captioner.captioner import Captioner
from captioner.config import Config
from captioner.data.prepare import open_encoder, prepare
from captioner.encoder.encoder import FrozenEncoder
from captioner.errors import CaptionerError, CheckpointError, ConfigError, DataError, ModelError
from captioner.run_dir import read_metrics
from captioner.system.ownership import CARD, MODEL_FILES
from captioner.training import loop
from captioner.training.run import Stopped, train

import toys


@pytest.fixture
def config(tmp_path):
    return toys.config(tmp_path)


def change(config: Config, section: str, **values) -> Config:
    tree = config.model_dump()
    tree[section] |= values
    return Config.model_validate(tree)


def losses(folder):
    return [m["loss"] for m in read_metrics(folder / "metrics.jsonl") if m["kind"] == "step"]


def timeless(folder):
    times = ("seconds", "tokens_per_second")
    return [
        {key: value for key, value in line.items() if key not in times}
        for line in read_metrics(folder / "metrics.jsonl")
    ]


def test_a_run_learns_and_leaves_everything_behind(config, tmp_path):
    config = change(config, "training", epochs=12, ema_decay=0.9)
    done = train(config, tmp_path / "run", device="cpu")
    assert {p.name for p in done.folder.iterdir()} - {"tensorboard"} == {
        "config.yaml",
        "model",
        "checkpoints",
        "metrics.jsonl",
        "train.log",
        "curves.png",
        ".captioner.json",
    }
    assert (done.folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert done.progress.epoch == 12
    lines = read_metrics(done.folder / "metrics.jsonl")
    epochs = [line for line in lines if line["kind"] == "epoch"]
    assert [line["epoch"] for line in epochs] == list(range(1, 13))
    assert epochs[-1]["train_loss"] < 0.6 * epochs[0]["train_loss"]
    assert done.progress.best_score == max(line["cider_d"] for line in epochs)
    # it tells colours apart that it has never seen on this shade
    captioner = Captioner.load(done.folder, "cpu")
    for colour in ("red", "blue", "white"):
        assert colour in captioner.caption(tmp_path / f"dev_{colour}_5.png").split()


def test_the_saved_model_is_the_best_epoch_not_the_last(config, tmp_path, monkeypatch):
    scores = iter([0.1, 0.7, 0.3])
    states = []

    def scripted(self):
        states.append(copy.deepcopy(self.evaluated.state_dict()))
        return {"bleu_4": 0.0, "cider_d": next(scores)}

    monkeypatch.setattr(loop.Trainer, "_dev_scores", scripted)
    done = train(config, tmp_path / "run", device="cpu")
    assert (done.progress.best_epoch, done.progress.best_score) == (2, 0.7)
    saved = Captioner.load(done.folder, "cpu").decoder.state_dict()
    assert all(torch.equal(saved[name], states[1][name]) for name in saved)
    assert not all(torch.equal(saved[name], states[2][name]) for name in saved)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_the_dev_split_is_captioned_with_the_weights_of_the_epoch(
    config, tmp_path, monkeypatch, ema_decay
):
    written = []
    dev_scores = loop.Trainer._dev_scores

    def compared(self):
        scores = dev_scores(self)
        fresh = self.dev._assemble(copy.deepcopy(self.evaluated)).search(self.dev.table.features)
        written.append([best.text for best, *_ in fresh])
        assert self.dev.captions == written[-1]
        return scores

    monkeypatch.setattr(loop.Trainer, "_dev_scores", compared)
    config = change(config, "training", epochs=4, ema_decay=ema_decay)
    train(config, tmp_path / "run", device="cpu")
    assert written[0] != written[-1]


def test_patience_ends_a_run_that_gets_no_better(config, tmp_path, monkeypatch):
    scores = iter([0.5, 0.6, 0.4, 0.4, 0.9])
    monkeypatch.setattr(
        loop.Trainer, "_dev_scores", lambda self: {"bleu_4": 0.0, "cider_d": next(scores)}
    )
    config = change(config, "training", epochs=5, patience=2)
    assert train(config, tmp_path / "run", device="cpu").progress.epoch == 4


def test_training_changes_nothing_of_the_frozen_cnn(tmp_path, monkeypatch):
    config = toys.config(tmp_path)
    # a CNN with batch norms that folding cannot remove
    tree = config.model_dump()
    tree["encoder"]["cnns"] = [{"backbone": "densenet121", "weights": "none"}]
    config = Config.model_validate(tree)
    built = []
    create = FrozenEncoder.create.__func__

    def remember(cls, *args, **kwargs):
        encoder = create(cls, *args, **kwargs)
        built.append((encoder, copy.deepcopy(encoder.network.state_dict())))
        return encoder

    monkeypatch.setattr(FrozenEncoder, "create", classmethod(remember))
    train(change(config, "training", epochs=1), tmp_path / "run", device="cpu")
    ((encoder, before),) = built
    after = encoder.train().network.state_dict()
    assert any("running_mean" in name for name in after)
    assert all(torch.equal(before[name], after[name]) for name in after)
    assert not any(p.requires_grad for p in encoder.parameters())


def test_the_same_seed_gives_the_same_run_and_another_seed_another(config, tmp_path):
    one = train(config, tmp_path / "one", device="cpu").folder
    two = train(config, tmp_path / "two", device="cpu").folder
    assert timeless(one) == timeless(two)
    weights = [(f / "model" / "model.safetensors").read_bytes() for f in (one, two)]
    assert weights[0] == weights[1]
    other = train(change(config, "training", seed=1), tmp_path / "three", device="cpu").folder
    assert losses(other) != losses(one)


def test_elman_gives_the_losses_of_rnn(config, tmp_path):
    runs = [
        train(change(config, "decoder", cell=cell), tmp_path / cell, device="cpu").folder
        for cell in ("rnn", "elman")
    ]
    torch.testing.assert_close(
        torch.tensor(losses(runs[0])), torch.tensor(losses(runs[1])), rtol=2e-4, atol=0
    )


@pytest.mark.parametrize("stop_at", [1, 7, 13])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(config, tmp_path, monkeypatch, stop_at):
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    config = change(config, "training", ema_decay=0.9)
    whole = train(config, tmp_path / "whole", device="cpu").folder
    update = loop.Updater.update

    def stop_once(self, step):
        if step == stop_at - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return update(self, step)

    monkeypatch.setattr(loop.Updater, "update", stop_once)
    with pytest.raises(Stopped):
        train(config, tmp_path / "part", device="cpu")
    assert not (tmp_path / "part" / "model").exists()
    train(config, tmp_path / "part", device="cpu", resume=True)
    assert timeless(tmp_path / "part") == timeless(whole)
    for name in (*MODEL_FILES, CARD):
        assert (tmp_path / "part" / "model" / name).read_bytes() == (
            whole / "model" / name
        ).read_bytes(), name


def test_resuming_a_finished_run_changes_nothing(config, tmp_path):
    folder = train(config, tmp_path / "run", device="cpu").folder
    before = {path.name: path.read_bytes() for path in (folder / "model").iterdir()}
    assert before.keys() == {*MODEL_FILES, CARD}
    done = train(config, folder, device="cpu", resume=True)
    assert done.progress.epoch == 3
    assert {path.name: path.read_bytes() for path in (folder / "model").iterdir()} == before


def test_a_run_whose_data_changed_is_not_resumed(config, tmp_path):
    folder = train(config, tmp_path / "run", device="cpu").folder
    with (tmp_path / "captions.csv").open("a") as file:
        file.write("train_red_0.png,a red box,train\n")
    with pytest.raises(CheckpointError, match=r"(vocabulary|captions).*changed"):
        train(config, folder, device="cpu", resume=True)


def test_other_arithmetic_is_refused_before_all_is_encoded(config, tmp_path, monkeypatch):
    folder = train(config, tmp_path / "run", device="cpu").folder
    monkeypatch.setattr("captioner.encoder.encoder.arithmetic_of", lambda *_: "fp32 on cuda")
    monkeypatch.setattr("captioner.training.run.prepare", None)
    with pytest.raises(CheckpointError) as caught:
        train(config, folder, device="cpu", resume=True)
    assert "(encoder, arithmetic changed: arithmetic was fp32 on cpu, is fp32 on cuda)" in str(
        caught.value
    )


def test_nothing_is_overwritten_unasked(config, tmp_path):
    folder = train(config, tmp_path / "run", device="cpu").folder
    with pytest.raises(ConfigError, match=r"--resume continues.*--overwrite"):
        train(config, folder, device="cpu")
    train(change(config, "training", epochs=1), folder, device="cpu", overwrite=True)
    assert yaml.safe_load((folder / "config.yaml").read_text())["training"]["epochs"] == 1
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="not marked as captioner's run folder"):
        train(config, precious, device="cpu", overwrite=True)
    assert (precious / "thesis.txt").exists()
    with pytest.raises(ConfigError, match=r"with different settings(.|\n)*training.epochs"):
        train(config, folder, device="cpu", resume=True)


def test_a_run_that_failed_before_it_began_is_not_in_the_way(config, tmp_path):
    wrong = change(config, "encoder", cnns=[{"weights": "nowhere.pth"}])
    with pytest.raises(ModelError, match=r"nowhere\.pth"):
        train(wrong, tmp_path / "run", device="cpu")
    assert train(config, tmp_path / "run", device="cpu").progress.epoch == 3


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("data", {"root": "nowhere"}),
        ("data", {"split_dev": "other"}),
        ("text", {"min_count": 1000}),
        ("training", {"start_from": "nowhere"}),
        ("decoder", {"hidden_size": 60_000, "num_layers": 100}),
    ],
)
def test_a_failed_start_deletes_and_leaves_nothing(config, tmp_path, section, values):
    wrong = change(config, section, **values)
    with pytest.raises(CaptionerError):
        train(wrong, tmp_path / "new" / "run", device="cpu")
    assert not (tmp_path / "new").exists()
    folder = train(config, tmp_path / "run", device="cpu").folder
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(CaptionerError):
        train(wrong, folder, device="cpu", overwrite=True)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_the_log_holds_what_was_said_before_the_folder_was_there(config, tmp_path, capsys):
    folder = train(config, tmp_path / "run", device="cpu").folder
    log = (folder / "train.log").read_text()
    assert log.index("vocabulary") < log.index("training 0.") < log.index("epoch 1:")
    said = [line.partition("  ")[2] for line in log.splitlines()]
    assert [line for line in capsys.readouterr().err.splitlines() if line in said] == said


def test_a_folder_that_cannot_be_written_is_noticed_first(config, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr("captioner.training.run.open_dataset", None)  # never called
    with pytest.raises(ConfigError, match=r"file: not a folder; choose another path"):
        train(config, tmp_path / "file" / "run", device="cpu")
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(ConfigError, match=r"no permission to write; choose another path"):
        train(config, tmp_path / "run", device="cpu")


def test_advice_on_a_run_in_the_way_is_never_refused_next(config, tmp_path):
    folder = train(config, tmp_path / "run", device="cpu").folder
    onward = change(config, "training", start_from=str(folder))
    for settings, ways in ((config, "resume, output, overwrite"), (onward, "resume, output")):
        with pytest.raises(ConfigError) as caught:
            train(settings, folder, device="cpu")
        assert ", ".join(re.findall(r"--(\w+)", str(caught.value))) == ways
    (folder / "config.yaml").unlink()
    with pytest.raises(ConfigError) as caught:
        train(config, folder, device="cpu")
    assert "--resume" not in str(caught.value)


def test_broken_images_cost_themselves_unless_strict(config, tmp_path):
    (tmp_path / "train_red_0.png").write_bytes(b"not a picture")
    done = train(change(config, "training", epochs=1), tmp_path / "run", device="cpu")
    log = (done.folder / "train.log").read_text()
    assert "skipped" in log
    assert "train_red_0.png: not an image" in log
    with pytest.raises(DataError, match=r"1 image\(s\) cannot be read"):
        train(change(config, "data", strict=True), tmp_path / "strict", device="cpu")


def test_flipped_images_are_more_rows_of_the_same_captions(config, tmp_path):
    config = change(change(config, "encoder", flip=True), "training", epochs=1)
    done = train(config, tmp_path / "run", device="cpu")
    assert len(losses(done.folder)) == 1
    text = (done.folder / "train.log").read_text()
    assert "48 captions" in text


def test_dev_pictures_are_seen_as_the_mean_of_themselves_and_their_mirror_images(config, picture):
    config = change(config, "encoder", flip=True)
    name = Path(config.data.root).parent / "dev_red_5.png"
    picture(0, (toys.SIZE, toys.SIZE)).save(name)
    encoder = open_encoder(config, torch.device("cpu"))
    dev = prepare(config, encoder, lambda _: None).dev
    [row] = [row for row, example in enumerate(dev.examples) if example.image == name]
    pixels = encoder.preprocess.pixels(picture(0, (toys.SIZE, toys.SIZE)))[None]
    plain, mirrored = encoder(pixels)[0], encoder(pixels.flip(3))[0]
    assert (plain - mirrored).abs().max() > 0.02
    torch.testing.assert_close(dev.features[row].float(), (plain + mirrored) / 2, atol=2e-3, rtol=0)
    config = change(config, "encoder", mirrored=False)
    alone = open_encoder(config, torch.device("cpu"))
    dev = prepare(config, alone, lambda _: None).dev
    torch.testing.assert_close(dev.features[row].float(), plain, atol=2e-3, rtol=0)
    assert prepare(config, alone, lambda _: None).train.rows.shape[1] == 2


def test_metrics_are_json_lines_with_a_step_each(config, tmp_path):
    folder = train(config, tmp_path / "run", device="cpu").folder
    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "step"]
    assert {"epoch", "step", "loss", "grad_norm", "clipped", "learning_rate"} <= set(steps[0])
    assert steps[-1]["step"] == 18
    assert all(0 <= line["clipped"] <= 1 for line in steps)


def test_tensorboard_shows_numbers_captions_and_gradient_norms(config, tmp_path):
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    done = train(config, tmp_path / "run", device="cpu")
    events = loader.EventAccumulator(str(done.folder / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"step/loss", "step/grad_norm", "epoch/cider_d"} <= set(tags["scalars"])
    assert [e.step for e in events.Scalars("epoch/cider_d")] == [6, 12, 18]
    assert tags["histograms"] == ["epoch/gradient norm"]
    assert "image/0" in tags["images"]
    assert "caption/0/text_summary" in tags["tensors"]


def test_features_that_do_not_fit_the_memory_are_read_from_disk_and_teach_the_same(
    config, tmp_path, monkeypatch
):
    config = change(config, "encoder", flip=True)
    in_memory = train(config, tmp_path / "memory", device="cpu").folder
    asked = []

    def too_large(size, device):
        asked.append(size)
        return False

    monkeypatch.setattr("captioner.data.feature_store.fits", too_large)
    monkeypatch.setattr("captioner.data.caption_table.fits", too_large)
    tables = []  # of train, then of dev
    build = loop.CaptionTable.build

    def recorded(*args, **more):
        tables.append(build(*args, **more))
        return tables[-1]

    monkeypatch.setattr(loop.CaptionTable, "build", recorded)
    on_disk = train(config, tmp_path / "disk", device="cpu").folder
    assert 48 * 512 * 2 in asked  # two views of 24 pictures
    assert len(tables[0].features) == 60  # the whole store: dev, mirrored too, is in it as well
    assert timeless(on_disk) == timeless(in_memory)
    for name in ("model.safetensors", "config.json"):
        assert (on_disk / "model" / name).read_bytes() == (in_memory / "model" / name).read_bytes()
