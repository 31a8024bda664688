"""Drawn scenes: the truth of a picture, what is said of it, what is drawn, what is bundled."""

from __future__ import annotations

import json
import random
import runpy
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from torchvision.models import get_model

from captioner.config import bundled, load_config
from captioner.data import scenes
from captioner.data.load import load_dataset
from captioner.data.scenes import captions, draw, generate, is_true, load, parse_scene
from captioner.data.scenes.drawing import PALETTE, SIZE
from captioner.data.scenes.grammar import (
    COLOURS,
    KINDS,
    RELATIONS,
    SIZES,
    Scene,
    Thing,
    sentences,
)
from captioner.data.scenes.splits import combination, split_combinations
from captioner.errors import DataError
from captioner.text import tokenize

ROOT = bundled("data/scenes")
# First calls import, and machines are shared. Always the same examples: of some 6,000 pictures one
# has two squares whose corners meet, and counts one thing less by its pixels.
unhurried = settings(derandomize=True)

things = st.builds(Thing, *map(st.sampled_from, (KINDS, COLOURS, SIZES)))
groups = st.builds(lambda thing, n: Scene((thing,), n), things, st.integers(1, 4))
pairs = st.builds(
    lambda a, b, relation: Scene((a, b), relation=relation),
    things,
    things,
    st.sampled_from(tuple(RELATIONS)),
).filter(lambda scene: scene.things[0].kind != scene.things[1].kind)
any_scene = groups | pairs


