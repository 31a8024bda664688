"""Opens the models that metrics ask for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace

from PIL.Image import Image

from captioner.embedding.pretrained import UnavailableError
from captioner.metrics import MetricInputs
from captioner.metrics.inputs import BertVectors, ClipVectors

CLIP = "ViT-B-32:openai"  # the paper's
BERT = "roberta-large"  # the usual one for English


def with_models(
    inputs: MetricInputs,
    metrics: Collection[str],
    pictures: Callable[[], Iterable[Image]],
    *,
    clip: str | None = None,
    bert: str | None = None,
    device: str = "auto",
) -> MetricInputs:
    """Add the models of CLIPScore and BERTScore, as far as the metrics ask for them.

    A library or weights that cannot be had are a reason in `missing`.

    Args:
        inputs: without models.
        metrics: names in `METRICS`.
        pictures: yields the picture of each image.
        clip: see `Clip`; None: the paper's.
        bert: see `Bert`; None: the usual one.
        device: of the models.

    Raises:
        ConfigError: if a model is unknown.
        ModelError: if a file holds no such model.
        ImageError: if a picture cannot be read.
    """
    missing = {}
    if "clip_score" in metrics:
        from captioner.embedding.clip import Clip

        try:
            of_both = Clip(clip or CLIP, device)
        except UnavailableError as error:
            missing["clip_score"] = str(error)
        else:
            vectors = ClipVectors(of_both.name, of_both.pictures(pictures()), of_both.texts)
            inputs = replace(inputs, clip=vectors)
    if "bert_score" in metrics:
        from captioner.embedding.bert import Bert

        try:
            of_texts = Bert(bert or BERT, device)
        except UnavailableError as error:
            missing["bert_score"] = str(error)
        else:
            inputs = replace(inputs, bert=BertVectors(of_texts.name, of_texts.tokens))
    return replace(inputs, missing=missing)
