"""Exported models: are their captions the model's, and what do 8 bits cost and gain?

    python benchmarks/exporting.py MODEL FLICKR8K [--images 1000] [--rounds 3] [--keep FOLDER]

Exports a model in float32, with weights of 8 bits, and with an encoder that computes in 8 bits
(`--pictures`: 200 images of train), and captions images of dev by the Python code in the README of
each export.

- equal: share of the images whose words are those of captioner in float32 without votes. Target for
  the export in float32: at least 0.995.
- CIDEr of the images, and its difference from captioner's, with the 95% interval of a paired
  bootstrap over the images. Target: 8 bits lose at most 0.005.
- size of the folder, and of its programs as gzip packs them.
- the encoder alone, images per second, one image at a time and on all cores: captioner, the exports
  in onnxruntime and, if it is installed, in OpenVINO. They take turns; medians over the rounds;
  `--rounds 0` leaves this out.

`--keep FOLDER` keeps the exports and each caption: the same command, stopped, goes on where it was.
Take a new folder after a change of the code. The exit code is 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
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

from captioner import Captioner, compare_captions, load_dataset, tokenize
from captioner.exporting.write import export

SPEED = 64  # images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", type=Path)
    wish = parser.parse_args()
    print(describe_machine())
    examples = load_dataset(str(wish.data)).examples
    dev = [example for example in examples if example.split == "dev"][: wish.images]
    train = [example for example in examples if example.split == "train"][:200]
    captioner = Captioner.load(wish.model, "cpu")
    read = captioner.encoder.preprocess.pixels
    pixels = [read(Image.open(example.image).convert("RGB"))[None] for example in dev]
    with contextlib.ExitStack() as stack:
        top = wish.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (top / "pictures").mkdir(parents=True, exist_ok=True)
        for example in train:
            link = top / "pictures" / Path(example.image).name
            if not link.is_symlink():
                link.symlink_to(Path(example.image).absolute())
        forms: dict[str, dict[str, Any]] = {
            "fp32": {},
            "8-bit weights": {"int8": True},
            "8-bit encoder": {"int8": True, "pictures": top / "pictures"},
        }
        for form, how in forms.items():
            if not (top / form).exists():
                export(captioner, top / form, **how)
        met = captions(captioner, top, [*forms], dev, pixels)
        if wish.rounds:
            speeds(captioner, top, forms, torch.cat(pixels[:SPEED]), wish.rounds)
    sys.exit(not met)


def captions(
    captioner: Captioner, top: Path, forms: list[str], dev: list[Any], pixels: list[torch.Tensor]
) -> bool:
    """Caption by each export, and print sizes and scores."""
    exact = in_fp32(captioner)
    settings = exact.settings(neighbours=0, precision="fp32")

    def best(one: torch.Tensor) -> str:
        return exact.search(exact.encoder.see(one), settings)[0][0].text

    own = kept(top / "captioner.txt", best, pixels)
    references = [[tokenize(text) for text in example.captions] for example in dev]
    words, met = [tokenize(text) for text in own], True
    for form in forms:
        caption = search_of(top / form)
        texts = kept(top / f"{form}.txt", lambda one, c=caption: c(one.numpy()), pixels)
        made = [tokenize(text) for text in texts]
        cider = compare_captions(words, made, references, metrics=["cider"])["cider"]
        same = np.mean([a == b for a, b in zip(texts, own, strict=True)])
        low, high = cider.interval
        print(
            f"  {form:14} {sizes(top / form)}  equal {same:.3f}  CIDEr {cider.a:.4f} to "
            f"{cider.b:.4f}: {cider.difference:+.4f} [{low:+.4f}, {high:+.4f}]"
        )
        if form == "fp32":
            met &= check("equal captions", float(same), at_least=0.995)
        else:
            met &= check(f"CIDEr lost by {form}", max(0.0, -cider.difference), at_most=0.005)
    return met


def kept(file: Path, caption: Callable[[Any], str], pixels: list[torch.Tensor]) -> list[str]:
    """Return the captions of a file, one a line, after those that it lacks were added."""
    file.touch()
    done = file.read_text(encoding="utf-8").splitlines()[: len(pixels)]
    with file.open("a", encoding="utf-8", buffering=1) as lines:
        for one in pixels[len(done) :]:
            done.append(caption(one))
            lines.write(done[-1] + "\n")
    return done


def sizes(folder: Path) -> str:
    """Say how large an export is."""
    size = sum(file.stat().st_size for file in folder.iterdir())
    packed = sum(len(gzip.compress(file.read_bytes())) for file in folder.glob("*.onnx"))
    return f"{size / 1e6:.2f} MB, programs packed {packed / 1e6:.2f} MB"


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
