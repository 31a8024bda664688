"""CLIPScore and BERTScore on tiny networks of random weights: the formulas, and every failure."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file

from captioner.cli import main
from captioner.embedding.models import with_models
from captioner.errors import ConfigError, ModelError
from captioner.metrics import (
    MetricInputs,
    SystemCaptions,
    compare_captions,
    read_signature,
    score_captions,
)
from captioner.metrics.inputs import BertVectors, ClipVectors, TokenVectors
from captioner.text import tokenize

SAID = ["A red square.", "two blue squares on a table", "a green thing"]
TRUE = [["a red square", "one square"], ["two blue squares"], ["the green square", "a thing", "it"]]
COLOURS = ("red", "blue", "green")
TINY = {
    "embed_dim": 16,
    "vision_cfg": {
        **{"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    },
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
WORDS = "[PAD] [UNK] [CLS] [SEP] a the red blue green square thing one two on table it . ##s"
REFERENCES = [[tokenize(text) for text in texts] for texts in TRUE]
ASKED = ("clip_score", "bert_score")


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """Weights of a tiny CLIP, which open_clip knows as `tiny` from a JSON file."""
    open_clip = pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("clip")
    (folder / "tiny.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    network = open_clip.create_model("tiny")
    save_file(network.state_dict(), folder / "weights.safetensors")
    return folder / "weights.safetensors"


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    """A folder with a tiny BERT and its words."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tiny-bert")
    (folder / "vocab.txt").write_text("\n".join(WORDS.split()))
    words = transformers.BertTokenizer(str(folder / "vocab.txt"), model_max_length=64)
    assert words.tokenize("Two squares.") == ["two", "square", "##s", "."]
    words.save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=18,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24,
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def pictures(tmp_path) -> list[Path]:
    paths = []
    for n, colour in enumerate(COLOURS):
        noise = np.random.default_rng(n).integers(0, 60, (40, 48, 3), np.uint8)
        picture = Image.new("RGB", (48, 40), colour)
        paths.append(tmp_path / "pictures" / f"{colour}.png")
        paths[-1].parent.mkdir(exist_ok=True)
        Image.fromarray(np.asarray(picture) // 2 + noise).save(paths[-1])
    return paths


def scores_of(asked: str, texts=SAID, pictures=(), **models):
    inputs = with_models(
        MetricInputs(references=TRUE),
        [asked],
        lambda: map(Image.open, pictures),
        device="cpu",
        **models,
    )
    captions = SystemCaptions([[text] for text in texts])
    return score_captions(captions, REFERENCES, metrics=[asked], inputs=inputs, resamples=100)


def test_clip_score_is_the_formula(clip, pictures) -> None:
    import open_clip

    network, _, seen = open_clip.create_model_and_transforms("tiny", pretrained=str(clip))
    network.eval()
    tokens = open_clip.get_tokenizer("tiny")

    def unit(vectors):
        return vectors / vectors.norm(dim=-1, keepdim=True)

    with torch.inference_mode():
        shown = unit(network.encode_image(torch.stack([*map(seen, map(Image.open, pictures))])))
        said = unit(network.encode_text(tokens([f"A photo depicts {text}" for text in SAID])))
        true = [
            unit(network.encode_text(tokens([f"A photo depicts {text}" for text in texts])))
            for texts in TRUE
        ]
    fits = [2.5 * max(float(v @ c), 0) for v, c in zip(shown, said, strict=True)]
    near = [max(float((r @ c).max()), 0) for r, c in zip(true, said, strict=True)]
    both = [2 * a * b / (a + b) if a + b else 0 for a, b in zip(fits, near, strict=True)]
    scores = scores_of("clip_score", pictures=pictures, clip=f"tiny:{clip}")
    assert [*scores] == ["clip_score", "ref_clip_score"]
    assert any(fits)
    for score, expected in zip(scores.values(), (fits, both), strict=True):
        np.testing.assert_allclose(score.per_image, expected, atol=1e-5)
        assert score.value == pytest.approx(np.mean(expected), abs=1e-5)
        assert score.interval[0] <= score.value <= score.interval[1]
        fields = read_signature(score.signature)
        assert fields["clip"].startswith("tiny:weights.safetensors@")
        assert (fields["w"], fields["prompt"]) == ("2.5", "A photo depicts")


def test_clip_score_by_hand() -> None:
    """Vectors that are known: captions and references point along axes of a plane."""
    along = {
        **{"A photo depicts east": (1, 0), "A photo depicts north": (0, 1)},
        **{"A photo depicts west": (-1, 0), "A photo depicts ": (1, 0)},
    }
    given = ClipVectors(
        "known",
        np.array([[0.6, 0.8]] * 4),
        lambda texts: np.array([along[text] for text in texts], float),
    )
    inputs = MetricInputs(references=[["east"], ["east", "north"], ["west"], ["east"]], clip=given)
    said = SystemCaptions([["east"], ["north"], ["west"], [""]])
    references = [[tokenize(text) for text in texts] for texts in inputs.references]
    scores = score_captions(said, references, metrics=["clip_score"], inputs=inputs)
    np.testing.assert_allclose(scores["clip_score"].per_image, [1.5, 2.0, 0, 0])
    expected = [2 * 1.5 / 2.5, 2 * 2.0 / 3.0, 0, 0]
    np.testing.assert_allclose(scores["ref_clip_score"].per_image, expected)
    opposite = SystemCaptions([["west"], ["west"], ["east"], ["north"]])
    pair = compare_captions(said, opposite, references, metrics=["clip_score"], inputs=inputs)
    np.testing.assert_allclose(pair["clip_score"].per_image, [-1.5, -2, 1.5, 2])
    np.testing.assert_allclose(pair["ref_clip_score"].per_image, [-1.2, -4 / 3, 0, 0])


def test_bert_score_by_hand() -> None:
    """Two inner tokens against one and two; the ends can be matched but are no tokens to match."""
    east, north, both = (1, 0), (0, 1), (0.6, 0.8)
    known = {"x": [east, east, north], "y": [both, both], "z": [north, east, both], "": [east]}

    def tokens(texts):
        found = (np.array(known[text], float) for text in texts)
        return [TokenVectors(each, np.arange(len(each)) > 0) for each in found]  # the first ends it

    inputs = MetricInputs(references=[["y"], ["y", "z"], ["z"]], bert=BertVectors("known", tokens))
    references = [[["y"]], [["y"], ["z"]], [["z"]]]
    said = SystemCaptions([["x"], ["x"], [""]])
    scores = score_captions(said, references, metrics=["bert_score"], inputs=inputs)
    # x against y: east and north each meet both: 0.6, 0.8; y's meets north, 0.8.
    # x against z: east and north are there; east is found, both is 0.8 from north.
    precision, recall = np.array([[0.7, 1.0], [0.8, 0.9]])
    f1 = 2 * precision * recall / (precision + recall)
    for name, values in zip(scores, (precision, recall, f1), strict=True):
        np.testing.assert_allclose(scores[name].per_image, [values[0], values.max(), 0])


def test_bert_score_is_that_of_the_papers_program(bert) -> None:
    official = pytest.importorskip("bert_score")
    for layer in (1, 3):
        scorer = official.BERTScorer(model_type=str(bert), num_layers=layer, device="cpu")
        expected = torch.stack(scorer.score(SAID, TRUE), dim=1).numpy()
        scores = scores_of("bert_score", bert=f"{bert}:{layer}")
        assert [*scores] == ["bert_precision", "bert_recall", "bert_f1"]
        for score, values in zip(scores.values(), expected.T, strict=True):
            np.testing.assert_allclose(score.per_image, values, atol=1e-5)
            assert score.interval[0] <= score.value <= score.interval[1]
            fields = read_signature(score.signature)
            assert fields["bert"].startswith(f"{bert.name}@")
            assert fields["bert"].endswith(f",layer{layer}")
    assert 0 < scores["bert_f1"].value < 1


def test_equal_captions_are_perfect_and_empty_ones_score_nothing(bert) -> None:
    for score in scores_of("bert_score", ["one square", "", "it"], bert=f"{bert}:2").values():
        np.testing.assert_allclose(score.per_image, [1, 0, 1], atol=1e-6)
    long = " ".join(["square"] * 700)  # more than it reads
    assert scores_of("bert_score", [long, "a", "b"], bert=f"{bert}:2")["bert_f1"].per_image[0] > 0


def test_other_weights_have_another_signature(clip, bert, pictures, tmp_path) -> None:
    import open_clip

    torch.manual_seed(1)
    other = tmp_path / "weights.safetensors"
    save_file(open_clip.create_model("tiny").state_dict(), other)
    names = {
        read_signature(score.signature)["clip"]
        for path in (clip, other, clip)
        for score in scores_of("clip_score", pictures=pictures, clip=f"tiny:{path}").values()
    }
    assert len(names) == 2
    layers = {
        read_signature(scores_of("bert_score", bert=f"{bert}:{n}")["bert_f1"].signature)["bert"]
        for n in (1, 2)
    }
    assert len(layers) == 2


@pytest.mark.parametrize(
    ("models", "kind", "line"),
    [
        (
            {"clip": "tinny:w"},
            ConfigError,
            r"no model 'tinny' \(did you mean tiny\?\); write NAME:T",
        ),
        ({"clip": "tiny"}, ConfigError, "'' is neither a file nor a tag of tiny; tags: none"),
        ({"clip": "ViT-B-32:oopenai"}, ConfigError, "'oopenai' is neither a file nor a .*openai, "),
        ({"clip": "tiny:{broken}"}, ModelError, "cannot be loaded: .*; name another file"),
        ({"bert": "{bert}"}, ConfigError, "name the layer to compare, .*tiny-bert.*:LAYER"),
        ({"bert": "{bert}:4"}, ConfigError, "has layers 1 to 3, given 4"),
        ({"bert": "{empty}:1"}, ModelError, "cannot be loaded: .*; name another folder"),
        ({"bert": "@main"}, ConfigError, "name the layer to compare, @main:LAYER"),
    ],
)
def test_a_wrong_model_is_one_line(clip, bert, tmp_path, models, kind, line) -> None:
    (tmp_path / "broken.pt").write_bytes(b"no weights")
    (tmp_path / "empty").mkdir()
    places = {"broken": tmp_path / "broken.pt", "empty": tmp_path / "empty", "bert": bert}
    named = {name: model.format(**places) for name, model in models.items()}
    [asked] = (f"{name}_score" for name in models)
    with pytest.raises(kind, match=line) as error:
        scores_of(asked, **named)
    assert "\n" not in str(error.value)


def test_without_a_network_nothing_is_tried_again(monkeypatch, tmp_path, pictures) -> None:
    open_clip, transformers = map(pytest.importorskip, ("open_clip", "transformers"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", "http://127.0.0.1:9")
    asked = []

    def download(*_, **__):
        asked.append("again")
        raise OSError("not in the cache either")

    monkeypatch.setattr(open_clip.factory, "download_pretrained", download)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", download)
    notes = [
        scores_of("clip_score", pictures=pictures)["clip_score"].note,
        scores_of("bert_score")["bert_f1"].note,
    ]
    for note, model, advice in zip(
        notes,
        ("CLIP ViT-B-32:openai", "BERT roberta-large"),
        ("; name a file of its weights, ViT-B-32:PATH", "; name a folder that holds it"),
        strict=True,
    ):
        assert note.startswith(f"{model} cannot be loaded: hub:")
        assert "not in the cache, and no connection to http://127.0.0.1:9" in note
        assert note.endswith(advice) and "\n" not in note
    assert asked == []
    for repository in ("timm--vit_base_patch32_clip_224.openai", "roberta-large"):
        (tmp_path / f"models--{repository}" / "snapshots").mkdir(parents=True)
    scores_of("clip_score", pictures=pictures)
    scores_of("bert_score")
    assert asked == ["again", "again"]  # the cache may have it


def test_what_cannot_be_had_is_said_and_other_scores_come(monkeypatch, pictures) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("captioner.embedding.pretrained.check_reach", lambda repository: None)
    open_clip = pytest.importorskip("open_clip")

    def unreachable(*_, **__):
        raise OSError("no connection\nto the hub")

    monkeypatch.setattr(open_clip.factory, "download_pretrained", unreachable)
    score = scores_of("clip_score", pictures=pictures, clip="ViT-B-32:openai")["clip_score"]
    assert math.isnan(score.value)
    assert score.note.startswith(
        "CLIP ViT-B-32:openai cannot be loaded: Failed to download weights"
    )
    assert score.note.endswith("; name a file of its weights, ViT-B-32:PATH")
    assert "\n" not in score.note
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", unreachable)
    note = scores_of("bert_score")["bert_f1"].note
    assert note == (
        "BERT roberta-large cannot be loaded: no connection to the hub; name a folder that holds it"
    )
    for package, asked, extra in (
        ("open_clip", *ASKED[:1], "clip"),
        ("transformers", ASKED[1], "bert"),
    ):
        monkeypatch.setitem(sys.modules, package, None)
        note = next(iter(scores_of(asked).values())).note
        assert note.startswith("needs ")
        assert note.endswith(f": pip install 'captioner[{extra}]'")
    captions = SystemCaptions([[text] for text in SAID])
    scores = score_captions(captions, REFERENCES, metrics=["bleu", *ASKED], resamples=5)
    assert scores["bleu_1"].value > 0
    assert scores["clip_score"].note == "needs a CLIP model and the pictures"
    assert scores["bert_f1"].note == "needs a language model"
    assert scores["ref_clip_score"].interval is None


def test_score_and_compare_find_the_pictures(clip, bert, pictures, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        {"image": f"{c}.png", "caption": text, "references": true}
        for c, text, true in zip(COLOURS, SAID, TRUE, strict=True)
    ]
    (tmp_path / "said.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    metrics = ("--metrics", "clip_score,bert_score", "--resamples", "50")
    models = ("--clip", f"tiny:{clip}", "--bert", f"{bert}:2")

    def run(*words):
        return CliRunner().invoke(main, [*words, *metrics, *models])

    lost = run("score", "said.jsonl")
    assert lost.exit_code == 1
    assert "clip_score reads the pictures; no file, or several of the name, for red.png, blue" in (
        lost.stderr
    )
    found = run("score", "said.jsonl", "--images", "pictures", "--output", "scores.json")
    assert found.exit_code == 0, found.stderr
    values = json.loads((tmp_path / "scores.json").read_text())
    expected = scores_of("clip_score", pictures=pictures, clip=f"tiny:{clip}")
    expected |= scores_of("bert_score", bert=f"{bert}:2")
    for name, score in expected.items():
        assert values[name]["value"] == pytest.approx(score.value, abs=1e-6)
        assert f"{name:14}  {score.value:.3f} +- " in found.stdout
    # The files may name their pictures themselves; ids and stems do as well.
    named = [row | {"image": f"pictures/{row['image']}"} for row in rows]
    (tmp_path / "named.jsonl").write_text("".join(json.dumps(row) + "\n" for row in named))
    assert run("score", "named.jsonl").stdout == found.stdout
    bare = [{"image_id": row["image"][:-4], "caption": row["caption"]} for row in rows]
    (tmp_path / "bare.json").write_text(json.dumps(bare))
    again = run("score", "bare.json", "said.jsonl", "--images", "pictures")
    assert again.stdout == found.stdout
    (tmp_path / "pictures" / "more").mkdir()
    pictures[0].rename(tmp_path / "pictures" / "more" / "red.png")
    assert run("score", "said.jsonl", "--images", "pictures").stdout == found.stdout
    (tmp_path / "pictures" / "red.png").write_bytes(pictures[1].read_bytes())  # at its path
    other = run("score", "said.jsonl", "--images", "pictures")
    assert other.exit_code == 0
    assert other.stdout != found.stdout
    both = run("compare", "said.jsonl", "named.jsonl", "--images", "pictures")
    assert both.exit_code == 0, both.stderr
    assert "A and B score the same on every image." in both.stdout


def test_nothing_heavy_is_imported_without_need() -> None:
    program = (
        "import sys; from captioner.cli import main\n"
        "from captioner.scoring import score, compare\n"
        "import captioner.metrics\n"
        "print(sorted({'torch', 'open_clip', 'transformers'} & {*sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
