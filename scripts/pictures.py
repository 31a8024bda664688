"""Draw the pictures of README and docs from real output.

    python scripts/pictures.py [RUN]

RUN is a run of `captioner train` on the bundled scenes; without it, the script trains one in about
two minutes. The script runs the commands of the README and writes SVG files for light and dark
pages to docs/pictures:

- `photos`: three pictures, and what the bundled model writes about them
- `session`: a terminal session, and three test images with their captions
- `follows`: the log-likelihood of four captions given each of four images
"""

from __future__ import annotations

import base64
import shlex
import shutil
import subprocess
import sys
import tempfile
from html import escape
from pathlib import Path

import torch
from PIL import Image

from captioner import Captioner

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "pictures"
SCENES = Path("data/scenes/images")
PICTURES = tuple(Path("data/pictures") / f"{name}.jpg" for name in ("beach", "dog", "skier"))
THEMES = {
    "light": {
        "page": "#ffffff",
        "box": "#f6f8fa",
        "line": "#d0d7de",
        "text": "#1f2328",
        "quiet": "#59636e",
        "accent": "#3f51b5",
        "soft": "#c5cae9",
    },
    "dark": {
        "page": "#0d1117",
        "box": "#161b22",
        "line": "#3d444d",
        "text": "#e6edf3",
        "quiet": "#9198a1",
        "accent": "#9fa8da",
        "soft": "#303a6b",
    },
}
MONO = "ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace"
SANS = "system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif"
SHOWN = (0, 1, 7)  # test images with their captions
CONTRASTED = (0, 1, 7, 8)
Color = dict[str, str]


def run(command: str, folder: Path) -> list[str]:
    """Run a command of captioner; return the lines of its stdout."""
    words = [sys.executable, "-m", *shlex.split(command)]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def text(x: float, y: float, words: str, fill: str, *, size: float = 13, more: str = "") -> str:
    """Return one line of text."""
    return f'<text x="{x}" y="{y}" fill="{fill}" font-size="{size}" {more}>{escape(words)}</text>'


def svg(width: float, height: float, label: str, body: list[str]) -> str:
    """Return a whole SVG file."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="{escape(label)}" font-family="{SANS}">'
        + "\n".join(body)
        + "</svg>\n"
    )


def image(path: Path, x: float, y: float, width: float, color: Color) -> str:
    """Return an image element with the file's data embedded."""
    data = base64.b64encode((ROOT / path).read_bytes()).decode()
    kind = "png" if path.suffix == ".png" else "jpeg"
    place = f'x="{x}" y="{y}" width="{width}" height="{height_of(path, width)}"'
    return (
        f'<image {place} href="data:image/{kind};base64,{data}"/>'
        f'<rect {place} fill="none" stroke="{color["line"]}"/>'
    )


def height_of(path: Path, width: float) -> float:
    """Return the height of a picture drawn at this width."""
    with Image.open(ROOT / path) as picture:
        return round(width * picture.height / picture.width)


def scene(index: int) -> Path:
    """Return the path of a test image."""
    return SCENES / f"test-{index:04d}.png"


def session(
    color: Color, captions: dict[Path, str], lines: list[tuple[str, str]], side: int = 128
) -> str:
    """Draw the terminal and the captioned images below it, `side` wide."""
    width, step, top = 720, 20, 52
    inner = top + step * len(lines)
    tallest = max(height_of(path, side) for path in captions)
    height = inner + 24 + tallest + 58
    body = [
        f'<rect width="{width}" height="{height}" rx="10" fill="{color["page"]}"/>',
        f'<rect x=".5" y=".5" width="{width - 1}" height="{inner}" rx="10" fill="{color["box"]}" '
        f'stroke="{color["line"]}"/>',
        *(f'<circle cx="{22 + 18 * i}" cy="20" r="5.5" fill="{color["line"]}"/>' for i in range(3)),
        f'<g font-family="{MONO}">',
    ]
    for row, (kind, line) in enumerate(lines):
        y, words = top + step * row, line.replace(" ", "\N{NO-BREAK SPACE}")  # columns stay
        if kind == "command":
            body.append(text(20, y, "$", color["accent"], more='font-weight="bold"'))
            body.append(text(36, y, words, color["text"], more='font-weight="bold"'))
        else:
            body.append(text(20, y, words, color["quiet" if kind == "note" else "text"]))
    body.append("</g>")
    gap = width / len(captions)
    for place, (path, caption) in enumerate(captions.items()):
        middle = gap * (place + 0.5)
        body.append(image(path, middle - side / 2, inner + 24, side, color))
        for row, words in enumerate(halves(caption)):
            where = inner + tallest + 50 + 20 * row
            body.append(text(middle, where, words, color["text"], more='text-anchor="middle"'))
    return svg(width, height, "captioner at work", body)


