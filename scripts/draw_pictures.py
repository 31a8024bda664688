"""Draw the example pictures of README, `data/pictures`: a beach, a dog and a skier.

python scripts/draw_pictures.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

FOLDER = Path(__file__).parents[1] / "data" / "pictures"
WIDTH, HEIGHT = 640, 480
Color = tuple[int, int, int]
Points = list[tuple[float, float]]


def main() -> None:
    """Draw the pictures and save them as JPEG."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, draw in (("beach", beach), ("dog", dog), ("skier", skier)):
        soft = draw().filter(ImageFilter.GaussianBlur(0.8))
        soft.save(FOLDER / f"{name}.jpg", quality=92)


def beach() -> Image.Image:
    """Draw a person on a beach at sunset."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    horizon, sun = 278, (397, 238)
    height = (rows / horizon).clip(0, 1)[..., None] ** 1.3
    pixels = np.array([60, 60, 120]) * (1 - height) + np.array([250, 150, 60]) * height
    distance = np.hypot(columns - sun[0], rows - sun[1])
    pixels += np.exp(-distance / 90)[..., None] * np.array([120, 90, 40])
    pixels[distance < 26] = [255, 240, 190]
    depth = ((rows - horizon) / (HEIGHT - horizon)).clip(0, 1)
    waves = np.sin(rows * 0.9 + np.sin(columns / 40 + rows / 7) * 2)
    waves += 0.6 * np.sin(columns / 23 + rows * 0.55)
    shine = np.exp(-np.abs(columns - sun[0]) / (25 + 90 * depth)) * (1 + waves / 2)
    sea = np.stack([120 - 80 * depth, 80 - 50 * depth, 80 - 30 * depth], axis=-1)
    sea += waves[..., None] * 8 + shine[..., None] * np.array([150, 100, 40])
    pixels[horizon:] = sea[horizon:]
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    pen.polygon([(0, 410), (WIDTH, 440), (WIDTH, HEIGHT), (0, HEIGHT)], fill=(40, 28, 25))
    person(pen, feet=(220, 430), height=170, color=(15, 12, 18))
    return image


def person(
    pen: ImageDraw.ImageDraw, feet: tuple[float, float], height: float, color: Color
) -> None:
    """Draw a standing person in one color."""
    left, bottom, unit = *feet, height / 100

    def at(points: Points) -> Points:
        return [(left + x * unit, bottom - y * unit) for x, y in points]

    pen.ellipse([*at([(-8, 100)])[0], *at([(8, 83)])[0]], fill=color)
    pen.polygon(at([(-13, 80), (13, 80), (10, 42), (-10, 42)]), fill=color)
    for side in (-1, 1):
        leg: Points = [(side * 10, 44), (side, 44), (side * 4, 0), (side * 12, 0)]
        arm: Points = [(side * 11, 77), (side * 21, 50)]
        pen.polygon(at(leg), fill=color)
        pen.line(at(arm), fill=color, width=round(6 * unit))


def dog() -> Image.Image:
    """Draw a brown dog that runs over grass."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    noise = np.random.default_rng(1).normal(scale=40, size=(HEIGHT, WIDTH))
    blades = Image.fromarray((noise + 128).clip(0, 255).astype(np.uint8))
    grain = np.asarray(blades.filter(ImageFilter.GaussianBlur(1.2)), dtype=float) - 128
    grass = np.stack([70 + rows / 8, 125 + rows / 10, 40 + rows / 14], axis=-1)
    grass += 1.6 * grain[..., None]
    edge = 150 + 6 * np.sin(columns / 31) + 4 * np.sin(columns / 13)
    sky = np.stack([150 + rows / 4, 190 + rows / 5, 235 + rows / 12], axis=-1)
    pixels = np.where((rows < edge)[..., None], sky, grass)
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    coat, ear, black = (115, 72, 36), (72, 43, 20), (18, 14, 14)
    pen.line([(178, 232), (140, 205), (112, 160)], fill=coat, width=17, joint="curve")
    for leg in (
        [(200, 270), (165, 322), (118, 345)],
        [(222, 285), (205, 340), (240, 372)],
        [(362, 285), (408, 330), (450, 338)],
        [(345, 290), (362, 345), (405, 372)],
    ):
        pen.line(leg, fill=coat, width=26, joint="curve")
    pen.ellipse((160, 205, 300, 305), fill=coat)
    pen.ellipse((230, 200, 395, 310), fill=coat)
    pen.polygon([(335, 225), (385, 150), (440, 185), (390, 270)], fill=coat)
    pen.ellipse((372, 138, 458, 214), fill=coat)
    pen.polygon([(430, 160), (495, 178), (498, 204), (432, 208)], fill=coat)
    pen.ellipse((484, 172, 504, 190), fill=black)
    pen.polygon([(384, 144), (406, 140), (400, 205), (374, 208)], fill=ear)
    pen.ellipse((432, 160, 442, 170), fill=black)
    return image


def skier() -> Image.Image:
    """Draw a skier in front of mountains."""
    rows = np.mgrid[:HEIGHT, :WIDTH][0]
    sky = np.stack([90 + rows / 6, 140 + rows / 6, 220 + rows / 20], axis=-1)
    image = Image.fromarray(sky.clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    ridge: Points = [(0, 260), (150, 120), (260, 230), (400, 80), (560, 240), (640, 180)]
    pen.polygon([*ridge, (WIDTH, HEIGHT), (0, HEIGHT)], fill=(215, 222, 235))
    pen.polygon([(0, 330), (WIDTH, 230), (WIDTH, HEIGHT), (0, HEIGHT)], fill=(245, 248, 252))
    ski, trousers, jacket = (30, 30, 60), (30, 30, 40), (190, 30, 40)
    pen.line([(270, 400), (410, 375)], fill=ski, width=7)
    pen.line([(280, 414), (420, 388)], fill=ski, width=7)
    pen.line([(330, 390), (355, 350), (325, 320)], fill=trousers, width=18, joint="curve")
    pen.line([(325, 320), (350, 270)], fill=jacket, width=30)
    pen.ellipse((340, 230, 372, 264), fill=(240, 190, 30))
    pen.line([(348, 278), (390, 310)], fill=jacket, width=11)
    pen.line([(390, 290), (380, 390)], fill=(60, 60, 60), width=3)
    return image


if __name__ == "__main__":
    main()
