"""How well maps show where a word came from, and how long one takes.

    python benchmarks/explaining.py --scenes MODEL --scenes MODEL --photos MODEL --images 40

- pointing: on the 200 test scenes, how often the strongest place of a word's map lies on a thing
  that the word names. Beside it chance, the central place, and the image's largest thing.
- deletion and insertion: on dev photographs, places are covered, or uncovered in a grey picture,
  in the order of a word's map, 7 of 49 at a time. The number is the word's mean probability on the
  way. A good map has a low deletion and a high insertion. Function words do not count.
- time: the first explanation after the model is loaded, its HTML and PNG files, and the median of
  10 further ones, in seconds by the clock and of the processor. Target: 1.5 seconds by the clock
  for the first one with its HTML file. And what the server saves: maps and trace of pictures that
  are decoded, encoded and searched once, against each anew.

All maps are compared on 7 x 7 places. Sources: Zhang et al. (2016), "Top-down Neural Attention by
Excitation Backprop"; Petsiuk et al. (2018), "RISE: Randomized Input Sampling for Explanation of
Black-box Models".
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from time import perf_counter, process_time

import torch
from common import check, describe_machine
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from captioner.captioner import Captioner
from captioner.data.dataset import Dataset
from captioner.data.prepare import open_dataset
from captioner.evaluation.evaluate import things_of
from captioner.explaining.output import write_output
from captioner.explanation.explained import Method, token_ids_of
from captioner.explanation.gradient import END_OF_LINE, gradient_maps
from captioner.explanation.occlusion import occlusion_maps
from captioner.explanation.teacher_forcing import log_probs_of_words, members_of
from captioner.images.decode import read_image
from captioner.metrics import pointing
from captioner.metrics.word_use import FUNCTION_WORDS
from captioner.model_config import model_folder
from captioner.run_dir import config_of_model
from captioner.text import Caption, Word, WordAttention

PLACES = 7
STEP = 7  # places covered at a time
Maps = dict[str, Tensor]  # of each method, (T, PLACES, PLACES)


def data_of(model: Path, folder: str | None) -> Dataset:
    """Return the data set of a model."""
    return open_dataset(config_of_model(model_folder(model), folder).data)


def explained(captioner: Captioner, path: Path) -> tuple[Tensor, Caption, Tensor, Maps]:
    """Return what the CNN sees, the caption, its token ids, and its maps by every method."""
    pixels = captioner.encoder.preprocess.pixels(read_image(path))[None]
    looks = captioner.map_size() > 0
    [[caption]] = captioner.search(captioner.encoder.see(pixels), words=True, maps=looks)
    token_ids = token_ids_of(caption, captioner.vocabulary)
    parts = captioner.encoder, captioner.decoder, pixels, token_ids
    maps = {
        "gradient along the line": gradient_maps(*parts),
        "gradient at the image": gradient_maps(*parts, END_OF_LINE),
        "occlusion": occlusion_maps(*parts),
    }
    if looks:
        places = [word.attention.places for word in caption.words if word.attention]
        maps["attention"] = torch.tensor(places)
    rows = torch.arange(PLACES) - PLACES // 2
    distances = (rows[:, None].square() + rows.square()).sqrt()
    maps["the centre"] = -distances.expand(len(token_ids), -1, -1)
    return pixels, caption, token_ids, {name: _alike(each) for name, each in maps.items()}


def _alike(maps: Tensor) -> Tensor:
    return functional.interpolate(maps[None], (PLACES, PLACES), mode="bilinear")[0]


def point(model: Path, count: int | None) -> None:
    """Print the pointing accuracy of every method on test scenes."""
    captioner, dataset = Captioner.load(model), data_of(model, None)
    assert dataset.regions, "not drawn scenes"
    rows = defaultdict(list)
    for example in tqdm(dataset.split("test")[:count], disable=None):
        _, caption, _, maps = explained(captioner, example.image)
        regions = dataset.regions(example.image_id)
        things = things_of(regions, captioner.encoder.preprocess, PLACES)
        for name, each in maps.items():
            words = [
                Word(word.text, 0.0, (), WordAttention(tuple(map(tuple, places.tolist())), 0.0))
                for word, places in zip(caption.words, each, strict=True)
            ]
            rows[name].append((words, things))
    print(f"\npointing, {model}")
    print(
        "| method | all words | words | in images of different things | words |\n"
        "|---|---|---|---|---|"
    )
    for name, found in rows.items():
        every, different = pointing(found), pointing(row for row in found if len(row[1]) > 1)
        assert every and different
        cells = (
            f"{every.accuracy:.3f} | {every.words} | {different.accuracy:.3f} | {different.words}"
        )
        print(f"| {name} | {cells} |")
    print(f"| chance | {every.chance:.3f} | | {different.chance:.3f} | |")
    print(f"| the largest thing | {every.largest_thing:.3f} | | {different.largest_thing:.3f} | |")


def cover(model: Path, folder: str | None, count: int) -> None:
    """Print the deletion and insertion of every method on dev photographs."""
    captioner, dataset = Captioner.load(model), data_of(model, folder)
    examples = dataset.split("dev")
    curves = defaultdict(list)
    words = 0
    for example in tqdm(examples[:: len(examples) // count][:count], disable=None):
        pixels, caption, token_ids, maps = explained(captioner, example.image)
        random = torch.rand(PLACES, PLACES, generator=torch.Generator().manual_seed(words))
        maps["at random"] = random.expand(len(token_ids), -1, -1)
        chosen = [
            place
            for place, word in enumerate(caption.words)
            if word.text not in FUNCTION_WORDS and word.text != "<eos>"
        ]
        words += len(chosen)
        for name, each in maps.items():
            curves[name] += curves_of(captioner, pixels, token_ids, each, chosen)
    print(f"\ndeletion and insertion, {model}, {count} photographs, {words} words")
    print("| method | deletion | insertion | difference |\n|---|---|---|---|")
    for name, found in curves.items():
        deletion, insertion = torch.tensor(found).mean(0).tolist()
        print(f"| {name} | {deletion:.3f} | {insertion:.3f} | {insertion - deletion:.3f} |")


@torch.inference_mode()
def curves_of(
    captioner: Captioner, pixels: Tensor, token_ids: Tensor, maps: Tensor, chosen: list[int]
) -> list[tuple[float, float]]:
    """Return the mean probability of chosen words while places disappear, and while they appear."""
    side = pixels.shape[2]
    grey = pixels.float().mean((2, 3), keepdim=True).round().to(pixels.dtype).expand_as(pixels)
    steps = range(STEP, PLACES**2, STEP)
    pictures = [pixels, grey]
    for place in chosen:
        ranks = maps[place].flatten().argsort(descending=True).argsort()
        ranks = ranks.view(1, 1, PLACES, PLACES).float()
        ranks = functional.interpolate(ranks, (side, side))  # nearest: whole places
        pictures += [torch.where(ranks < k, grey, pixels) for k in steps]
        pictures += [torch.where(ranks < k, pixels, grey) for k in steps]
    features = captioner.encoder.see(torch.cat(pictures))
    found = log_probs_of_words(members_of(captioner.decoder, features), token_ids).exp()
    rows = found[2:].view(len(chosen), 2, len(steps), -1)
    curves = []
    for row, place in enumerate(chosen):
        deletion, insertion = rows[row, :, :, place]
        whole, empty = found[:2, place].split(1)
        curves.append(
            (
                torch.trapezoid(torch.cat((whole, deletion, empty))).item() / (len(steps) + 1),
                torch.trapezoid(torch.cat((empty, insertion, whole))).item() / (len(steps) + 1),
            )
        )
    return curves


def measure(model: Path, folder: str | None) -> bool:
    """Print how long explanations take; return whether the target is met."""
    paths = [example.image for example in data_of(model, folder).split("dev")[:11]]
    captioner = Captioner.load(model)
    preprocess = captioner.encoder.preprocess
    with tempfile.TemporaryDirectory() as name:
        clock, processor = perf_counter(), process_time()
        found = captioner.explain(paths[0])
        parts, options = (found, preprocess, str(paths[0]), [model]), captioner.settings()
        write_output(*parts, Path(name) / "maps.html", captioner.trace(paths[0]), options)
        first, worked = perf_counter() - clock, process_time() - processor
        write_output(*parts, Path(name) / "maps.png", None, options)
        picture = perf_counter() - clock - first
    print(f"\ntime, {model}, {torch.get_num_threads()} threads")
    for method in ("gradient", "occlusion"):
        pairs = [_seconds(captioner, path, method) for path in paths[1:]]
        clocks, processors = map(statistics.median, zip(*pairs, strict=True))
        print(f"{method}, median of 10: {clocks:.2f} s, processor {processors:.2f} s")
    print(f"first explanation with its HTML file: {first:.2f} s, processor {worked:.2f} s")
    print(f"PNG file: {picture:.2f} s more")
    compare(captioner, paths[1:])
    return check("first explanation with its HTML file, seconds", first, at_most=1.5)


def compare(captioner: Captioner, paths: list[Path]) -> None:
    """Print the time of caption, maps and trace from one encoding, and of each from the file."""

    def anew(path: Path) -> None:
        [[caption]] = captioner.search(captioner.encode(path), words=True)
        captioner.explain(path, caption)
        captioner.trace(path)

    def once(path: Path) -> None:
        pixels = captioner.encoder.preprocess.pixels(read_image(path))
        features = captioner.encoder.see(pixels[None])
        trace = captioner.trace_features(features)
        captioner.map_words(pixels, features, trace.captions[0])

    seconds: dict[str, list[float]] = defaultdict(list)
    for path in paths:
        for way in (anew, once):
            start = process_time()
            way(path)
            seconds[way.__name__].append(process_time() - start)
    first, second = (statistics.median(each) for each in seconds.values())
    print(
        f"caption, map and trace, processor: {first:.3f} s with each anew, {second:.3f} s from "
        f"one encoding and one search, ratio {second / first:.2f}"
    )


def _seconds(captioner: Captioner, path: Path, method: Method) -> tuple[float, float]:
    clock, processor = perf_counter(), process_time()
    captioner.explain(path, method=method)
    return perf_counter() - clock, process_time() - processor


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--scenes", type=Path, action="append", default=[], help="model; repeat")
    parser.add_argument("--photos", type=Path, action="append", default=[], help="model; repeat")
    parser.add_argument("--data", help="photographs, if they have moved")
    parser.add_argument("--images", type=int, default=40, help="photographs; 0: only the time")
    given = parser.parse_args()
    print(describe_machine())
    met = True
    for model in given.photos:
        met &= measure(model, given.data)
    for model in given.scenes:
        point(model, None)
    for model in given.photos if given.images else []:
        cover(model, given.data, given.images)
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
