"""Peak memory of a training step on long sequences, with and without truncated BPTT.

    python benchmarks/window.py

Batches of 32 captions of 125 to 1,000 tokens go through the decoder of `configs/flickr8k.yaml`,
whole and in windows of 50 tokens. Each case runs in its own process. The memory of a process that
runs only a step of 10 tokens is subtracted. Targets with a window: memory at 1,000 tokens at most
1.2 times the memory at 250; memory at 500 tokens at most a third of the memory of whole captions.
The exit code is 1 if a target is missed.
"""

from __future__ import annotations

import subprocess
import sys

from common import check, describe_machine

LENGTHS = (125, 250, 500, 1000)
WINDOW = 50
BATCH_SIZE, FEATURES, WORDS = 32, 1280, 2540


def step(length: int, window: int | None) -> int:
    """Run training steps on captions of one length; return the process's peak memory in bytes.

    Args:
        length: tokens per caption; 0: only the warm-up step.
        window: window of truncated BPTT in tokens; None: whole captions.
    """
    import torch

    from captioner.config import load_config
    from captioner.data.caption_table import Batch
    from captioner.decoder.decoder import Decoder
    from captioner.training import bptt
    from captioner.training.telemetry import peak_memory

    config = load_config("flickr8k")
    decoder = Decoder(config.decoder, vocab_size=WORDS, feature_size=FEATURES)
    for tokens in (10, length) if length else (10,):
        ids = torch.randint(4, WORDS, (BATCH_SIZE, tokens + 1))
        features = torch.randn(BATCH_SIZE, FEATURES)
        batch = Batch(features, ids[:, :-1], ids[:, 1:], BATCH_SIZE * tokens)
        with torch.autocast("cpu", torch.bfloat16):
            bptt.backward(decoder, batch, label_smoothing=0.1, window=window)
        decoder.zero_grad()
    return peak_memory(torch.device("cpu"))


def peak(length: int, window: int | None) -> int:
    """Return the peak memory of `step` in its own process, in bytes."""
    words = [sys.executable, __file__, str(length), str(window or 0)]
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def main() -> int:
    print(describe_machine())
    base = peak(0, None)
    print(f"after a step of 10 tokens: {base / 2**20:,.0f} MiB; peak memory above that:")
    whole: dict[int, int] = {}
    windows: dict[int, int] = {}
    for length in LENGTHS:
        whole[length] = peak(length, None) - base
        windows[length] = peak(length, WINDOW) - base
        print(
            f"{length:5} tokens: whole {whole[length] / 2**20:7,.0f} MiB, "
            f"windows of {WINDOW} {windows[length] / 2**20:7,.0f} MiB"
        )
    met = check("windows, 1,000 tokens / 250 tokens", windows[1000] / windows[250], at_most=1.2)
    met &= check("500 tokens, windows / whole", windows[500] / whole[500], at_most=1 / 3)
    return int(not met)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(step(int(sys.argv[1]), int(sys.argv[2]) or None))
    else:
        sys.exit(main())
