"""Draw the pictures of docs/learn/captions.md: how the bundled model captions one drawn scene.

    python scripts/draw_walk.py [FOLDER]

Takes a few seconds and writes SVG files for light and dark pages to FOLDER, docs/learn/walk if none
is given:

- `eye`: the scene, the CNN's last feature map, the features, the initial hidden state
- `words`: the most probable next words at each step
- `beam`: what the beam keeps and cuts
- `end`: the probability of the end token after each word, of three sentences
- `state`: the hidden state through time, and the image's influence on each word
"""

from __future__ import annotations

import base64
import math
import sys
from io import BytesIO
from pathlib import Path

import torch
from pictures import MONO, ROOT, THEMES, image, scene, svg, text
from PIL import Image, ImageColor
from torch import Tensor

from captioner import Captioner, Trace
from captioner.encoder.backbones import build_backbone, remove_head

FOLDER = ROOT / "docs" / "learn" / "walk"
MODEL = ROOT / "models" / "scenes"
INDEX = 80  # of the test image: greedy search writes another caption than the beam
SETTINGS = {"beam_size": 3, "length_penalty": 0.0, "precision": "fp32"}
SENTENCES = ("two small blue hearts", "there are two small blue hearts")
BELOW_ZERO = {"light": "#c2410c", "dark": "#fb923c"}
MAPS, UNITS, WORDS = 12, 24, 5
MIDDLE, RIGHT = 'text-anchor="middle"', 'text-anchor="end"'
BOLD = 'font-weight="bold"'
Color = dict[str, str]


def panel(width: float, height: float, color: Color) -> str:
    """Return the background of a picture."""
    return f'<rect width="{width}" height="{height}" rx="10" fill="{color["page"]}"/>'