def halves(caption: str) -> list[str]:
    """Break a long caption into two lines."""
    if len(caption) <= 30:
        return [caption]
    cut = caption.rfind(" ", 0, len(caption) // 2 + 4)
    return [caption[:cut], caption[cut + 1 :]]


def follows(color: Color, captions: dict[int, str], scores: torch.Tensor) -> str:
    """Draw a table of images and captions; a cell is the mean log-likelihood per token."""
    left, across, down = 300, 96, 44
    width, height = left + across * len(captions) + 16, 124 + down * len(captions)
    body = [f'<rect width="{width}" height="{height}" rx="10" fill="{color["page"]}"/>']
    for column, index in enumerate(captions):
        body.append(image(scene(index), left + across * column + 8, 12, 80, color))
    for row, caption in enumerate(captions.values()):
        y = 104 + down * row
        for place, line in enumerate(halves(caption)):
            body.append(text(12, y + 19 + 16 * place, line, color["text"]))
        for column in range(len(captions)):
            x, value = left + across * column, scores[column, row].item()
            own = row == column
            body.append(
                f'<rect x="{x + 4}" y="{y}" width="{across - 8}" height="{down - 8}" rx="4" '
                f'fill="{color["soft"] if own else color["box"]}"/>'
            )
            more = 'text-anchor="middle"' + (' font-weight="bold"' if own else "")
            body.append(text(x + across / 2, y + 23, f"{value:.2f}", color["text"], more=more))
    return svg(width, height, "log-likelihoods of captions", body)


def commands(work: Path) -> list[tuple[str, str]]:
    """Return the three commands of the README and their output in a folder with a run."""
    log = (work / "runs/scenes/train.log").read_text(encoding="utf-8").splitlines()
    epochs = [line[21:] for line in log if line[21:].startswith("epoch ")]
    lines = [("command", "captioner train"), *(("note", line) for line in epochs[-2:])]
    first = f"captioner caption {scene(SHOWN[0])}"
    lines += [("command", first), *(("", line.expandtabs(4)) for line in run(first, work))]
    scores = [line for line in run("captioner evaluate", work) if "(95%)" in line or "true" in line]
    return [*lines, ("command", "captioner evaluate"), *(("", line) for line in scores)]


def photographs(work: Path) -> tuple[dict[Path, str], list[tuple[str, str]]]:
    """Caption the drawn photographs with the bundled model: captions, and the terminal's lines."""
    command = f"captioner caption {PICTURES[0].parent} --model photos"
    lines = run(command, work)
    captions = dict(line.split("\t") for line in lines)
    shown = [("command", command.removesuffix(" --model photos"))]
    shown += [("", line.expandtabs(26)) for line in lines]
    return {path: captions[str(path)] for path in PICTURES}, shown


def main(run_folder: Path | None) -> None:
    """Run the commands and write every picture in both themes."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "data").symlink_to(ROOT / "data")
        if run_folder:
            shutil.copytree(run_folder, work / "runs" / "scenes")
        else:
            run("captioner train", work)
        photos, lines_of_photos = photographs(work)
        lines = commands(work)
        captioner = Captioner.load(work / "runs" / "scenes")
    every = sorted({*SHOWN, *CONTRASTED})
    texts = dict(zip(every, captioner.caption([ROOT / scene(i) for i in every]), strict=True))
    contrasted = {index: texts[index] for index in CONTRASTED}
    scores = captioner.score([ROOT / scene(index) for index in contrasted], contrasted.values())
    FOLDER.mkdir(exist_ok=True)
    for theme, color in THEMES.items():
        for title, drawn in (
            ("photos", session(color, photos, lines_of_photos, side=216)),
            ("session", session(color, {scene(index): texts[index] for index in SHOWN}, lines)),
            ("follows", follows(color, contrasted, scores)),
        ):
            (FOLDER / f"{title}-{theme}.svg").write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else None)
