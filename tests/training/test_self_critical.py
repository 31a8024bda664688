import json
import signal
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from captioner.captioner import Captioner
from captioner.config import Config, TrainingConfig
from captioner.data.caption_table import Batch, CaptionTable, iterate
from captioner.errors import ConfigError, DataError
from captioner.metrics import Bleu, CiderD
from captioner.run_dir import read_metrics
from captioner.system.world import World
from captioner.text import Vocabulary
from captioner.training import bptt, loop
from captioner.training.run import Stopped, train
from captioner.training.self_critical import ALONE, SelfCritical

import toys

WORDS = toys.vocabulary()
REFERENCES = [
    [f"a {colour} square".split(), f"a {colour} unicorn in the middle".split()]
    for colour in toys.COLOURS
]
END = "<eos>"


def settings(**values) -> TrainingConfig:
    return TrainingConfig(objective="scst", start_from="runs/x", **values)


def critic(decoder, *, max_length: int = 8, world: World = ALONE, **values) -> SelfCritical:
    config = settings(**values)
    return SelfCritical(decoder, WORDS, REFERENCES, config, max_length=max_length, world=world)


def decoder(**changes):
    return toys.decoder(vocab_size=len(WORDS), **changes)


def images(*chosen: int) -> Batch:
    """Each image's feature is its own."""
    empty = torch.tensor([[WORDS.bos_id, WORDS.eos_id]] * len(chosen)).view(-1, 2)
    features = torch.eye(6)[list(chosen)]
    return Batch(features, empty[:, :1], empty[:, 1:], len(chosen), torch.tensor(chosen).long())


def words_of(batch: Batch) -> list[list[str]]:
    tokens = WORDS.specials + WORDS.words
    return [[tokens[i] for i in row if i != WORDS.pad_id] for row in batch.targets.tolist()]


def ended(captions):
    return [[*words, END] for words in captions]


def test_an_empty_caption_is_sampled_where_the_model_writes_it():
    mute = decoder()
    with torch.no_grad():
        mute.output.bias[WORDS.eos_id] = 100
    assert words_of(critic(mute).write(images(0, 3))) == [[END]] * 2 * critic(mute).samples


@pytest.mark.parametrize("bleu_weight", [0.0, 2.5])
def test_rewards_are_the_scores_of_the_metrics_with_the_end_as_a_word(bleu_weight):
    captions = [
        ["a", "red", "square", "<eos>"],
        ["a", "white", "square", "in", "the", "middle", "<eos>"],
        ["a", "black", "square", "in", "the"],  # cut off by the longest length
        [END],
    ]
    described = [0, 3, 4, 0]
    targets = torch.zeros(4, 8, dtype=torch.int64)
    tokens = WORDS.specials + WORDS.words
    for row, caption in zip(targets, captions, strict=True):
        row[: len(caption)] = torch.tensor([tokens.index(word) for word in caption])
    found = critic(decoder(), bleu_weight=bleu_weight).rewards(targets, torch.tensor(described))
    references = [ended(image) for image in REFERENCES]
    wanted = CiderD(references).score(captions, described)
    if bleu_weight:
        # of each caption alone, by the metric as it scores a split
        for number, image in enumerate(described):
            bleu = Bleu([references[image]])
            wanted[number] += bleu_weight * bleu.combine(bleu.statistics([captions[number]]))[0, 3]
    torch.testing.assert_close(found, torch.from_numpy(wanted))
    assert found[0] > 5  # nearly a reference
    # an end in the right place is worth something
    whole = critic(decoder()).rewards(targets[:1], torch.tensor([0]))
    targets[0, 3] = WORDS.pad_id
    assert critic(decoder()).rewards(targets[:1], torch.tensor([0])) < whole


def test_captions_are_drawn_from_what_may_be_written_and_end_once():
    batch = critic(decoder(), samples=50).write(images(0, 3))
    assert len(batch.targets) == len(batch.images) == 100
    assert batch.images.tolist() == [0] * 50 + [3] * 50
    assert torch.equal(batch.features[60], torch.eye(6)[3])
    assert not batch.targets.is_inference()
    assert (batch.inputs[:, 0] == WORDS.bos_id).all()
    assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1])
    assert batch.tokens == int((batch.targets != WORDS.pad_id).sum())
    captions = words_of(batch)
    assert {caption.count(END) for caption in captions} == {0, 1}
    for caption in captions:
        assert END not in caption[:-1]
        assert len(caption) == 8 or caption[-1] == END
        assert not {"<unk>", "<bos>", "<pad>"} & set(caption)


