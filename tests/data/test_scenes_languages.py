"""The drawn scenes in Russian and Chinese: the same pictures, other sentences, the same truth."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from captioner.data import scenes
from captioner.data.load import load_dataset
from captioner.data.scenes import LANGUAGES, captions, generate, is_true
from captioner.data.scenes.grammar import COLOURS, KINDS, RELATIONS, SIZES, Scene, Thing
from captioner.text import UNICODE

OTHERS = sorted(LANGUAGES.keys() - {"en"})
GROUPS = [
    Scene((Thing(*look),), count) for *look, count in product(KINDS, COLOURS, SIZES, range(1, 5))
]
things = st.builds(Thing, *map(st.sampled_from, (KINDS, COLOURS, SIZES)))
pairs = st.builds(
    lambda a, b, relation: Scene((a, b), relation=relation),
    things,
    things,
    st.sampled_from(tuple(RELATIONS)),
).filter(lambda scene: scene.things[0].kind != scene.things[1].kind)
any_scene = st.sampled_from(GROUPS) | pairs
unhurried = settings(derandomize=True)

STAR, HEART = Thing("star", "red", "small"), Thing("heart", "blue", "large")
CROSS = Thing("cross", "pink", "large")
KNOWN = {
    ("ru", Scene((STAR,), 3)): (
        "три маленькие красные звезды",
        "три маленькие красные звезды на однотонном фоне",
        "здесь нарисованы три маленькие красные звезды",
        "на картинке три красные звезды, и все они маленькие",
        "мы видим три красные звезды маленького размера",
    ),
    ("ru", Scene((HEART,))): (
        "большое синее сердце",
        "большое синее сердце на однотонном фоне",
        "здесь нарисовано большое синее сердце",
        "на картинке синее сердце, и оно большое",
        "мы видим синее сердце большого размера",
    ),
    ("ru", Scene((CROSS,), 2)): (
        "два больших розовых креста",
        "два больших розовых креста на однотонном фоне",
        "здесь нарисованы два больших розовых креста",
        "на картинке два розовых креста, и все они большие",
        "мы видим два розовых креста большого размера",
    ),
    ("ru", Scene((STAR, HEART), relation="above")): (
        "маленькая красная звезда над большим синим сердцем",
        "маленькая красная звезда, а под ней большое синее сердце",
        "здесь нарисована маленькая красная звезда над большим синим сердцем",
        "на картинке большое синее сердце под маленькой красной звездой",
        "мы видим большое синее сердце, а над ним маленькую красную звезду",
    ),
    ("ru", Scene((HEART, STAR), relation="left of")): (
        "большое синее сердце слева от маленькой красной звезды",
        "большое синее сердце, а справа от него маленькая красная звезда",
        "здесь нарисовано большое синее сердце слева от маленькой красной звезды",
        "на картинке маленькая красная звезда справа от большого синего сердца",
        "мы видим маленькую красную звезду, а слева от неё большое синее сердце",
    ),
    ("zh", Scene((STAR,), 3)): (
        "三个小的红色星形",
        "三个小的红色星形，背景是单色的",
        "这里有三个小的红色星形",
        "图片中是三个红色星形，它们都很小",
        "我们看到三个小尺寸的红色星形",
    ),
    ("zh", Scene((STAR, HEART), relation="above")): (
        "一个小的红色星形在一个大的蓝色心形的上面",
        "一个小的红色星形，它的下面有一个大的蓝色心形",
        "这里有一个小的红色星形在一个大的蓝色心形的上面",
        "图片中是一个大的蓝色心形在一个小的红色星形的下面",
        "我们看到一个大的蓝色心形，它的上面有一个小的红色星形",
    ),
}


@pytest.mark.parametrize(("language", "scene"), KNOWN, ids=str)
def test_known_captions(language: str, scene: Scene) -> None:
    assert captions(scene, LANGUAGES[language][0]) == KNOWN[language, scene]


@pytest.mark.parametrize("language", OTHERS)
@unhurried
@given(scene=any_scene)
def test_captions_differ_and_are_true_as_a_model_writes_them(language: str, scene: Scene) -> None:
    say = LANGUAGES[language][0]
    said = captions(scene, say)
    assert len(set(said)) == 5
    for caption in said:
        written = UNICODE.detokenize(UNICODE.tokenize(caption))
        assert is_true(scene, caption, say)
        assert is_true(scene, written, say)
        assert re.sub("[,，]", "", caption) == written
        assert not is_true(scene, written[1:], say)


@pytest.mark.parametrize("language", OTHERS)
@unhurried
@given(one=any_scene, other=any_scene)
def test_nothing_said_of_one_scene_is_true_of_another(
    language: str, one: Scene, other: Scene
) -> None:
    assume(one != other)
    say = LANGUAGES[language][0]
    assert not any(is_true(other, said, say) for row in say(one) for said in row)


@pytest.mark.parametrize("language", OTHERS)
def test_no_sentence_fits_two_groups(language: str) -> None:
    say = LANGUAGES[language][0]
    said = [sentence for scene in GROUPS for row in say(scene) for sentence in row]
    assert len(set(said)) == len(said) == 16 * len(GROUPS)


@unhurried
@given(scene=any_scene)
def test_russian_words_agree(scene: Scene) -> None:
    """An adjective ends as its noun's gender, case and number demand, wherever it stands."""
    phrase = re.compile(
        r"(?:(маленьк|больш)(\w+) )?(красн|жёлт|зелён|син|фиолетов|розов|чёрн)(\w+) "
        r"(круг|квадрат|треугольник|крест|звезд|сердц)(\w*)"
    )
    for sentence in (said for row in LANGUAGES["ru"][0](scene) for said in row):
        found = phrase.findall(sentence)
        assert len(found) == len(scene.things)
        for stem, size, colour_stem, colour, noun, ending in found:
            gender = {"звезд": "f", "сердц": "n"}.get(noun, "m")
            many = re.search(r"\b(два|две|три|четыре)\b", sentence)
            case = ("few" if many else "one") + gender + ending
            hard = {
                "onem": "ый", "onema": "ого", "onemом": "ым", "onefа": "ая", "onefу": "ую",
                "onefы": "ой", "onefой": "ой", "onenе": "ое", "onenа": "ого", "onenем": "ым",
                "onemа": "ого", "fewmа": "ых", "fewfы": "ые", "fewnа": "ых",
            }[case]  # fmt: skip
            soft = {
                "ый": "ий", "ого": "его", "ым": "им", "ой": "ей", "ая": "яя", "ую": "юю",
                "ое": "ее", "ые": "ие", "ых": "их",
            }[hard]  # fmt: skip
            assert colour == (soft if colour_stem == "син" else hard)
            velar = {"ый": "ой" if stem == "больш" else "ий", "ым": "им", "ые": "ие", "ых": "их"}
            assert size in ("", velar.get(hard, hard))


