"""Updates the weights: schedule, clipping, AdamW and the moving average."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from captioner.config import DecoderConfig, TrainingConfig
from captioner.decoder.decoder import Decoder
from captioner.encoder.encoder import FeatureSizes
from captioner.errors import ConfigError
from captioner.system.memory import free_memory


def check_room(
    decoder: DecoderConfig,
    training: TrainingConfig,
    device: torch.device,
    *,
    vocab_size: int,
    features: FeatureSizes,
) -> None:
    """Refuse a decoder that needs more memory to train than is free.

    Raises:
        ConfigError: with the memory that training needs and the memory that is free.
    """
    with torch.device("meta"):
        empty = Decoder(decoder, vocab_size=vocab_size, **features)
    weights = sum(p.numel() for p in empty.parameters())
    copies = 5 if training.ema_decay else 4  # weights, gradients, two moments, average
    needed, free = 4 * copies * weights, free_memory(device)
    if needed > free:
        raise ConfigError(
            f"decoder.hidden_size {decoder.hidden_size:,}, decoder.num_layers "
            f"{decoder.num_layers:,}, decoder.embed_size {decoder.embed_size:,}: training "
            f"{weights:,} weights needs {needed / 1e9:,.1f} GB, {free / 1e9:,.1f} GB are free; "
            f"lower these settings"
        )


class Updater:
    """Changes a decoder's weights after each backward pass, on the decoder's device."""

    def __init__(self, decoder: Decoder, config: TrainingConfig, total_steps: int, *, fp16: bool):
        self.decoder = decoder
        self.config = config
        self.total_steps = total_steps
        # A copy with the moving average of the weights.
        self.average = copy.deepcopy(decoder).eval() if config.ema_decay else None
        trained = [p for p in decoder.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.dim() > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
        ]
        betas = (0.9, config.beta2)
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, fused=True)
        # In fp16, small gradients of a loss that is not scaled would underflow.
        self.scaler = torch.amp.GradScaler(trained[0].device.type, enabled=fp16)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The modules to save in a checkpoint, by name."""
        average = {} if self.average is None else {"average": self.average}
        return {"decoder": self.decoder, **average}

    def update(self, step: int) -> Tensor:
        """Clip the gradients, update the weights and their average, and clear the gradients.

        Returns the gradient norm before clipping, a scalar. Steps count from 0.
        """
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, step, self.total_steps)
        self.scaler.unscale_(self.optimizer)
        # Pascanu et al. (2013), "On the difficulty of training recurrent neural networks".
        norm = nn.utils.clip_grad_norm_(self.decoder.parameters(), config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.average is not None:
            # A small decay at the start, so that the average forgets the random weights.
            decay = min(config.ema_decay, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(
                    list(self.average.parameters()), list(self.decoder.parameters()), 1 - decay
                )
        return norm


def learning_rate(config: TrainingConfig, step: int, total_steps: int) -> float:
    """Return the learning rate of a step, from 0, of a run of `total_steps`.

    It grows linearly during the warm-up, which is at most a tenth of the run.
    """
    warmup = min(config.warmup_steps, total_steps // 10)
    progress = (step - warmup) / (total_steps - warmup)
    factor = 1.0
    if step < warmup:
        factor = (step + 1) / warmup
    elif config.schedule == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * progress))
    elif config.schedule == "linear":
        factor = 1 - progress
    return config.learning_rate * factor
