"""Exported models: are their captions the model's, and what do 8 bits cost and gain?

    python benchmarks/exporting.py MODEL FLICKR8K [--images 1000] [--rounds 3]

Exports a model in float32, with weights of 8 bits, and with an encoder that computes in 8 bits
(`--pictures`: 200 images of train), and captions images of dev by the Python code in the README of
each export.

- equal: share of the first 200 images whose words are those of captioner in float32 without votes,
  for the export in float32. Target: at least 0.995.
- CIDEr of the images, and what 8 bits cost. Target: at most 0.005.
- size of the folder.
- the encoder alone, images per second, one image at a time and on all cores: captioner, the exports
  in onnxruntime and, if it is installed, in OpenVINO. They take turns; medians over the rounds;
  `--rounds 0` leaves this out.

The exit code is 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import runpy
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from common import check, describe_machine
from PIL import Image

from captioner import Captioner, load_dataset, score_captions, tokenize
from captioner.exporting.write import export

EQUAL = 200  # images
SPEED = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    wish = parser.parse_args()
    print(describe_machine())
    examples = load_dataset(str(wish.data)).examples
    dev = [example for example in examples if example.split == "dev"][: wish.images]
    train = [example for example in examples if example.split == "train"][:200]
    captioner = Captioner.load(wish.model, "cpu")
    read = captioner.encoder.preprocess.pixels
    pixels = [read(Image.open(example.image).convert("RGB"))[None] for example in dev]
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        (top / "pictures").mkdir()
        for example in train:
            (top / "pictures" / Path(example.image).name).symlink_to(Path(example.image).absolute())
        forms: dict[str, dict[str, Any]] = {
            "fp32": {},
            "8-bit weights": {"int8": True},
            "8-bit encoder": {"int8": True, "pictures": top / "pictures"},
        }
        for form, how in forms.items():
            export(captioner, top / form, **how)
        met = captions(captioner, top, forms, dev, pixels)
        if wish.rounds:
            speeds(captioner, top, forms, torch.cat(pixels[:SPEED]), wish.rounds)
    sys.exit(not met)


def captions(
    captioner: Captioner, top: Path, forms: Any, dev: list[Any], pixels: list[torch.Tensor]
) -> bool:
    """Caption by each export, and print sizes and scores."""
    exact = in_fp32(captioner)
    settings = exact.settings(neighbours=0, precision="fp32")
    own = [best.text for one in pixels for [best] in exact.search(exact.encoder.see(one), settings)]
    references = [[tokenize(text) for text in example.captions] for example in dev]
    found, met = {"captioner, fp32": own}, True
    for form in forms:
        caption = search_of(top / form)
        found[form] = [caption(one.numpy()) for one in pixels]
    for form, texts in found.items():
        cider = score_captions([tokenize(text) for text in texts], references, metrics=["cider"])[
            "cider"
        ].value
        files = (top / form).iterdir() if form in forms else ()
        size = sum(file.stat().st_size for file in files)
        same = np.mean([a == b for a, b in zip(texts[:EQUAL], own[:EQUAL], strict=True)])
        print(f"  {form:20} {size / 1e6:6.2f} MB  CIDEr {cider:.4f}  equal {same:.3f}")
        if form == "fp32":
            met &= check("equal captions", float(same), at_least=0.995)
            base = cider
        elif form in forms:
            met &= check(f"CIDEr lost by {form}", max(0.0, base - cider), at_most=0.005)
    return met


def in_fp32(captioner: Captioner) -> Captioner:
    """Let the CNNs compute in float32."""
    for cnn in captioner.encoder.cnns:
        cnn.precision = "fp32"
    return captioner.to("cpu")


def search_of(folder: Path) -> Callable[[Any], str]:
    """Return the search of an export, which reads the files of its folder."""
    with contextlib.chdir(folder):
        return runpy.run_path("caption.py", run_name="caption")["caption"]  # type: ignore[no-any-return]


def speeds(captioner: Captioner, top: Path, forms: Any, pixels: torch.Tensor, rounds: int) -> None:
    """Print the images per second of encoders."""
    import onnxruntime

    fast = Captioner.load(captioner.name.removeprefix("model "), "cpu").encoder
    runs: dict[str, Callable[[Any], object]] = {"captioner": fast}
    once = onnxruntime.SessionOptions()
    once.intra_op_num_threads = torch.get_num_threads()
    once.add_session_config_entry("session.disable_quant_qdq", "1")
    whole = onnxruntime.SessionOptions()
    whole.intra_op_num_threads = torch.get_num_threads()
    for form in forms:
        options = once if form == "8-bit weights" else whole
        session = onnxruntime.InferenceSession(top / form / "encoder.onnx", options)
        runs[f"onnxruntime, {form}"] = lambda x, s=session: s.run(None, {"pixels": x.numpy()})
    try:
        import openvino
    except ImportError:
        print("  OpenVINO is not installed")
    else:
        for form in forms:
            network = openvino.Core().read_model(top / form / "encoder.onnx")
            settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
            compiled = openvino.Core().compile_model(network, "CPU", settings)
            runs[f"OpenVINO, {form}"] = lambda x, c=compiled: c(x.numpy())
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(1 + rounds):
        for name, run in runs.items():
            started = perf_counter()
            for one in pixels.split(1):
                run(one)
            seconds[name].append(perf_counter() - started)
    for name, taken in seconds.items():
        print(f"  {name:30} {len(pixels) / median(taken[1:]):8.1f} images per second")


if __name__ == "__main__":
    main()