@pytest.mark.parametrize("language", OTHERS)
def test_a_folder_knows_its_language(
    language: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(scenes, "PICTURES", {"train": 6, "dev": 6, "test": 6})
    generate(tmp_path / "en")
    generate(tmp_path / "other", language=language)
    for image in (tmp_path / "en" / "images").iterdir():
        other = tmp_path / "other" / "images" / image.name
        assert other.read_bytes() == image.read_bytes()
    dataset = load_dataset(tmp_path / "other")
    assert dataset.format == "scenes"
    assert dataset.judge is not None and dataset.regions is not None
    english = {each.image_id: each for each in load_dataset(tmp_path / "en").examples}
    for example in dataset.examples:
        assert all(dataset.judge(example.image_id, caption) for caption in example.captions)
        assert not dataset.judge(example.image_id, english[example.image_id].captions[0])
        words = {word for caption in example.captions for word in UNICODE.tokenize(caption)}
        assert all(region.words & words for region in dataset.regions(example.image_id))


def test_an_unknown_language_is_a_malformed_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(scenes, "PICTURES", {"train": 6, "dev": 6, "test": 6})
    generate(tmp_path / "few")
    index = tmp_path / "few" / "captions.jsonl"
    lines = index.read_text(encoding="utf-8").splitlines()
    lines[3] = json.dumps(json.loads(lines[3]) | {"language": "xx"})
    index.write_text("\n".join(lines), encoding="utf-8")
    problems = load_dataset(tmp_path / "few").problems
    assert problems[0].kind == "malformed line"
    assert "language must be one of en, ru, zh" in problems[0].detail