def cells(numbers: Tensor, x: float, y: float, side: float, color: Color) -> list[str]:
    """Draw a matrix of numbers as squares: one colour above zero, one below, faint near zero."""
    colors = [ImageColor.getrgb(color[name]) for name in ("accent", "below")]
    solid = (255 * numbers.abs() / numbers.abs().max()).round().int()
    pixels = torch.where((numbers > 0)[..., None], *map(torch.tensor, colors))
    rgba = torch.cat((pixels, solid[..., None]), dim=2).to(torch.uint8)
    file = BytesIO()
    Image.fromarray(rgba.numpy(), "RGBA").save(file, "png", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    height, width = (side * length for length in numbers.shape)
    place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
    return [
        f'<image {place} style="image-rendering:pixelated" href="data:image/png;base64,{data}"/>',
        f'<rect {place} fill="none" stroke="{color["line"]}"/>',
    ]


def arrow(x: float, y: float, words: str, color: Color) -> list[str]:
    """Draw an arrow to the right with words above it."""
    return [
        f'<path d="M{x} {y}h42m-7-5l7 5l-7 5" fill="none" stroke="{color["quiet"]}" '
        f'stroke-width="1.5"/>',
        *(
            text(x + 21, y - 26 + 14 * row, line, color["quiet"], size=11, more=MIDDLE)
            for row, line in enumerate(words.split("\n"))
        ),
    ]


def eye(color: Color, maps: Tensor, features: Tensor, h: Tensor) -> str:
    """Draw how the CNN turns the scene into features, and the features become the first state."""
    width, height, top = 820, 214, 40
    body = [panel(width, height, color), image(scene(INDEX), 16, top, 128, color)]
    body += arrow(154, top + 64, "frozen\nCNN", color)
    for place, number in enumerate(different(maps)):
        x, y = 208 + 44 * (place % 4), top + 44 * (place // 4)
        body += cells(maps[number], x, y, 10, color)
    body += arrow(394, top + 64, "mean of\nplaces", color)
    body += cells(features.view(32, 40), 448, top, 4, color)
    body += arrow(618, top + 64, "linear,\ntanh", color)
    body += cells(h.view(16, 16), 672, top, 8, color)
    for x, name, size in (
        (80, "image", "3 x 64 x 64"),
        (291, f"{MAPS} of {len(maps):,} maps", f"each {maps.shape[1]} x {maps.shape[2]}"),
        (528, "features", f"{len(features):,} numbers"),
        (736, "initial hidden state", f"{len(h)} numbers"),
    ):
        body.append(text(x, 190, name, color["text"], size=12, more=MIDDLE))
        body.append(text(x, 205, size, color["quiet"], size=11, more=MIDDLE))
    return svg(width, height, "from image to initial hidden state", body)


def different(maps: Tensor) -> list[int]:
    """Return the numbers of maps that differ much between places and from one another."""
    rows = maps.flatten(1)
    candidates = rows.var(1).topk(20 * MAPS).indices
    shapes = torch.nn.functional.normalize(rows[candidates] - rows[candidates].mean(1)[:, None])
    alike = (shapes @ shapes.T).abs()
    chosen = [0]
    while len(chosen) < MAPS:
        chosen.append(int(alike[chosen].amax(0).argmin()))
    return sorted(candidates[chosen].tolist())


def words(color: Color, trace: Trace) -> str:
    """Draw the most probable next words at each step; the chosen caption's word is marked."""
    spelled = trace.captions[0].words
    across, bar, left, down = 104, 84, 150, 46 + 34 * WORDS
    width, height = left + across * len(spelled), down + 8
    body = [panel(width, height, color), image(scene(INDEX), 14, 46, 112, color)]
    for step, word in enumerate(spelled):
        x = left + across * step
        body.append(text(x, 26, f"step {step + 1}", color["quiet"], size=12))
        rows = sorted([(word.text, word.log_prob), *word.alternatives], key=lambda row: -row[1])
        for rank, (written, log_prob) in enumerate(rows[:WORDS]):
            y, probability, own = 46 + 34 * rank, math.exp(log_prob), written == word.text
            fill, weight = color["accent" if own else "soft"], BOLD if own else ""
            number, long = f"{probability:.3f}", f"{max(1.5, bar * probability):.1f}"
            body.append(text(x, y + 11, shown(written), color["text"], size=12, more=weight))
            body.append(text(x + bar, y + 11, number, color["quiet"], size=11, more=RIGHT))
            body.append(
                f'<rect x="{x}" y="{y + 16}" width="{long}" height="6" rx="2" fill="{fill}"/>'
            )
    return svg(width, height, "probabilities of the next word", body)


def beam(color: Color, trace: Trace) -> str:
    """Draw the beam as a tree over time; the chosen caption is marked, what was cut is faint."""
    across, down, left, top, wide = 122, 46, 96, 50, 96
    steps, chosen = trace.beam.steps, set(trace.beam.chosen)
    width = left + across * len(steps) + 6
    height = top + down * max(map(len, steps)) + 4
    places = {0: (left - 54.0, top + 14.0)}
    for step, candidates in enumerate(steps):
        for row, each in enumerate(candidates):
            places[each.id] = (left + across * step + 6, top + down * row + 14)
    lines, nodes = [], []
    for each in (candidate for step in steps for candidate in step):
        (x, y), (from_x, from_y) = places[each.id], places[each.parent]
        start = from_x + (wide if each.parent else 24)
        marked = each.id in chosen
        stroke = color["accent" if marked else "quiet" if each.kept else "line"]
        dash = "" if each.kept else 'stroke-dasharray="3 3"'
        lines.append(
            (
                marked,
                f'<path d="M{start} {from_y}C{start + 16} {from_y} {x - 16} {y} {x} {y}" '
                f'fill="none" stroke="{stroke}" stroke-width="{2.5 if marked else 1}" {dash}/>',
            )
        )
        fill = color["soft" if marked else "box" if each.kept else "page"]
        nodes.append(
            f'<rect x="{x}" y="{y - 17}" width="{wide}" height="34" fill="{fill}" '
            f'stroke="{stroke}" rx="{17 if each.finished else 5}" {dash}/>'
        )
        ink = color["text" if each.kept else "quiet"]
        more = f"{MIDDLE} {BOLD if marked else ''}"
        nodes.append(text(x + wide / 2, y - 3, shown(each.text), ink, size=12, more=more))
        numbers = f"{math.exp(each.log_prob):.3f}   {each.score:.2f}"
        more = f'{MIDDLE} font-family="{MONO}" xml:space="preserve"'
        nodes.append(text(x + wide / 2, y + 11, numbers, color["quiet"], size=10, more=more))
    heads = [
        text(
            left + across * step + 6 + wide / 2, 22, f"step {step + 1}", color["quiet"], more=MIDDLE
        )
        for step in range(len(steps))
    ]
    start = text(places[0][0] - 3, places[0][1] + 4, "start", color["text"], size=12, more=MIDDLE)
    body = [
        panel(width, height, color),
        *heads,
        *(line for _, line in sorted(lines)),
        start,
        *nodes,
    ]
    return svg(width, height, "what the beam keeps and cuts", body)


def end(color: Color, sentences: dict[str, list[float]]) -> str:
    """Draw the probability that a sentence ends after each of its words."""
    across, left, down = 92, 16, 84
    longest = max(len(sentence.split()) for sentence in sentences)
    width, height = left + across * (longest + 1), 16 + down * len(sentences)
    body = [panel(width, height, color)]
    for row, (sentence, probabilities) in enumerate(sentences.items()):
        top = 18 + down * row
        for place, (word, probability) in enumerate(
            zip(["start", *sentence.split()], probabilities, strict=True)
        ):
            x = left + across * place
            ink = color["text"] if place else color["quiet"]
            body.append(text(x, top + 12, word, ink))
            body.append(
                f'<rect x="{x}" y="{top + 22}" width="74" height="8" rx="2" fill="{color["box"]}"/>'
            )
            long = f"{max(1.5, 74 * probability):.1f}"
            fill = color["accent"]
            body.append(
                f'<rect x="{x}" y="{top + 22}" width="{long}" height="8" rx="2" fill="{fill}"/>'
            )
            number = f"{probability:.3f}"
            body.append(text(x, top + 46, number, color["quiet"], size=11))
    return svg(width, height, "probability of the end token after each word", body)


def state(color: Color, trace: Trace) -> str:
    """Draw units by time, the norm of the state, and the image's influence on each word."""
    across, side, left = 84, 12, 132
    written = [shown(word.text) for word in trace.captions[0].words]
    values = torch.tensor(trace.state.values)
    width, tall = left + across * len(values) + 12, side * values.shape[1]
    norms, bars = 58 + tall + 26, 58 + tall + 110
    height = bars + 84
    body = [panel(width, height, color)]
    for time, row in enumerate(values):
        x = left + across * time
        name = "image" if time == 0 else written[time - 1]
        body.append(text(x + 36, 22, f"H{time}", color["quiet"], size=12, more=MIDDLE))
        body.append(text(x + 36, 40, name, color["text"], size=12, more=f"{MIDDLE} {BOLD}"))
        largest = float(values.abs().max())
        for unit, value in enumerate(row.tolist()):
            fill = color["accent" if value > 0 else "below"]
            body.append(
                f'<rect x="{x}" y="{52 + side * unit}" width="72" height="{side - 1}" '
                f'fill="{fill}" fill-opacity="{abs(value) / largest:.2f}"/>'
            )
        body += column(x, norms, trace.state.norms[time], max(trace.state.norms), "soft", color)
        if time:
            influence = trace.state.influence
            body += column(x, bars, influence[time - 1], max(influence), "accent", color)
    for y, lines in (
        (52 + tall / 2, f"{values.shape[1]} units\nthat move most"),
        (norms + 34, "norm of\nthe state"),
        (bars + 34, "influence\nof the image"),
    ):
        for row, line in enumerate(lines.split("\n")):
            body.append(text(left - 16, y + 15 * row, line, color["quiet"], size=12, more=RIGHT))
    return svg(width, height, "the hidden state through time", body)


def column(x: float, y: float, value: float, most: float, fill: str, color: Color) -> list[str]:
    """Draw a number as a column with its value above it."""
    high = 44 * value / most
    number = f"{value:.3f}" if most < 2 else f"{value:.1f}"
    return [
        f'<rect x="{x + 16}" y="{y + 58 - high:.1f}" width="40" height="{max(1, high):.1f}" '
        f'fill="{color[fill]}"/>',
        text(x + 36, y + 53 - high, number, color["quiet"], size=11, more=MIDDLE),
    ]


def shown(word: str) -> str:
    """Return a word as the pictures show it."""
    return "(end)" if word == "<eos>" else word


def look(captioner: Captioner, picture: Image.Image) -> tuple[Tensor, Tensor, Tensor]:
    """Return the last feature map, (C, S, S), its mean, (C,), and the initial state h, (H,)."""
    [cnn] = captioner.encoder.cnns
    network = build_backbone(cnn.spec.backbone, cnn.spec.builder_args)
    remove_head(network)
    network.load_state_dict(cnn.state)
    network.eval()
    with torch.no_grad():
        pixels = captioner.encoder.preprocess.pixels(picture)[None]
        maps = network.features(cnn.spec.preprocess.normalize(pixels))
        features = captioner.encode([picture]).clone()
        assert torch.allclose(maps.mean((2, 3)), features, atol=0.05)
        hidden = captioner.single_decoder("drawn").init_hidden(features)
    return maps[0], features[0], hidden[0, 0]


def ends(captioner: Captioner, picture: Image.Image, sentence: str) -> list[float]:
    """Return the probability of the end token before each word of a sentence and after it."""
    decoder, vocabulary = captioner.single_decoder("drawn"), captioner.vocabulary
    ids = [vocabulary.bos_id, *vocabulary.encode(sentence.split())]
    with torch.no_grad():
        hidden = decoder.init_hidden(captioner.encode([picture]).clone())
        logits, _ = decoder(torch.tensor([ids]), hidden)
    found: list[float] = logits[0].softmax(1)[:, vocabulary.eos_id].tolist()
    return found


def main(folder: Path) -> None:
    """Trace the caption of the scene and write every picture in both themes."""
    captioner = Captioner.load(MODEL, "cpu")
    with Image.open(ROOT / scene(INDEX)) as opened:
        picture = opened.convert("RGB")
    trace = captioner.trace(picture, units=UNITS, alternatives=WORDS, **SETTINGS)
    sentences = {sentence: ends(captioner, picture, sentence) for sentence in SENTENCES}
    seen = look(captioner, picture)
    folder.mkdir(parents=True, exist_ok=True)
    for theme, colors in THEMES.items():
        color = colors | {"below": BELOW_ZERO[theme]}
        for title, drawn in (
            ("eye", eye(color, *seen)),
            ("words", words(color, trace)),
            ("beam", beam(color, trace)),
            ("end", end(color, sentences)),
            ("state", state(color, trace)),
        ):
            (folder / f"{title}-{theme}.svg").write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else FOLDER)
