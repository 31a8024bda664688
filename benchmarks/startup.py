"""Start-up time of `captioner`.

    python benchmarks/startup.py [--model DIR]

Ratios of median wall times of whole processes that take turns:

- `captioner --help` / `python -c pass`: at most 5; the command imports neither torch nor numpy.
- `captioner caption one.jpg` / a script that imports torch and torchvision, builds the same CNN,
  loads the same weights and runs it once on the same image: at most 1.3.
- `captioner caption FOLDER`, run again with nothing left to do, with `--output` and with
  `--format txt` / the same job with `--salvage`, which loads the model first: at most 0.25. The
  ratio to `python -c pass` has no target.

The model is mobilenet_v2 with random weights and an LSTM of 512 units, with a vocabulary of
Flickr8k's size. The first caption, in the second ratio, is also that of the bundled model for
photographs if there is one, or of --model, which should have a mobilenet_v2 too. The images are
noise. The exit code is 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

from common import check, describe_machine, noise_jpeg

from captioner.model_config import bundled_model

HELP_RUNS = 31
CAPTION_RUNS = 7
IMAGES = 16  # of the job with nothing left to do
WORDS = 2540

REFERENCE = """
import sys
import torch
import torchvision
from PIL import Image

picture, weights = sys.argv[1:]
network = torchvision.models.mobilenet_v2()
network.load_state_dict(torch.load(weights, weights_only=True))
network.eval()
transform = torchvision.transforms.Compose([
    torchvision.transforms.Resize(256),
    torchvision.transforms.CenterCrop(224),
    torchvision.transforms.ToTensor(),
    torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
])
with torch.inference_mode():
    print(network(transform(Image.open(picture).convert("RGB"))[None]).argmax().item())
"""

NOTHING_HEAVY = """
import sys
from captioner.cli import main
main(["--help"], standalone_mode=False)
heavy = {"torch", "torchvision", "numpy"} & sys.modules.keys()
sys.exit(f"--help imports {', '.join(sorted(heavy))}" if heavy else 0)
"""


def make_model(folder: Path) -> Path:
    """Save a captioner with random weights; return the path of its CNN's state dict."""
    import torch
    from torchvision import models

    from captioner.captioner import Captioner
    from captioner.config import DecoderConfig
    from captioner.decoder.decoder import Decoder
    from captioner.encoder.encoder import FrozenEncoder
    from captioner.text import Vocabulary

    state = folder / "mobilenet_v2.pth"
    torch.save(models.mobilenet_v2().state_dict(), state)
    words = tuple(f"word{i}" for i in range(WORDS - len(Vocabulary.specials)))
    vocabulary = Vocabulary(dict.fromkeys(words, 5), min_count=5)
    encoder = FrozenEncoder.create("mobilenet_v2", str(state))
    decoder = Decoder(
        DecoderConfig(), vocab_size=len(vocabulary), feature_size=encoder.feature_size
    )
    Captioner(encoder, decoder, vocabulary).save(folder / "model")
    return state


def take_turns(commands: dict[str, list[str]], runs: int, folder: Path) -> dict[str, float]:
    """Run commands in turn; return the median of each in seconds, without the first round."""
    # An installed program has bytecode: here from the second round on.
    bytecode = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}
    environment = os.environ | bytecode
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(1 + runs):
        for name, command in commands.items():
            started = perf_counter()
            subprocess.run(command, env=environment, check=True, capture_output=True)
            seconds[name].append(perf_counter() - started)
    return {name: median(times[1:]) for name, times in seconds.items()}


def report(times: dict[str, float], *targets: float) -> bool:
    """Print the medians, and the ratios of the first ones to the last one."""
    for name, seconds in times.items():
        print(f"{name:34} {seconds * 1e3:10,.1f} ms")
    *ours, (_, base) = times.items()
    named = zip(ours, targets, strict=True)
    met = [check(name, seconds / base, at_most=most) for (name, seconds), most in named]
    return all(met)


def nothing_left(folder: Path, model: Path) -> dict[str, list[str]]:
    """Finish jobs with and without `--output`; return the commands that find nothing to do."""
    (folder / "images").mkdir()
    for number in range(IMAGES):
        noise_jpeg(folder / "images" / f"{number}.jpg", seed=number)
    job = [sys.executable, "-m", "captioner", "caption", str(folder / "images")]
    job += ["--model", str(model)]
    output = [*job, "--output", str(folder / "captions.jsonl")]
    commands = {"nothing to do, --output": output, "nothing to do, txt": [*job, "--format", "txt"]}
    for command in commands.values():
        subprocess.run(command, check=True, capture_output=True)
    return commands | {"nothing to do, the model first": [*output, "--salvage"]}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, help="for the first caption too")
    given = parser.parse_args().model
    print(describe_machine())
    python, captioner = [sys.executable], [sys.executable, "-m", "captioner"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        picture = folder / "one.jpg"
        noise_jpeg(picture, seed=0)
        state = make_model(folder)
        subprocess.run([*python, "-c", NOTHING_HEAVY], check=True, stdout=subprocess.DEVNULL)
        starting = {
            "captioner --help": [*captioner, "--help"],
            "python -c pass": [*python, "-c", "pass"],
        }
        quick = report(take_turns(starting, HELP_RUNS, folder), 5)
        reference = [*python, "-c", REFERENCE, str(picture), str(state)]
        ours = [*captioner, "caption", str(picture), "--model", str(folder / "model")]
        captioning = {
            "captioner caption one.jpg": ours,
            "torch, torchvision, the CNN once": reference,
        }
        if model := given or bundled_model("photos"):
            named = [*captioner, "caption", str(picture), "--model", str(model)]
            captioning = {f"the same with {model.name}": named} | captioning
        targets = [1.3] * (len(captioning) - 1)
        quick &= report(take_turns(captioning, CAPTION_RUNS, folder), *targets)
        again = nothing_left(folder, folder / "model")
        again["python -c pass"] = starting["python -c pass"]
        times = take_turns(again, CAPTION_RUNS, folder)
        start = times.pop("python -c pass")
        quick &= report(times, 0.25, 0.25)
        for what, seconds in times.items():
            print(f"{what} / python -c pass: {seconds / start:.1f}")
    return int(not quick)


if __name__ == "__main__":
    sys.exit(main())
