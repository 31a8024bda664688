"""Evaluations without a model to write reports of, and a browser to open them in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from captioner.config import bundled
from captioner.data.dataset import Dataset, Example
from captioner.data.load import load_dataset
from captioner.data.prepare import SplitTable
from captioner.evaluation.evaluate import Evaluation
from captioner.evaluation.report import write_report
from captioner.metrics import compare_word_use, score_captions
from captioner.text import Caption, Vocabulary, tokenize


def caption(text: str, log_prob: float = -5.0, *, finished: bool = True) -> Caption:
    return Caption(text, log_prob, log_prob / max(1, len(text.split())), finished)


def evaluation(
    output: Path,
    examples: Sequence[Example],
    captions: list[list[Caption]],
    *,
    train: Sequence[str] = (),
    judge: Any = None,
    resamples: int = 20,
) -> Evaluation:
    """Score captions as `evaluate` does.

    Args:
        output: folder of the report.
        examples: of the split.
        captions: n-best of each.
        train: captions of a training split; without any there is no such split.
        judge: of the data set.
        resamples: of the bootstrap.
    """
    learned = [Example(Path(f"{i}.png"), (text,), "train", f"t{i}") for i, text in enumerate(train)]
    root = output / "toys"
    dataset = Dataset("toys", "csv", root, (*learned, *examples), (), judge)
    references = [[tokenize(text) for text in example.captions] for example in examples]
    tokens = [tokenize(best[0].text) for best in captions]
    scores = score_captions(
        tokens,
        references,
        resamples=resamples,
        decode="beam2,lp0.0",
        split="dev",
    )
    table = SplitTable(tuple(examples), torch.empty(len(examples), 0), references, references)
    words = compare_word_use(tokens, references)
    return Evaluation(dataset, "dev", table, captions, scores, words, {}, None, output)


def vocabulary(result: Evaluation, *more: str) -> Vocabulary:
    said = [tokenize(best[0].text) for best in result.captions]
    return Vocabulary.build([*said, list(more)], min_count=1)


def model_folder(folder: Path, *, epochs: int = 6) -> Path:
    """Make a run folder with metrics of so many epochs."""
    model = folder / "toy-run" / "model"
    model.mkdir(parents=True)
    lines: list[dict[str, Any]] = []
    for step in range(1, 10 * epochs + 1):
        loss = 1.2 + 5 / step**0.5
        lines.append({"kind": "step", "step": step, "loss": loss + 0.1 * (step % 3)})
        if step % 10 == 0:
            epoch = {"kind": "epoch", "epoch": step // 10, "step": step, "train_loss": loss}
            scores = {"bleu_4": 0.4 - 1 / step, "cider_d": 1.6 - 8 / step}
            lines.append(epoch | {"dev_loss": loss + 0.01 * step} | scores)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (model.parent / "metrics.jsonl").write_text(text)
    return model


def scenes_report(folder: Path) -> Path:
    """Write a report on the drawn scenes: a model that calls every picture what the last one is."""
    drawn = load_dataset(bundled("data/scenes"))
    examples = drawn.split("dev")
    captions = [
        [
            caption(
                right.captions[0] if i % 4 else before.captions[0], -2.0 - i % 7, finished=i % 9 > 0
            )
        ]
        + [caption(other, -4.0 - i % 5) for other in right.captions[1:3]]
        for i, (before, right) in enumerate(zip((examples[-1], *examples), examples, strict=False))
    ]
    train = [text for example in drawn.split("train") for text in example.captions]
    result = evaluation(folder, examples, captions, train=train, judge=drawn.judge, resamples=1000)
    words = vocabulary(result, "moon", "above", "below")
    return write_report(result, words, model=model_folder(folder))
