"""Drawn scenes: small images with a known set of true captions.

An image shows either one to four equal things, or two things of different kinds, one left of or
above the other. To draw the bundled data set again, run `python -m captioner.data.scenes FOLDER`;
with `--language ru` or `zh`, the captions are Russian or Chinese.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from captioner.data.dataset import Dataset, Options, Region
from captioner.data.formats.collect import Collector
from captioner.data.scenes import chinese, grammar, russian
from captioner.data.scenes.drawing import draw, masks
from captioner.data.scenes.grammar import Scene, Sentences, Thing, captions, is_true, parse_scene
from captioner.data.scenes.splits import scenes, split_combinations
from captioner.system.files import no_stream
from captioner.system.foreign import excerpt
from captioner.system.ownership import check
from captioner.system.text_files import read_lines

PICTURES = {"train": 2000, "dev": 200, "test": 200}
INDEX = "captions.jsonl"
# What is said of a scene, and the words that name a thing, by language.
LANGUAGES: dict[str, tuple[Sentences, Callable[[Thing], frozenset[str]]]] = {
    "en": (grammar.sentences, grammar.names),
    "ru": (russian.sentences, russian.names),
    "zh": (chinese.sentences, chinese.names),
}
LOOKS_FOR = f"a folder with drawn scenes in {INDEX} (python -m captioner.data.scenes FOLDER)"


def generate(folder: Path, seed: int = 0, language: str = "en") -> None:
    """Draw `captions.jsonl` and `images/`; seed 0 gives the bundled data set, to the pixel.

    The language is a key of `LANGUAGES`; the images are the same in each.

    Raises:
        ConfigError: if the folder holds other files.
    """
    check(folder, "scenes")
    (folder / "images").mkdir(parents=True, exist_ok=True)
    allowed = split_combinations(seed)
    say = LANGUAGES[language][0]
    lines = []
    for split, pictures in PICTURES.items():
        endless = scenes(allowed[split], random.Random(f"{seed}/{split}"))
        for number, scene in zip(range(pictures), endless, strict=False):
            image_id = f"{split}-{number:04d}"
            # With its own random stream, one image can be drawn again without the others.
            picture = draw(scene, random.Random(f"{seed}/{image_id}"))
            picture.save(folder / "images" / f"{image_id}.png", optimize=True)
            record = {
                "file_name": f"images/{image_id}.png",
                "split": split,
                "captions": captions(scene, say),
                "scene": asdict(scene),
            }
            record |= {"language": language} if language != "en" else {}
            lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    (folder / INDEX).write_text("".join(lines), encoding="utf-8", newline="\n")


def recognise(root: Path) -> bool:
    """Return whether the first line of a folder's index describes a drawn scene."""
    if not (root / INDEX).is_file():
        return False
    with open(root / INDEX, "rb", opener=no_stream) as file:
        return b'"scene"' in file.readline()


def load(root: Path, options: Options | None = None) -> Dataset:  # noqa: ARG001
    """Read a folder of `generate`; missing and damaged items are problems."""
    index = root / INDEX
    collector = Collector(root, "scenes", [root])
    collector.note_others([index])
    truths: dict[str, tuple[Scene, str]] = {}  # with the language of the captions
    for where, line in collector.lines(index, read_lines(index)):
        try:
            file, split, texts, scene, language = _parse(line)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            detail = f"not a record of a drawn scene: {excerpt(line)} ({excerpt(error)})"
            collector.problem("malformed line", where, detail)
            continue
        image_id = Path(file).stem
        entry = collector.add(image_id, file, split, where)
        if entry:
            truths[image_id] = scene, language
            for caption in texts:
                collector.caption(entry, caption, where)

    def judge(image_id: str, caption: str) -> bool:
        scene, language = truths[image_id]
        return is_true(scene, caption, LANGUAGES[language][0])

    dataset = collector.dataset(report_unnamed=True)
    images = {example.image_id: example.image for example in dataset.examples}

    def regions(image_id: str) -> list[Region]:
        scene, language = truths[image_id]
        things, places = scene.things, masks(images[image_id])
        if len(things) != len(places):  # another program wrote the image again
            return []
        return list(map(Region, map(LANGUAGES[language][1], things), places))

    return replace(dataset, judge=judge, regions=regions)


def _parse(line: str) -> tuple[str, str, list[object], Scene, str]:
    record = json.loads(line)
    file, split, texts = record["file_name"], record["split"], record["captions"]
    if not (isinstance(file, str) and isinstance(split, str) and isinstance(texts, list)):
        raise TypeError("file_name and split must be text, captions a list")
    language = record.get("language", "en")
    if language not in LANGUAGES:
        raise ValueError(f"language must be one of {', '.join(LANGUAGES)}")
    return file, split, texts, parse_scene(record["scene"]), language
