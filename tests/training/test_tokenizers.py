"""A run with any tokeniser: its model, captions, scores and signatures are of that tokeniser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from captioner.captioner import Captioner
from captioner.config import Config
from captioner.data.caption_table import CaptionTable
from captioner.data.prepare import open_encoder, prepare
from captioner.errors import ConfigError, ModelError
from captioner.evaluation.evaluate import evaluate
from captioner.evaluation.report import write_report
from captioner.metrics import read_signature
from captioner.scoring.score import score_file
from captioner.text import PTB, Vocabulary
from captioner.training.dev import DevSplit
from captioner.training.run import train

import toys

WORDS = {
    "a": "一个", "red": "红色的", "green": "绿色的", "blue": "蓝色的", "square": "正方形",
    "with": "，", "bright": "很亮", "middle": "中间", "in": "在", "the": "这", "of": "的",
}  # fmt: skip


class Run(NamedTuple):
    """A finished run."""

    config: Config
    folder: Path


def changed(config: Config, **sections: dict[str, object]) -> Config:
    tree = config.model_dump()
    for section, values in sections.items():
        tree[section] |= values
    return Config.model_validate(tree)


def chinese(folder: Path) -> Config:
    """The toy data set with captions without spaces."""
    config = toys.config(folder, epochs=2)
    table = Path(config.data.root)
    text = table.read_text(encoding="utf-8")
    lines = [line.split(",") for line in text.splitlines()]
    column = lines[0].index("caption")
    for cells in lines[1:]:
        cells[column] = "".join(WORDS.get(word, "图") for word in cells[column].split())
    table.write_text("\n".join(map(",".join, lines)) + "\n", encoding="utf-8")
    return config


@pytest.fixture(scope="module", params=["unicode", "characters", "bpe"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp(request.param)
    with toys.inside(folder):
        text = {"tokenizer": request.param, "vocab_size": 300, "min_count": 1}
        config = changed(chinese(folder), text=text, decoding={"max_length": 30, "neighbours": 0.5})
        return Run(config, train(config, folder / "run", device="cpu").folder)


def test_the_model_directory_names_the_tokeniser(run: Run, tmp_path: Path) -> None:
    name = run.config.text.tokenizer
    captioner = Captioner.load(run.folder, "cpu")
    assert captioner.vocabulary.tokenizer.name == name
    config = json.loads((run.folder / "model" / "config.json").read_text())
    assert (config["tokenizer"], config["format_version"]) == (name, 3)
    captioner.save(tmp_path / "half", storage="fp16")
    config = json.loads((tmp_path / "half" / "config.json").read_text())
    assert (config["tokenizer"], config["format_version"]) == (name, 4)
    assert Captioner.load(tmp_path / "half", "cpu").vocabulary == captioner.vocabulary
    assert f"| `{name}` |" in (run.folder / "model" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("changes", [{"tokenizer": "ptb"}, {"format_version": 1}, {"tokenizer": 3}])
def test_a_model_whose_files_disagree_is_refused(
    run: Run, tmp_path: Path, changes: dict[str, object]
) -> None:
    Captioner.load(run.folder, "cpu").save(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ModelError) as caught:
        Captioner.load(tmp_path / "model", "cpu")
    assert "\n" not in str(caught.value)


def test_a_ptb_model_says_nothing_of_it(tmp_path: Path) -> None:
    captioner = toys.captioner()
    captioner.save(tmp_path / "model")
    assert "tokenizer" not in json.loads((tmp_path / "model" / "config.json").read_text())
    assert "tokenizer" not in json.loads((tmp_path / "model" / "vocab.json").read_text())
    assert Captioner.load(tmp_path / "model", "cpu").vocabulary.tokenizer == PTB


def test_captions_are_steered_scored_and_written_by_it(run: Run) -> None:
    captioner = Captioner.load(run.folder, "cpu")
    tokenizer = captioner.vocabulary.tokenizer
    image = torch.zeros(32, 32, 3, dtype=torch.uint8)
    start = "一个红色的"
    options = captioner.settings(start=start, min_length=8, beam_size=3)
    [[best]] = captioner.search(captioner.encode(image), options, words=True)
    assert best.text.startswith(start)
    assert tokenizer.name == "bpe" or " " not in best.text  # a piece may begin with a space
    own = captioner.score(image, best.text, per_token=False)
    if best.finished and tokenizer.name != "bpe":  # pieces can spell a word in two ways
        assert own == pytest.approx(best.log_prob, abs=1e-3)
    if tokenizer.name == "bpe":
        with pytest.raises(ConfigError, match="cannot forbid a word"):
            captioner.settings(forbid=["红"])
    else:
        [[other]] = captioner.search(captioner.encode(image), captioner.settings(forbid=["红"]))
        assert "红" not in other.text


def test_evaluation_and_score_agree_and_sign_it(run: Run, tmp_path: Path) -> None:
    captioner = Captioner.load(run.folder, "cpu")
    result = evaluate(captioner, run.config, tmp_path / "evaluation", split="dev", resamples=0)
    write_report(result, captioner.vocabulary, model=run.folder / "model")
    for score in result.scores.values():
        assert read_signature(score.signature)["tok"] == run.config.text.tokenizer
    assert result.calibration is not None
    done = score_file(tmp_path / "evaluation", metrics=["bleu", "cider"], resamples=0)
    for name in ("bleu_1", "cider"):
        assert done.scores[name].signature == result.scores[name].signature
        assert done.scores[name].value == pytest.approx(result.scores[name].value, nan_ok=True)
    other = score_file(tmp_path / "evaluation", metrics=["bleu"], resamples=0, tokenizer="ptb")
    assert "|tok:ptb|" in other.scores["bleu_1"].signature


def test_a_run_that_starts_from_a_model_keeps_its_tokeniser(run: Run, tmp_path: Path) -> None:
    more = changed(run.config, training={"start_from": str(run.folder), "epochs": 1})
    found = train(more, tmp_path / "more", device="cpu").folder
    captioner, old = (Captioner.load(each, "cpu") for each in (found, run.folder))
    assert captioner.vocabulary.tokenizer == old.vocabulary.tokenizer
    with pytest.raises(ConfigError, match=r"text\.tokenizer: the model of training\.start_from"):
        train(changed(more, text={"tokenizer": "ptb"}), tmp_path / "other", device="cpu")


def test_the_dev_loss_is_of_the_tokens_that_the_model_writes(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets: list[CaptionTable] = []

    class Watched(DevSplit):
        def __init__(self, table, captions, *rest):
            targets.append(captions)
            super().__init__(table, captions, *rest)

    monkeypatch.setattr("captioner.training.run.DevSplit", Watched)
    config = changed(run.config, training={"epochs": 1})
    found = train(config, tmp_path / "run", device="cpu").folder
    tokenizer = Captioner.load(found, "cpu").vocabulary.tokenizer
    dev = prepare(config, open_encoder(config, torch.device("cpu")), lambda _: None).dev
    captions = [caption for example in dev.examples for caption in example.captions]
    lengths = [len(tokenizer.tokenize(caption)) + 2 for caption in captions]
    assert targets[0].lengths.tolist() == lengths
    assert Vocabulary.unk_id not in targets[0].token_ids


def test_self_critical_training_rewards_words(run: Run, tmp_path: Path) -> None:
    training = {"objective": "scst", "start_from": str(run.folder), "epochs": 1, "samples": 2}
    config = changed(run.config, training=training | {"learning_rate": 1e-5})
    train(config, tmp_path / "critic", device="cpu")


def test_training_suggests_a_tokeniser_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with toys.inside(tmp_path):
        config = changed(chinese(tmp_path), text={"min_count": 1})
        said: list[str] = []
        prepare(config, open_encoder(config, torch.device("cpu")), said.append)
    assert said[0].startswith("suggestion: 100% of the captions in train are one token")
    assert "--set text.tokenizer=unicode" in said[0]