def test_an_advantage_is_the_reward_less_the_mean_of_the_others():
    ours = critic(decoder(), samples=4)
    batch = ours.write(images(1, 5))
    rewards = ours.rewards(batch.targets, batch.images).tolist()
    for number, reward in enumerate(rewards):
        first = number // 4 * 4
        others = [rewards[i] for i in range(first, first + 4) if i != number]
        assert batch.weights[number].item() == pytest.approx(reward - sum(others) / 3, abs=1e-6)
    report = ours.report(torch.device("cpu"))
    assert report["reward"] == pytest.approx(sum(rewards) / 8)
    assert report["advantage_std"] == pytest.approx(batch.weights.square().mean().sqrt().item())


@pytest.mark.parametrize("cell", ["lstm", "elman"])
@pytest.mark.parametrize("parts", [1, 3])
def test_the_gradient_is_the_policy_gradient(cell, parts):
    model = decoder(cell=cell)
    batch = critic(model, samples=3).write(images(0, 2, 4))
    assert (batch.weights != 0).any()
    for index in range(parts):
        bptt.backward(model, batch.subset(index, parts))
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    # by hand: one caption and one token at a time, from the distribution it was drawn from
    model.zero_grad()
    allowed = [i for i in range(len(WORDS)) if i not in (WORDS.pad_id, WORDS.bos_id, WORDS.unk_id)]
    loss, tokens = torch.zeros(()), 0
    for number, row in enumerate(batch.targets.tolist()):
        hidden = model.init_hidden(batch.features[number : number + 1])
        previous = WORDS.bos_id
        for token in row:
            if token == WORDS.pad_id:
                break
            logits, hidden = model.step(torch.tensor([previous]), hidden)
            probability = functional.softmax(logits[0, allowed], dim=0)[allowed.index(token)]
            loss = loss - batch.weights[number] * probability.log()
            tokens, previous = tokens + 1, token
    (loss / tokens).backward()
    wanted = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, msg=name, atol=1e-6, rtol=1e-4)


def test_dropout_is_off_while_captions_are_drawn_and_on_again_after():
    for cell in ("gru", "elman"):
        model = decoder(cell=cell, dropout=0.9, feature_dropout=0.9).train()
        drawn = []
        for train_mode in (True, False):
            torch.manual_seed(0)
            drawn.append(critic(model.train(train_mode)).write(images(0, 1)).targets)
            assert model.training is train_mode
        assert torch.equal(*drawn)


def test_a_share_without_an_image_draws_nothing():
    batch = critic(decoder()).write(images())
    assert batch.tokens == 0
    assert bptt.backward(decoder(), batch) == 0


