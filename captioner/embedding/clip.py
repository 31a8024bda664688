"""CLIP models of open_clip: captions and pictures as vectors of one space."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional

from captioner.embedding.pretrained import (
    UnavailableError,
    library,
    loading,
    reach,
    signed_name,
)
from captioner.errors import ConfigError, ModelError, suggest
from captioner.metrics.references import Floats
from captioner.system.batches import batched
from captioner.system.devices import choose_device
from captioner.system.foreign import excerpt, plain

BATCH = 64


class Clip:
    """A CLIP model, in fp32.

    Source: Radford et al.: Learning transferable visual models from natural language supervision,
    ICML 2021.

    Args:
        model: `NAME:TAG`, an architecture and a tag of weights that open_clip knows, or
            `NAME:PATH`, a file of weights.
        device: auto, cpu, cuda, ...

    Raises:
        ConfigError: if there is no such architecture, tag or file.
        UnavailableError: if open_clip is not installed, or the weights cannot be downloaded.
        ModelError: if the file holds no weights of the architecture.
    """

    def __init__(self, model: str, device: str = "auto") -> None:
        open_clip = library("open_clip", "open-clip-torch", "clip")
        name, _, weights = model.partition(":")
        known = open_clip.list_models()
        if name not in known:
            close = suggest(name, known) if name else ""
            close = close if close.startswith(" (did") else ""
            raise ConfigError(
                f"clip {excerpt(model)}: open_clip has no model {excerpt(name)}{close}; write "
                f"NAME:TAG or NAME:PATH, such as ViT-B-32:openai"
            )
        tags = open_clip.list_pretrained_tags_by_model(name)
        is_file = bool(weights) and Path(weights).is_file()
        if not is_file and weights not in tags:
            raise ConfigError(
                f"clip {excerpt(model)}: {excerpt(weights)} is neither a file nor a tag of "
                f"{name}; tags: {', '.join(tags) or 'none'}"
            )
        tagged = {} if is_file else open_clip.get_pretrained_cfg(name, weights)
        advice = "name another file" if is_file else f"name a file of its weights, {name}:PATH"
        kind = ModelError if is_file else UnavailableError
        self._device = choose_device(device)
        if repository := str(tagged.get("hf_hub", "")).rpartition("/")[0]:
            reach(repository, f"CLIP {plain(model)}", advice)
        with loading(f"CLIP {plain(model)}", advice, kind):
            self._network, self._pixels = open_clip.create_model_from_pretrained(
                name,
                weights,
                device=self._device,
                force_quick_gelu=bool(tagged.get("quick_gelu")),
            )
            self._tokens = open_clip.get_tokenizer(name)
        self._network.eval()
        shown = Path(weights).name if is_file else weights
        self.name = signed_name(f"{name}:{shown}", self._network)

    def texts(self, texts: Sequence[str]) -> Floats:
        """Return unit vectors of texts, float64 (T, D); a long text is cut to what CLIP reads."""
        blocks = (self._tokens(list(block)) for block in batched(texts, BATCH))
        return self._unit(self._network.encode_text, blocks)

    def pictures(self, pictures: Iterable[Image]) -> Floats:
        """Return unit vectors of pictures, float64 (N, D)."""
        blocks = batched(map(self._pixels, pictures), BATCH)
        return self._unit(self._network.encode_image, map(torch.stack, blocks))

    @torch.inference_mode()
    def _unit(self, encode: torch.nn.Module, blocks: Iterable[Tensor]) -> Floats:
        found = [encode(block.to(self._device)).double().cpu() for block in blocks]
        if not found:
            return np.zeros((0, 1))
        return functional.normalize(torch.cat(found), dim=-1).numpy()
