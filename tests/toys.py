"""Small real things to test with: pictures of colours, captions about them, tiny models."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from captioner.captioner import Captioner
from captioner.captioning.job import JobOptions
from captioner.config import Config, DecoderConfig, DecodingConfig
from captioner.data.caption_table import Batch
from captioner.decoder.decoder import Decoder
from captioner.encoder.backbones import build_backbone
from captioner.encoder.encoder import Encoder, FrozenEncoder, side_by_side
from captioner.encoder.preprocess import Preprocess
from captioner.encoder.weights import EncoderSpec
from captioner.text import Vocabulary

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 160, 60),
    "blue": (40, 60, 220),
    "white": (245, 245, 245),
    "black": (10, 10, 10),
    "yellow": (240, 220, 40),
}
WORDS = ("a", "square", "in", "the", "middle", *COLOURS)
SIZE = 32


def vocabulary() -> Vocabulary:
    return Vocabulary.build([WORDS], min_count=1)


def encoder_state(seed: int = 0) -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return dict(build_backbone("squeezenet1_1", {}).state_dict())


def encoder(seed: int = 0, grid: int = 0, grid_channels: int = 256) -> FrozenEncoder:
    size = 2 * SIZE if grid else SIZE  # at 32 pixels the last map is a single place
    spec = EncoderSpec("squeezenet1_1", {}, Preprocess(size, size), "toy")
    return FrozenEncoder(spec, encoder_state(seed), "fp32", grid, grid_channels)


def decoder(
    *, seed: int = 0, vocab_size: int = 20, feature_size: int = 6, **changes: Any
) -> Decoder:
    torch.manual_seed(seed)
    sizes = {name: changes.pop(name, 0) for name in ("places", "channels")}
    small = {"hidden_size": 8, "embed_size": 5, "dropout": 0.0, "place_dropout": 0.0}
    config = DecoderConfig(**small | changes)
    return Decoder(config, vocab_size=vocab_size, feature_size=feature_size, **sizes)


def pair() -> Encoder:
    """Two CNNs side by side, of different normalisation."""
    second = encoder(seed=1)
    preprocess = Preprocess(SIZE, SIZE, mean=(0.5, 0.5, 0.5), std=(0.2, 0.3, 0.4))
    spec = replace(second.spec, preprocess=preprocess)
    return side_by_side([encoder(), FrozenEncoder(spec, second.state, "fp32")])


def captioner(eyes: Encoder | None = None, **changes: Any) -> Captioner:
    eyes, words = eyes or encoder(), vocabulary()
    writer = decoder(vocab_size=len(words), **eyes.sizes, **changes)
    return Captioner(eyes, writer, words)


def options(captioner: Captioner, **wish: Any) -> tuple[DecodingConfig, JobOptions]:
    """How to search and how to caption many, each from its own keywords."""
    names = {field.name for field in fields(JobOptions)}
    how = JobOptions(**{name: wish.pop(name) for name in names & wish.keys()})
    return captioner.settings(n_best=how.n_best, **wish), how


def batch(*, seed: int = 0, vocab_size: int = 20, feature_size: int = 6, size: int = 4) -> Batch:
    """Captions of 2 to 6 words, padded."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 7, (size,), generator=generator)
    token_ids = torch.full((size, int(lengths.max()) + 2), Vocabulary.pad_id)
    for row, length in zip(token_ids, lengths.tolist(), strict=True):
        words = torch.randint(4, vocab_size, (length,), generator=generator)
        row[: length + 2] = torch.tensor([Vocabulary.bos_id, *words, Vocabulary.eos_id])
    return Batch(
        features=torch.randn(size, feature_size, generator=generator),
        inputs=token_ids[:, :-1],
        targets=token_ids[:, 1:],
        tokens=int(lengths.sum()) + size,
    )


def draw(path: Path, colour: str, shade: int = 0) -> Path:
    red, green, blue = COLOURS[colour]
    image = Image.new("RGB", (SIZE, SIZE), (120 + shade, 120, 120))
    image.paste((red, green, blue), (8, 8, 24, 24))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def data_set(folder: Path) -> Path:
    """Write a CSV data set: 24 train and 6 dev pictures with two captions each."""
    with (folder / "captions.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "caption", "split"])
        for split, shades in (("train", range(4)), ("dev", [5])):
            for shade in shades:
                for colour in COLOURS:
                    name = f"{split}_{colour}_{shade}.png"
                    draw(folder / name, colour, shade)
                    table.writerow([name, f"a {colour} square", split])
                    table.writerow([name, f"A {colour} square in the middle.", split])
    return folder / "captions.csv"


def config(folder: Path, **training: Any) -> Config:
    """Return a config that trains on `data_set(folder)` in about a second."""
    weights = folder / "weights.safetensors"
    save_file(encoder_state(), weights)
    return Config.model_validate(
        {
            "data": {"root": str(data_set(folder))},
            "text": {"min_count": 1},
            "encoder": {
                "backbone": "squeezenet1_1",
                "weights": str(weights),
                "image_size": SIZE,
                "precision": "fp32",
            },
            "decoder": {"hidden_size": 24, "embed_size": 12, "dropout": 0.1},
            "training": {
                "epochs": 3,
                "batch_size": 8,
                "learning_rate": 0.02,
                "warmup_steps": 2,
                "precision": "fp32",
                "label_smoothing": 0.0,
            }
            | training,
        }
    )


def config_of_two(folder: Path, **training: Any) -> Config:
    """Return the same with a second CNN."""
    tree = config(folder, **training).model_dump()
    weights = folder / "more.safetensors"
    save_file(encoder_state(seed=1), weights)
    tree["encoder"]["cnns"].append({"backbone": "squeezenet1_1", "weights": str(weights)})
    return Config.model_validate(tree)


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in a folder with a feature store of its own, and no model named from outside."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("CAPTIONER_CACHE", str(folder / "cache"))
        patch.delenv("CAPTIONER_MODEL", raising=False)
        yield
