"""A vocabulary that covers too few words stops training, with advice."""

import csv

import pytest
import torch

from captioner.config import Config
from captioner.data.prepare import _better_count, open_encoder, prepare
from captioner.errors import ConfigError, DataError

import toys

CHINESE = ["一只红色的狗在草地上跑", "一只蓝色的猫在草地上坐", "一个男人在水里跳得很高"]
THAI = ["หมาสีแดงวิ่งบนหญ้าสีเขียว", "แมวสีน้ำเงินนั่งบนพื้นหญ้า", "ผู้ชายกระโดดลงไปในน้ำ"]
JAPANESE = ["赤い犬が草の上を走っています", "青い猫が草の上に座っています"]
SEGMENTED = ["一只 红色 的 狗 在 草地 上 跑", "一只 蓝色 的 猫 在 草地 上 坐"]


def prepared(folder, monkeypatch, captions, min_count, dev=None):
    """Prepare a data set with one caption for each of its images, the last of which is dev."""
    monkeypatch.setenv("CAPTIONER_CACHE", str(folder / "cache"))
    tree = toys.config(folder).model_dump()
    tree["data"]["root"], tree["text"]["min_count"] = str(folder / "mine.csv"), min_count
    with (folder / "mine.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", "caption", "split"])
        for number, caption in enumerate([*captions, dev or captions[0]]):
            name = toys.draw(folder / f"{number}.png", "red", number).name
            table.writerow([name, caption, "train" if number < len(captions) else "dev"])
    config, said = Config.model_validate(tree), []
    return prepare(config, open_encoder(config, torch.device("cpu")), said.append), said


@pytest.mark.parametrize("min_count", [1, 5])
@pytest.mark.parametrize("captions", [CHINESE, THAI, JAPANESE])
def test_words_without_spaces_must_be_separated(tmp_path, monkeypatch, captions, min_count):
    dev = captions[0][1:]
    with pytest.raises(DataError, match=r"no spaces between words, as in.*word segmenter"):
        prepared(tmp_path, monkeypatch, captions, min_count, dev)


def test_separated_words_are_learnt(tmp_path, monkeypatch):
    found, said = prepared(tmp_path, monkeypatch, SEGMENTED, 1)
    assert "草地" in found.vocabulary
    assert not [line for line in said if "warning" in line]


@pytest.mark.parametrize(
    ("captions", "min_count"),
    [
        (["a red dog", "a blue cat", "one man sits"], 5),  # no word at all
        (["a red dog", "a blue cat", "a man sits"], 3),  # only "a"
    ],
)
def test_few_captions_get_the_advice_to_keep_rarer_words(
    tmp_path, monkeypatch, captions, min_count
):
    with pytest.raises(ConfigError) as caught:
        prepared(tmp_path, monkeypatch, captions, min_count)
    message = str(caught.value)
    assert message.startswith("text.min_count: the vocabulary covers ")
    assert message.endswith("--set text.min_count=1 covers 100%")
    assert "\n" not in message
    assert prepared(tmp_path, monkeypatch, captions, 1)


def test_captions_of_punctuation_are_no_captions(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"no images in split 'train'.* 3 empty caption"):
        prepared(tmp_path, monkeypatch, ["...", "!", ". ."], 1, "a dog")


def test_other_words_in_dev_are_a_warning(tmp_path, monkeypatch):
    captions = ["a red dog", "a blue cat"]
    _, said = prepared(tmp_path, monkeypatch, captions, 1, "zwei gelbe Enten")
    assert sum(line.startswith("warning: most words in dev") for line in said) == 1
    assert "".join(said).count("0.0% in dev") == 1


def test_the_advice_is_the_largest_count_that_covers_nearly_all():
    captions = [["a"] * 60, ["b"] * 35, ["c"] * 5]
    assert _better_count(captions, 90) == "--set text.min_count=35 covers 95%"
    assert _better_count([["a", "b"], ["c"]], 5) == "--set text.min_count=1 covers 100%"