def bundled_scenes() -> Iterator[tuple[str, Scene]]:
    for line in (ROOT / "captions.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        yield record["split"], parse_scene(record["scene"])


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with six drawn scenes of each split."""
    monkeypatch.setattr(scenes, "PICTURES", {"train": 6, "dev": 6, "test": 6})
    generate(tmp_path / "few")
    return tmp_path / "few"


def edit(folder: Path, number: int, line: str) -> None:
    lines = (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    lines[number] = line
    (folder / "captions.jsonl").write_text("\n".join(lines), encoding="utf-8")


# What is said.


def test_the_captions_of_a_group_and_of_a_pair() -> None:
    star = Thing("star", "red", "small")
    assert captions(Scene((star,), 3)) == (
        "three small red stars",
        "three small red stars on a plain background",
        "there are three small red stars",
        "the picture shows three red stars that are small",
        "we see three red stars of small size",
    )
    assert captions(Scene((star, Thing("cross", "blue", "large")), relation="above")) == (
        "a small red star above a large blue cross",
        "a small red star with a large blue cross below it",
        "there is a small red star above a large blue cross",
        "the picture shows a large blue cross below a small red star",
        "we see a large blue cross with a small red star above it",
    )
    assert captions(Scene((Thing("cross", "pink", "large"),), 2))[0] == "two large pink crosses"
    assert captions(Scene((star,)))[3] == "the picture shows a red star that is small"


@unhurried
@given(any_scene)
def test_captions_differ_are_true_and_survive_the_tokeniser(scene: Scene) -> None:
    said = captions(scene)
    assert len(set(said)) == 5
    for caption in said:
        assert is_true(scene, caption)
        assert tokenize(caption) == caption.split()


@unhurried
@given(any_scene, any_scene)
def test_nothing_said_of_one_scene_is_true_of_another(one: Scene, other: Scene) -> None:
    assume(one != other)
    assert not any(is_true(other, said) for row in sentences(one) for said in row)


@unhurried
@given(any_scene, st.data())
def test_a_caption_with_one_wrong_word_is_false(scene: Scene, data: st.DataObject) -> None:
    words = data.draw(st.sampled_from(captions(scene))).split()
    place = data.draw(st.integers(0, len(words) - 1))
    # The opening says nothing of the scene, but it is one of the grammar's or the caption is not.
    word = data.draw(st.sampled_from((*KINDS, *COLOURS, *SIZES, "two", "left", "below", "on")))
    assume(word != words[place])
    changed = [*words[:place], word, *words[place + 1 :]]
    assert not is_true(scene, " ".join(changed)) or sorted(changed) == sorted(words)
    assert not is_true(scene, " ".join(words[:place] + words[place + 1 :]))


def test_words_and_spaces_may_be_written_anyhow_but_nothing_left_out() -> None:
    scene = Scene((Thing("heart", "green", "large"), Thing("star", "red", "small")), 1, "left of")
    assert is_true(scene, "  A large green heart\tleft of a small RED star ")
    assert is_true(scene, "we see a small red star right of a large green heart")
    for caption in (
        "",
        "a large green heart",
        "a green heart left of a small red star",
        "a large green heart right of a small red star",
        "a small red star left of a large green heart",
        "a large green heart above a small red star",
        "a large red heart left of a small green star",
        "heart green large a left of a small red star",
    ):
        assert not is_true(scene, caption)


@unhurried
@given(any_scene)
def test_a_scene_survives_json(scene: Scene) -> None:
    assert parse_scene(json.loads(json.dumps(asdict(scene)))) == scene


@pytest.mark.parametrize(
    "change",
    [
        {"count": 0},
        {"count": 5},
        {"count": "2"},
        {"relation": "left of"},
        {"relation": []},
        {"things": []},
        {"things": [{"kind": "star", "colour": "red"}]},
        {"things": [{"kind": "moon", "colour": "red", "size": "small"}]},
        {"things": [{"kind": "star", "colour": "red", "size": "small"}] * 2},
        {"things": [{"kind": "star", "colour": "red", "size": "small"}] * 2, "relation": "under"},
    ],
)
def test_what_no_caption_could_tell_is_no_scene(change: dict[str, object]) -> None:
    fields: dict[str, object] = asdict(Scene((Thing("star", "red", "small"),)))
    with pytest.raises(ValueError, match="scene"):
        parse_scene(fields | change)
    with pytest.raises(ValueError, match="not a scene"):
        parse_scene({key: value for key, value in fields.items() if key not in change})


# What is drawn.


def components(filled: np.ndarray) -> list[np.ndarray]:
    """Connected areas of a mask, each as its (row, column) pixels."""
    left = {(int(row), int(column)) for row, column in np.argwhere(filled)}
    areas = []
    while left:
        area, front = [], [left.pop()]
        while front:
            row, column = front.pop()
            area.append((row, column))
            around = {(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= around
            front += around
        areas.append(np.array(area))
    return areas


@unhurried
@given(any_scene, st.integers(0, 10_000))
@pytest.mark.slow
def test_the_picture_shows_what_the_scene_says(scene: Scene, seed: int) -> None:
    picture = draw(scene, random.Random(seed))
    assert picture.mode == "P"
    assert picture.size == (SIZE, SIZE)
    indices = np.asarray(picture)
    assert indices.max() < 16
    edge = np.concatenate([*indices[[0, -1]], *indices[:, [0, -1]].T])
    assert np.isin(edge, (7, 14)).sum() == 0, "a thing is cut off"
    levels = np.where(indices > 7, indices.astype(int) - 7, indices)
    # Corners may come so near that their faint outermost pixels meet.
    areas = components(levels > 3)
    assert len(areas) == scene.count * len(scene.things)
    colours = np.asarray(picture.convert("RGB")).astype(float)
    by_thing: list[list[np.ndarray]] = [[] for _ in scene.things]
    for area in areas:
        by_thing[int(indices[tuple(area.T)].max() > 7)].append(area)
    for thing, found in zip(scene.things, by_thing, strict=True):
        assert len(found) == scene.count
        for area in found:
            extent = np.ptp(area, axis=0).max() + 1
            assert extent < 15 if thing.size == "small" else extent > 16
            inside = area[levels[tuple(area.T)] == 7]
            tint = colours[tuple(inside.T)].mean(0)
            assert min(PALETTE, key=lambda name: np.abs(tint - PALETTE[name]).sum()) == thing.colour
    if scene.relation:
        down, across = by_thing[1][0].mean(0) - by_thing[0][0].mean(0)
        forward, aside = (across, down) if scene.relation == "left of" else (down, across)
        assert forward > 1.5 * abs(aside)


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_look_different(kind: str) -> None:
    def cover(kind: str) -> np.ndarray:
        # The same stream of chances puts every kind in the same place.
        indices = np.asarray(draw(Scene((Thing(kind, "red", "large"),)), random.Random(3)))
        return indices / 7

    other = [np.abs(cover(kind) - cover(name)).sum() for name in KINDS if name != kind]
    assert min(other) > 0.15 * cover(kind).sum()


# How the splits differ.


def test_no_combination_is_in_two_splits() -> None:
    shares = split_combinations()
    for kind in (0, 1):
        parts = [shares[split][kind] for split in ("train", "dev", "test")]
        assert len({item for part in parts for item in part}) == sum(map(len, parts))
    assert sum(len(shares[split][0]) for split in shares) == 6 * 7 * 2 * 4
    assert sum(len(shares[split][1]) for split in shares) == 15 * 7 * 7


def test_scenes_keep_to_their_split_in_turn() -> None:
    shares = split_combinations(5)
    for split, (of_groups, of_pairs) in shares.items():
        made = list(islice(scenes.scenes(shares[split], random.Random(split)), 400))
        assert {combination(scene) for scene in made[0::2]} == set(of_groups[:200])
        assert {combination(scene) for scene in made[1::2]} == set(of_pairs[:200])


def test_a_combination_of_a_pair_forgets_sizes_order_and_relation() -> None:
    one, two = Thing("star", "red", "small"), Thing("heart", "blue", "large")
    pair = Scene((one, two), relation="above")
    turned = Scene((replace(two, size="small"), one), relation="left of")
    assert combination(pair) == combination(turned)
    assert combination(pair) != combination(Scene((replace(one, colour="pink"), two), 1, "above"))
    assert len({combination(Scene((thing,), n)) for thing in (one, two) for n in (1, 2)}) == 4


# What is bundled.


def test_bundled_test_combinations_never_occur_in_train_but_every_word_does() -> None:
    seen: dict[str, set[object]] = {"train": set(), "dev": set(), "test": set()}
    words: dict[str, set[str]] = {"train": set(), "dev": set(), "test": set()}
    for split, scene in bundled_scenes():
        seen[split].add(combination(scene))
        words[split].update(" ".join(captions(scene)).split())
    assert not seen["train"] & (seen["dev"] | seen["test"])
    assert not seen["dev"] & seen["test"]
    assert words["train"] >= words["dev"] | words["test"]
    assert words["train"] >= {*KINDS, *COLOURS, *SIZES}


def test_the_bundled_set_is_whole_small_and_true() -> None:
    dataset = load_dataset(ROOT)
    assert dataset.format == "scenes"
    assert dataset.problems == ()
    assert dataset.splits == {"train": 2000, "dev": 200, "test": 200}
    assert dataset.judge is not None
    for example in dataset.examples:
        assert len(example.captions) == 5
        assert all(dataset.judge(example.image_id, caption) for caption in example.captions)
    first, second = dataset.examples[:2]
    assert not dataset.judge(first.image_id, second.captions[0])
    files = [path for path in ROOT.rglob("*") if path.is_file()]
    assert len(files) == 2401
    assert sum(path.stat().st_size for path in files) < 3e6


def test_redrawing_gives_the_bundled_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(scenes, "PICTURES", {"train": 30})
    generate(tmp_path)
    redrawn = (tmp_path / "captions.jsonl").read_bytes()
    assert (ROOT / "captions.jsonl").read_bytes().startswith(redrawn)
    for path in sorted((tmp_path / "images").iterdir()):
        with Image.open(path) as new, Image.open(ROOT / "images" / path.name) as old:
            pixels = [np.asarray(image.convert("RGB")).astype(float) for image in (new, old)]
        # Another Pillow may round the edge of a polygon otherwise.
        assert np.abs(pixels[0] - pixels[1]).mean() < 1


def test_a_seed_gives_the_same_files_and_another_seed_others(few: Path, tmp_path: Path) -> None:
    files = sorted(path.relative_to(few) for path in few.rglob("*.*"))
    assert len(files) == 19
    generate(tmp_path / "again")
    generate(tmp_path / "other", seed=1)
    for file in files:
        written = (few / file).read_bytes()
        assert (tmp_path / "again" / file).read_bytes() == written
        assert (tmp_path / "other" / file).read_bytes() != written


def test_the_module_redraws(
    few: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "anew" / "scenes"
    monkeypatch.setattr(sys, "argv", ["scenes", str(folder)])
    runpy.run_module("captioner.data.scenes", run_name="__main__")
    assert (folder / "captions.jsonl").read_bytes() == (few / "captions.jsonl").read_bytes()
    monkeypatch.setattr(sys, "argv", ["scenes"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_module("captioner.data.scenes", run_name="__main__")
    assert capsys.readouterr().err.startswith("usage: python -m captioner.data.scenes")


# What is read.


def test_a_folder_without_scenes_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)no data set .*python -m captioner.data.scenes"):
        load_dataset(tmp_path, format="scenes")
    (tmp_path / "captions.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="no usable image"):
        load(tmp_path)


def test_a_missing_a_doubled_and_an_unnamed_picture_are_problems(few: Path) -> None:
    lines = (few / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    edit(few, 3, lines[2])
    (few / "images" / "train-0000.png").unlink()
    dataset = load(few)
    assert [(problem.kind, problem.where) for problem in dataset.problems] == [
        ("duplicate id", "captions.jsonl:4"),
        ("missing image", "captions.jsonl:1"),
        ("image without captions", "images/train-0003.png"),
    ]
    assert dataset.splits == {"train": 4, "dev": 6, "test": 6}


@pytest.mark.parametrize(
    "change",
    [
        {"file_name": 3},
        {"split": None},
        {"captions": "a star"},
        {"scene": None},
        {"scene": {"things": [], "count": 1, "relation": ""}},
    ],
)
def test_a_damaged_record_is_a_problem(few: Path, change: dict[str, object]) -> None:
    record = json.loads((few / "captions.jsonl").read_text(encoding="utf-8").splitlines()[0])
    for line in (json.dumps(record | change), "{", "[]"):
        edit(few, 0, line)
        dataset = load(few)
        problem = dataset.problems[0]
        assert (problem.kind, problem.where) == ("malformed line", "captions.jsonl:1")
        assert problem.detail.startswith("not a record of a drawn scene: ")
        assert len(dataset.examples) == 17


# The small CNN beside them.


def cnn() -> torch.nn.Module:
    (own,) = load_config("scenes").encoder.cnns
    model = get_model(own.backbone, weights=None, **own.builder_args)
    weights = load_file(bundled("data/scenes_cnn.safetensors"))
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(key.startswith("classifier.") for key in missing)
    model.classifier = torch.nn.Identity()
    return model.eval()


@torch.inference_mode()
@pytest.mark.slow
def test_a_linear_layer_reads_unseen_combinations_off_the_cnn() -> None:
    images, answers = [], []
    examples = {e.image_id: e for e in load_dataset(ROOT).examples}
    names = [f"train-{n:04d}" for n in range(600)] + [f"test-{n:04d}" for n in range(200)]
    truths = dict(zip(examples, (scene for _, scene in bundled_scenes()), strict=True))
    for name in names:
        with Image.open(examples[name].image) as image:
            images.append(np.asarray(image.convert("RGB")))
        thing = truths[name].things[0]
        answers.append([KINDS.index(thing.kind), COLOURS.index(thing.colour)])
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    features = cnn()((pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)).double()
    kernel = features @ features.T
    for column in torch.tensor(answers).T:
        targets = torch.nn.functional.one_hot(column[:600]).double()
        ridge = 1e-3 * kernel.diagonal().mean() * torch.eye(600, dtype=torch.double)
        guesses = kernel[600:, :600] @ torch.linalg.solve(kernel[:600, :600] + ridge, targets)
        assert (guesses.argmax(1) == column[600:]).double().mean() > 0.97