def test_captions_that_score_better_get_likelier():
    torch.manual_seed(0)
    model = decoder(hidden_size=32, embed_size=16).train()
    ours = critic(model, samples=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    worth = []
    for step in range(150):
        torch.manual_seed(step)
        optimizer.zero_grad()
        bptt.backward(model, ours.write(images(*range(6))))
        optimizer.step()
        worth.append(ours.report(torch.device("cpu"))["reward"])
    assert sum(worth[-10:]) > 5 * sum(worth[:10]) > 0


def test_one_image_cannot_be_compared():
    with pytest.raises(DataError, match=r"training\.objective: scst"):
        SelfCritical(decoder(), WORDS, REFERENCES[:1], settings(), max_length=8)


def test_a_table_of_images_shows_each_once():
    captions = [[["a"], ["red"]], [["blue"]], [["a"], ["white"], ["square"]]]
    features = torch.arange(6, dtype=torch.float16).view(6, 1)
    rows = torch.arange(6).view(3, 2)
    table = CaptionTable.build(features, captions, WORDS, views=rows).per_image()
    assert len(table) == 3
    shown = set()
    for epoch in range(8):
        batches = list(iterate(table, 2, seed=0, epoch=epoch))
        assert sorted(torch.cat([batch.images for batch in batches]).tolist()) == [0, 1, 2]
        for batch in batches:
            assert (batch.inputs == Vocabulary.bos_id).all()
            assert (batch.features[:, 0] // 2 == batch.images).all()
            shown |= set(batch.features[:, 0].tolist())
    assert shown == set(map(float, range(6)))


def change(config: Config, section: str, **values) -> Config:
    tree = config.model_dump()
    tree[section] |= values
    return Config.model_validate(tree)


@pytest.fixture(scope="module")
def started(tmp_path_factory) -> tuple[Config, Config]:
    """Train a toy, and return its config and one that goes on from it with scst."""
    folder = tmp_path_factory.mktemp("start")
    config = toys.config(folder, epochs=4)
    train(config, folder / "run", device="cpu")
    following = {"objective": "scst", "start_from": str(folder / "run"), "learning_rate": 1e-3}
    return config, change(config, "training", epochs=3, ema_decay=0.5, **following)


def timeless(folder):
    times = ("seconds", "tokens_per_second")
    lines = read_metrics(folder / "metrics.jsonl")
    return [{key: line[key] for key in line if key not in times} for line in lines]


def test_a_stopped_run_goes_on_as_if_it_had_not_been(started, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    _, config = started
    whole = train(config, tmp_path / "whole", device="cpu").folder
    update = loop.Updater.update

    def stop_once(self, step):
        if step == 4:
            signal.raise_signal(signal.SIGINT)
        return update(self, step)

    monkeypatch.setattr(loop.Updater, "update", stop_once)
    with pytest.raises(Stopped):
        train(config, tmp_path / "part", device="cpu")
    train(config, tmp_path / "part", device="cpu", resume=True)
    assert timeless(tmp_path / "part") == timeless(whole)
    weights = [tmp_path / name / "model" / "model.safetensors" for name in ("whole", "part")]
    assert weights[0].read_bytes() == weights[1].read_bytes()

    lines = timeless(whole)
    assert [line["epoch"] for line in lines if line["kind"] == "epoch"] == [0, 1, 2, 3]
    steps = [line for line in lines if line["kind"] == "step"]
    assert len(steps) == 3 * 3  # 24 images, 8 at a time
    assert all(line["reward"] > 0 and line["advantage_std"] > 0 for line in steps)
    said = (whole / "train.log").read_text()
    assert said.count("warning: training.learning_rate 0.001 is high for scst") == 1
    assert (whole / "curves.png").exists()


def test_a_run_killed_before_its_first_checkpoint_has_one_epoch_0(started, tmp_path):
    _, config = started
    folder = train(config, tmp_path / "run", device="cpu").folder
    whole = timeless(folder)
    for checkpoint in (folder / "checkpoints").glob("step-*"):
        checkpoint.unlink()
    (folder / "metrics.jsonl").write_text(json.dumps(whole[0]) + "\n")
    train(config, folder, device="cpu", resume=True)
    assert timeless(folder) == whole


@pytest.mark.parametrize("objective", ["xent", "scst"])
def test_a_run_never_leaves_a_worse_model_than_it_got(started, tmp_path, monkeypatch, objective):
    _, config = started
    scores = iter([0.5, 0.4, 0.3])
    monkeypatch.setattr(
        loop.Trainer, "_dev_scores", lambda self: {"bleu_4": 0.0, "cider_d": next(scores)}
    )
    config = change(config, "training", objective=objective, patience=2)
    done = train(config, tmp_path / "run", device="cpu")
    assert (done.progress.best_epoch, done.progress.best_score, done.progress.epoch) == (0, 0.5, 2)
    ours = Captioner.load(done.folder, "cpu").decoder.state_dict()
    theirs = Captioner.load(config.training.start_from, "cpu").decoder.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_start_that_does_not_fit_is_refused_in_one_line(started, tmp_path):
    first, config = started
    with pytest.raises(ConfigError, match=r"training\.start_from: scst"):
        try:
            TrainingConfig(objective="scst")
        except ValueError as error:
            raise ConfigError(str(error)) from error
    other = change(config, "decoder", hidden_size=20, cell="gru", dropout=0.0)
    with pytest.raises(ConfigError) as caught:
        train(other, tmp_path / "a", device="cpu")
    message = str(caught.value)
    assert "training.start_from" in message
    assert "decoder.cell is 'lstm', the run has 'gru'" in message
    assert "decoder.hidden_size is 24, the run has 20" in message
    assert "dropout" not in message
    assert "\n" not in message
    other = change(config, "encoder", image_size=40)
    with pytest.raises(ConfigError, match=r"start_from.*another CNN"):
        train(other, tmp_path / "c", device="cpu")
    other = change(config, "training", start_from=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"training\.start_from: .*nowhere: no model here"):
        train(other, tmp_path / "d", device="cpu")
    with pytest.raises(ConfigError, match=r"training\.start_from.*--overwrite deletes"):
        train(config, Path(config.training.start_from), device="cpu", overwrite=True)
    assert Captioner.load(config.training.start_from, "cpu")
    # dropout is no part of the weights
    train(change(config, "decoder", dropout=0.0), tmp_path / "e", device="cpu")
    assert first.decoder.dropout != 0.0
