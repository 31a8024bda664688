"""Train the small CNN of the bundled scenes on newly drawn images.

    python scripts/train_scenes_cnn.py data/scenes_cnn.safetensors

The CNN learns to answer questions about the image (how many, what kind, ...). The logit of each
answer is the mean of its own group of pooled features, so a captioner can read the answer from
the features. Combinations of attributes that only dev and test hold are never drawn. To prevent
that the CNN learns their absence, half of the images have colours without a name, and the colour
questions are skipped for these images.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool1d, cross_entropy
from torch.utils.data import DataLoader, IterableDataset
from torchvision.models import get_model
from tqdm import tqdm

from captioner.data.scenes.drawing import PALETTE, Colour, draw
from captioner.data.scenes.grammar import COLOURS, COUNTS, KINDS, RELATIONS, SIZES, Scene
from captioner.data.scenes.splits import scenes, split_combinations

BACKBONE = "mobilenet_v2"
BUILDER_ARGS = {"inverted_residual_setting": [[1, 24, 1, 2], [2, 48, 3, 2], [2, 96, 3, 2]]}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as in captioning
BATCH_SIZE = 128
UNASKED = -100  # target that cross-entropy ignores
# The answers to each question about an image; "" if there is no second thing.
HEADS: dict[str, tuple[object, ...]] = {
    "layout": (*range(1, len(COUNTS) + 1), *RELATIONS),
    "first kind": KINDS,
    "first colour": COLOURS,
    "first size": SIZES,
    "second kind": (*KINDS, ""),
    "second colour": (*COLOURS, ""),
    "second size": (*SIZES, ""),
}
COLOUR_HEADS = [number for number, head in enumerate(HEADS) if "colour" in head]


def answers(scene: Scene) -> list[int]:
    """Answer every question about a scene, as indices into `HEADS`."""
    facts: list[object] = [scene.relation or scene.count]
    for thing in scene.things:
        facts += [thing.kind, thing.colour, thing.size]
    facts += [""] * (len(HEADS) - len(facts))
    return [choices.index(fact) for choices, fact in zip(HEADS.values(), facts, strict=True)]


def strange_colours(scene: Scene, rng: random.Random) -> dict[str, Colour]:
    """Replace the colours of a scene by colours far from every named colour."""
    strange: list[Colour] = []
    while len(strange) < len(scene.things):
        tint = (rng.uniform(0, 255), rng.uniform(0, 255), rng.uniform(0, 200))
        if all(math.dist(tint, named) > 50 for named in PALETTE.values()) and min(tint) < 160:
            strange.append(tint)
    if rng.random() < 0.5:
        strange = strange[:1] * len(strange)
    return {thing.colour: tint for thing, tint in zip(scene.things, strange, strict=True)}


class Drawings(IterableDataset[tuple[Tensor, Tensor]]):
    """Endless batches: images uint8 (B, H, W, 3) and answers int64 (B, heads).

    Args:
        split: split with the combinations of attributes to draw.
        seed: random seed.
        strange: fraction of images in colours without a name; their colour answers are `UNASKED`.
    """

    def __init__(self, split: str, seed: str, strange: float = 0.0) -> None:
        self.combinations = split_combinations()[split]
        self.seed = seed
        self.strange = strange

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        rng = random.Random(self.seed)
        endless = scenes(self.combinations, rng)
        while True:
            batch = [self._picture(next(endless), rng) for _ in range(BATCH_SIZE)]
            pictures, targets = zip(*batch, strict=True)
            yield torch.from_numpy(np.stack(pictures)), torch.tensor(targets)

    def _picture(self, scene: Scene, rng: random.Random) -> tuple[np.ndarray, list[int]]:
        colours, targets = PALETTE, answers(scene)
        if rng.random() < self.strange:
            colours = strange_colours(scene, rng)
            for head in COLOUR_HEADS:
                targets[head] = UNASKED
        return np.asarray(draw(scene, rng, colours).convert("RGB")), targets


class Reader(nn.Module):
    """The CNN with answer logits; each logit is the mean of a group of pooled features."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = get_model(BACKBONE, weights=None, **BUILDER_ARGS)
        self.cnn.classifier = nn.Identity()
        n_answers = sum(map(len, HEADS.values()))
        self.scale = nn.Parameter(torch.full((n_answers,), 10.0))
        self.bias = nn.Parameter(torch.zeros(n_answers))

    def forward(self, pictures: Tensor) -> tuple[Tensor, ...]:
        """Compute logits: uint8 (B, H, W, 3) -> (B, choices) per head."""
        images = pictures.permute(0, 3, 1, 2).float() / 255  # a channels-last view
        mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
        features = self.cnn((images - mean) / std)
        means = adaptive_avg_pool1d(features[:, None], len(self.bias))[:, 0]
        logits: Tensor = means * self.scale + self.bias
        return torch.split(logits, [*map(len, HEADS.values())], dim=1)


def train(steps: int, seed: int, peak: float) -> Reader:
    """Minimise the sum of every head's cross-entropy."""
    torch.manual_seed(seed)
    model = Reader().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps)
    drawings = DataLoader(
        Drawings("train", f"{seed}/cnn", strange=0.5), batch_size=None, num_workers=1
    )
    progress = tqdm(zip(range(steps), drawings, strict=False), total=steps, mininterval=5)
    for step, (pictures, targets) in progress:
        logits = model(pictures)
        losses = [cross_entropy(*pair) for pair in zip(logits, targets.T, strict=True)]
        loss = torch.stack(losses).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            progress.set_postfix(loss=f"{loss.item():.4f}")
    return model.eval()


@torch.inference_mode()
def accuracy(model: Reader, split: str, batches: int = 16) -> dict[str, float]:
    """Return the fraction of right answers on new images of a split, per head and for all."""
    right = []
    for _, (pictures, targets) in zip(range(batches), Drawings(split, "check"), strict=False):
        guesses = torch.stack([logits.argmax(1) for logits in model(pictures)], dim=1)
        right.append(guesses == targets)
    table = torch.cat(right)  # (pictures, heads)
    scores = dict(zip(HEADS, table.float().mean(0).tolist(), strict=True))
    return {**scores, "all": table.all(1).float().mean().item()}


def main() -> None:
    """Train, print the accuracy per question, and save the CNN without its classifier."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    options = parser.parse_args()
    model = train(options.steps, options.seed, options.learning_rate)
    for split in ("train", "dev", "test"):
        scores = accuracy(model, split)
        print(split, ", ".join(f"{head} {score:.4f}" for head, score in scores.items()))
    weights = {key: value.contiguous() for key, value in model.cnn.state_dict().items()}
    notes = {"backbone": BACKBONE, "steps": str(options.steps), "seed": str(options.seed)}
    save_file(weights, options.output, metadata={"format": "pt", **notes})


if __name__ == "__main__":
    main()
