"""Language models of transformers: captions as one vector for each piece of a word."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch.nn import functional

from captioner.embedding.pretrained import (
    UnavailableError,
    library,
    loading,
    reach,
    signed_name,
)
from captioner.errors import ConfigError, ModelError
from captioner.metrics.inputs import TokenVectors
from captioner.system.batches import batched
from captioner.system.devices import choose_device
from captioner.system.foreign import excerpt, plain

BATCH = 64
# The layers that agree best with people, from the paper's program.
LAYERS: Mapping[str, int] = {
    "bert-base-uncased": 9,
    "bert-large-uncased": 18,
    "bert-base-multilingual-cased": 9,
    "bert-base-chinese": 8,
    "roberta-base": 10,
    "roberta-large": 17,
    "distilbert-base-uncased": 5,
    "xlm-roberta-base": 9,
    "xlm-roberta-large": 17,
}
_SPEC = re.compile(r"(.+?)(?:@([\w./+-]+))?(?::(\d+))?", re.ASCII)


class Bert:
    """A language model, in fp32, up to one of its layers.

    Args:
        model: `NAME[@REVISION][:LAYER]` of the Hugging Face Hub, or `FOLDER[:LAYER]`.
        device: auto, cpu, cuda, ...

    Raises:
        ConfigError: if the model has no such layer, or no usual one and none is named.
        UnavailableError: if transformers is not installed, or the model cannot be downloaded.
        ModelError: if the folder holds no model.
    """

    def __init__(self, model: str, device: str = "auto") -> None:
        transformers = library("transformers", "transformers", "bert")
        transformers.utils.logging.disable_progress_bar()
        found = _SPEC.fullmatch(model)
        if not found:
            raise ConfigError(f"bert {excerpt(model)}: write NAME[@REVISION][:LAYER] or a folder")
        name, revision, layer = found.groups()
        is_folder = Path(name).is_dir()
        number = int(layer) if layer else LAYERS.get(name)
        if number is None:
            raise ConfigError(f"bert {excerpt(model)}: name the layer to compare, {name}:LAYER")
        advice = "name another folder" if is_folder else "name a folder that holds it"
        kind = ModelError if is_folder else UnavailableError
        self._device = choose_device(device)
        if not is_folder:
            reach(name, f"BERT {plain(model)}", advice)
        with loading(f"BERT {plain(model)}", advice, kind):
            where = {"revision": revision or "main", "local_files_only": is_folder}
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(name, **where)
            self._network = transformers.AutoModel.from_pretrained(
                name, use_safetensors=True, dtype=torch.float32, **where
            )
        most = self._network.config.num_hidden_layers
        if not 1 <= number <= most:
            raise ConfigError(f"bert {excerpt(model)}: has layers 1 to {most}, given {number}")
        self._layer = number
        # RoBERTa counts positions from 2.
        positions = getattr(self._network.config, "max_position_embeddings", 512) - 2
        self._most = min(self._tokenizer.model_max_length, positions)
        self._network.to(self._device).eval()
        # RoBERTa and GPT-2 spell the first word of a text in another way without a space.
        self._prefix = " " if self._network.config.model_type in ("roberta", "gpt2") else ""
        shown = Path(name).name if is_folder else name
        self.name = f"{signed_name(shown, self._network)},layer{number}"

    @torch.inference_mode()
    def tokens(self, texts: Sequence[str]) -> list[TokenVectors]:
        """Return the unit vectors of each text's tokens, the tokens at its ends included.

        A long text is cut to what the model reads.
        """
        ends = {self._tokenizer.cls_token_id, self._tokenizer.sep_token_id}
        found = []
        for block in batched(texts, BATCH):
            inputs = self._tokenizer(
                [self._prefix + text.strip() for text in block],
                padding=True,
                truncation=True,
                max_length=self._most,
                return_tensors="pt",
            ).to(self._device)
            hidden = self._network(**inputs, output_hidden_states=True).hidden_states
            vectors = functional.normalize(hidden[self._layer].double(), dim=-1).cpu()
            rows = zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), strict=True)
            for unit, (ids, mask) in zip(vectors, rows, strict=True):
                real = [place for place, used in enumerate(mask) if used]
                inner = torch.tensor([ids[place] not in ends for place in real])
                found.append(TokenVectors(unit[real].numpy(), inner.numpy()))
        return found
