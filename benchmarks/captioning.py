"""Captioning speed in images per second, compared with hardware limits and other programs.

    python benchmarks/captioning.py [--model DIR --photographs DIR]
        [--transformers] [--memory] [--only PART] [--rounds N]

All of it runs on the processor; `gpu.py` is for a GPU. In each part, the variants take turns;
speeds are medians over the rounds.

- files: `caption_files` from JPEG to caption, beam 3 / the rate of decoding and encoding alone,
  1 / (1 / decoding alone + 1 / CNN alone), each at its best. Target: at least 0.85. The model's
  own search runs too, without a target.
- exports: the CNN alone / the same CNN exported to ONNX and run by onnxruntime and OpenVINO with as
  many threads, each at its best batch size. Target: at least 1.0 of the faster one. The cosine of
  the features to eager fp32 must be at least 0.999. Engines that are not installed are left out.
- plain: from JPEG to caption / a plain program: one image at a time, eager fp32 CNN, beam search
  over Python lists; beam 5 for both. Target: at least 8.
- search: batched beam search of 64 images / the plain beam search, image by image, on the same
  features, beam 5. Target: at least 15. A third search, without a target, steps the K hypotheses
  of an image together. Two more record the probabilities of words, and alternatives.
- transformers (`--transformers`): from pixels to caption, greedy / `generate` of BLIP-base and
  ViT-GPT2 with random weights. Target: at least 100.
- memory (`--memory`): peak memory of captioning 50,000 images to a file / 1,000 images. Target: at
  most 1.05.

With `--model` (of one CNN) and `--photographs`, the weights are trained and the images real.
Otherwise the CNN is torchvision's mobilenet_v2 with random weights and batch norm statistics from
the images. The decoder is the one of `configs/flickr8k.yaml` with tied words and 2,540 words.
Random weights never end a caption, so the effect of the hidden state is scaled up until words are
as uneven as in a trained model, and the end token's bias is set for ten words per caption. The
images are smooth noise, 640 x 480, JPEG quality 90. Random weights amplify rounding, so judge the
cosine with trained weights. The exit code is 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Any

import torch
from common import check, describe_machine, noise_jpeg
from PIL import Image
from torch import Tensor, nn
from torchvision import models, transforms

from captioner.captioner import Captioner
from captioner.captioning.records import caption_files
from captioner.captioning.sources import Item
from captioner.config import Config, DecoderConfig, load_config
from captioner.decoder.decoder import Decoder
from captioner.encoder.backbones import build_backbone, remove_head
from captioner.encoder.encoder import Encoder, FrozenEncoder
from captioner.images.decode import read_image
from captioner.system.workers import WithinMemory, workers
from captioner.text import Vocabulary

WORDS = 2540
IMAGES = 512
SHARPNESS = 80  # gives words the log-probabilities of a trained model instead of -log V
NOT_RANKED = {"neighbours": 0}  # the other programs have no re-ranking
ROUNDS = 3  # measured rounds; `--rounds` changes it

MEMORY = """
import sys
from pathlib import Path
from captioner.captioning.job import caption_to_file
from captioner.captioning.sources import Item
from captioner.captioner import Captioner

model, pictures, count = sys.argv[1:]
paths = sorted(Path(pictures).iterdir())
items = (Item(str(i), paths[i % len(paths)]) for i in range(int(count)))
output = Path(pictures).parent / f"{count}.jsonl"
done = caption_to_file(lambda: Captioner.load(model), items, output, model="")
assert (done.images, done.failed) == (int(count), 0)
# VmHWM, because `ru_maxrss` starts with the peak of the parent process.
status = Path("/proc/self/status").read_text()
print(int(status.split("VmHWM:")[1].split()[0]) / 1024)
"""


@dataclass(frozen=True, eq=False)
class Scene:
    """Captioner and images of all parts.

    Attributes:
        captioner: the captioner.
        files: image files.
        pixels: preprocessed images, uint8 (N, 3, S, S).
        features: features of the images, (N, F).
    """

    captioner: Captioner
    files: list[Path]
    pixels: Tensor
    features: Tensor

    def items(self) -> Iterator[Item]:
        """Return the images as items for `caption_files`."""
        return (Item(file.name, file) for file in self.files)


def real_scene(model: Path, photographs: Path) -> Scene:
    """Load a trained captioner and photographs."""
    captioner = Captioner.load(model, "cpu")
    if len(captioner.encoder.cnns) > 1:
        sys.exit(f"{model}: has several CNNs; give a model with one CNN")
    captioner.encoder.mirrored = False  # the other programs encode no mirrored images
    captioner.decoding = captioner.decoding.model_copy(update=NOT_RANKED)
    files = sorted(photographs.glob("*.jpg"))[:IMAGES]
    pixels = decode(captioner.encoder, files)
    features = captioner.encoder(pixels)
    lengths = words_of(captioner, features)
    print(f"{len(files)} photographs; captions of {mean(lengths):.1f} words")
    return Scene(captioner, files, pixels, features)


def random_scene(folder: Path) -> Scene:
    """Draw images and build a captioner with random weights."""
    torch.manual_seed(0)
    files = [folder / f"{i:03}.jpg" for i in range(IMAGES)]
    for seed, file in enumerate(files):
        noise_jpeg(file, seed=seed, size=(640, 480))
    config = load_config("flickr8k", ["decoder.tie_weights=true"])
    captioner, pixels, features = random_captioner(config, files, folder)
    lengths = words_of(captioner, features)
    print(
        f"{IMAGES} JPEGs of 640 x 480, {mean(f.stat().st_size for f in files) / 1e3:.0f} kB each; "
        f"end token's bias {captioner.decoder.output.bias[Vocabulary.eos_id]:.2f} for captions of "
        f"{mean(lengths):.1f} words ({min(lengths)} to {max(lengths)})"
    )
    return Scene(captioner, files, pixels, features)


def random_captioner(
    config: Config, files: list[Path], folder: Path, device: str = "cpu", words: int = WORDS
) -> tuple[Captioner, Tensor, Tensor]:
    """Build a captioner with mobilenet_v2 and random weights, whose captions have ten words.

    Args:
        config: its decoder, with tied words, its search and the size and grid of its images.
        files: images, for the statistics.
        folder: for the weights.
        device: of the captioner.
        words: size of the vocabulary.

    Returns:
        The captioner, and of the images the pixels, uint8 (N, 3, S, S), and features, (N, F).
    """
    size, name = config.encoder.image_size, "mobilenet_v2"
    encoder = FrozenEncoder.create(name, "none", image_size=size)
    pixels = decode(encoder, files)
    weights = folder / f"{name}.pth"
    torch.save(measured(models.mobilenet_v2(), encoder, pixels[:64]).state_dict(), weights)
    grid = config.encoder.grid if config.decoder.attention == "spatial" else 0
    encoder = FrozenEncoder.create(
        name, str(weights), image_size=size, grid=grid, grid_channels=config.encoder.grid_channels
    )
    known = tuple(f"word{i}" for i in range(words - len(Vocabulary.specials)))
    vocabulary = Vocabulary(dict.fromkeys(known, 5), min_count=5)
    decoder = Decoder(config.decoder, vocab_size=words, **encoder.sizes)
    decoding = config.decoding.model_copy(update=NOT_RANKED)
    captioner = Captioner(encoder, decoder, vocabulary, decoding).to(device)
    features = torch.cat([encoder(batch) for batch in pixels.split(32)])
    decoder.measure(features.cpu())
    choose_bias(captioner, features[:128])
    return captioner, pixels, features


def measured(network: nn.Module, encoder: FrozenEncoder, pixels: Tensor) -> nn.Module:
    """Set a random network's batch norm statistics from images."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        network.train()(encoder.spec.preprocess.normalize(pixels))
    return network.eval()


@torch.no_grad()
def choose_bias(captioner: Captioner, features: Tensor) -> None:
    """Set the end token's bias for ten words per caption on average, by bisection."""
    decoder = captioner.decoder
    decoder.to_embed.weight.mul_(SHARPNESS)
    low, high = 0.0, 16.0
    while high - low > 0.05:
        middle = (low + high) / 2
        decoder.output.bias[captioner.vocabulary.eos_id] = middle
        captioner.to(captioner.device)  # rebuilds the decoder's step with the new bias
        low, high = (middle, high) if mean(words_of(captioner, features)) > 10 else (low, middle)


def words_of(captioner: Captioner, features: Tensor) -> list[int]:
    """Return the lengths of the captions."""
    captions = captioner.search(features, captioner.settings(beam_size=3))
    return [len(best.text.split()) for best, *_ in captions]


def decode(encoder: Encoder, files: list[Path]) -> Tensor:
    """Read and crop images, with one thread per core."""
    preprocess = encoder.preprocess
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return torch.stack(list(pool.map(lambda file: preprocess.pixels(read_image(file)), files)))


def race(variants: Mapping[str, tuple[Callable[[], Any], int]]) -> Any:
    """Run variants in turn; return the images per second of each, without the first round.

    Args:
        variants: name -> function and number of images that one call processes.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(1 + ROUNDS):
        for name, (run, _) in variants.items():
            started = perf_counter()
            run()
            seconds[name].append(perf_counter() - started)
    rates = {name: n / median(seconds[name][1:]) for name, (_, n) in variants.items()}
    for name, rate in rates.items():
        print(f"  {name:44} {rate:10,.1f} images per second")
    return rates


def encode(encoder: Callable[[Tensor], Tensor], pixels: Tensor, batch_size: int) -> Tensor:
    """Run a CNN in batches."""
    return torch.cat([encoder(batch) for batch in pixels.split(batch_size)])


def files_part(scene: Scene) -> bool:
    encoder, sizes = scene.captioner.encoder, (8, 64)
    variants = {
        "JPEG to caption, beam 3": lambda: list(
            caption_files(scene.captioner, scene.items(), scene.captioner.settings(beam_size=3))
        ),
        "decoding alone": lambda: decode(encoder, scene.files),
        **{
            f"CNN alone, batches of {n}": lambda n=n: encode(encoder, scene.pixels, n)
            for n in sizes
        },
        "CNN alone, one core per batch": lambda: one_core_each(encoder)(scene.pixels),
        "search alone, beam 3": lambda: [
            scene.captioner.search(some, scene.captioner.settings(beam_size=3))
            for some in scene.features.split(256)
        ],
        "JPEG to caption, the model's own search": lambda: list(
            caption_files(scene.captioner, scene.items(), scene.captioner.settings())
        ),
    }
    whole, decoding, *cnn, _, _ = race(
        {name: (run, len(scene.files)) for name, run in variants.items()}
    ).values()
    possible = 1 / (1 / decoding + 1 / max(cnn))
    return check("files / decoding and CNN alone", whole / possible, at_least=0.85)


def plain_cnn(encoder: FrozenEncoder) -> nn.Module:
    """Build an encoder's CNN as torchvision's eager module."""
    network = build_backbone(encoder.spec.backbone, encoder.spec.builder_args).eval()
    remove_head(network)
    network.load_state_dict(encoder.state)
    return network


class Whole(nn.Module):
    """Normalisation and CNN of an encoder as one module for export."""

    def __init__(self, encoder: FrozenEncoder) -> None:
        super().__init__()
        self.preprocess, self.network = encoder.spec.preprocess, plain_cnn(encoder)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode a batch."""
        features: Tensor = self.network(self.preprocess.normalize(pixels)).flatten(1)
        return features


def exports_part(scene: Scene) -> bool:
    (encoder,), pixels = scene.captioner.encoder.cnns, scene.pixels[:256]
    exact = FrozenEncoder(encoder.spec, encoder.state, "fp32")
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation warnings of the exporter
        file = Path(name) / "cnn.onnx"
        engines: dict[str, Callable[[int], Callable[[Tensor], Tensor]]] = {}
        for label, module, make_engine in (
            ("onnxruntime", "onnxruntime", run_onnxruntime),
            ("OpenVINO", "openvino", run_openvino),
        ):
            try:
                import_module("onnx")
                engines[label] = make_engine(import_module(module), file)
            except ImportError as error:
                print(f"  {label} skipped: {error}")
        if engines:
            torch.onnx.export(
                Whole(exact),
                (pixels[:1],),
                file,
                dynamo=False,
                input_names=["pixels"],
                dynamic_axes={"pixels": {0: "batch"}},
            )
        variants: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
            "ours, batches of 8": (encoder, 8),
            "ours, batches of 64": (encoder, 64),
            "ours, one core per batch": (one_core_each(encoder), len(pixels)),
        }
        for label, make in engines.items():
            variants |= {f"{label}, batches of {n}": (make(n), n) for n in (1, 4, 16, 32)}
        if "OpenVINO" in engines:
            alone = run_openvino(import_module("openvino"), file, on_each_core=True)(4)
            variants["OpenVINO, batches of 4 on each core"] = (alone, len(pixels))
        rates = race({
            name: (lambda run=run, n=n: encode(run, pixels, n), len(pixels))
            for name, (run, n) in variants.items()
        })  # fmt: skip
    best = {
        engine: max(rate for name, rate in rates.items() if name.startswith(engine))
        for engine in ("ours", *engines)
    }
    met = True
    if engines:
        fastest = max(engines, key=best.__getitem__)
        met = check(f"CNN alone / {fastest}", best["ours"] / best[fastest], at_least=1.0)
    cosines = torch.cosine_similarity(encode(encoder, pixels, 32), encode(exact, pixels, 32))
    print(f"  smallest cosine to fp32 {cosines.min():.4f}, mean {cosines.mean():.5f}")
    return met & check("mean cosine to fp32", cosines.mean().item(), at_least=0.999)


def one_core_each(encoder: Encoder) -> Callable[[Tensor], Tensor]:
    """Return a function that encodes as captioning does: each piece of a batch on one core."""

    def run(pixels: Tensor) -> Tensor:
        with workers(None, encoder.device) as crew:
            return torch.cat(crew.compute(WithinMemory(encoder), pixels, encoder.images_per_pass))

    return run


def run_onnxruntime(module: Any, file: Path) -> Callable[[int], Callable[[Tensor], Tensor]]:
    """Return a function that builds a runner for a batch size."""

    def make(_: int) -> Callable[[Tensor], Tensor]:
        options = module.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = module.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        return lambda pixels: torch.from_numpy(session.run(None, {"pixels": pixels.numpy()})[0])

    return make


def run_openvino(
    module: Any, file: Path, *, on_each_core: bool = False
) -> Callable[[int], Callable[[Tensor], Tensor]]:
    """Return a function that builds a runner for a batch size; OpenVINO chooses the precision.

    With on_each_core, each core has its own batch; otherwise all cores work on one batch.
    """

    def make(batch_size: int) -> Callable[[Tensor], Tensor]:
        core, cores = module.Core(), torch.get_num_threads()
        network = core.read_model(file)
        network.reshape([batch_size, *network.inputs[0].partial_shape[1:]])
        settings = {"INFERENCE_NUM_THREADS": cores, "NUM_STREAMS": cores if on_each_core else 1}
        compiled = core.compile_model(network, "CPU", settings)
        if not on_each_core:
            return lambda pixels: torch.from_numpy(compiled(pixels.numpy())[0].copy())
        queue = module.AsyncInferQueue(compiled, 2 * cores)
        outputs: dict[int, Tensor] = {}
        queue.set_callback(
            lambda request, i: outputs.update(
                {i: torch.from_numpy(request.get_output_tensor(0).data.copy())}
            )
        )

        def run(pixels: Tensor) -> Tensor:
            batches = pixels.split(batch_size)
            for i, batch in enumerate(batches):
                queue.start_async([batch.numpy()], i)
            queue.wait_all()
            return torch.cat([outputs[i] for i in range(len(batches))])

        return run

    return make


class Plain:
    """A common captioning program: one image at a time, eager fp32."""

    def __init__(self, captioner: Captioner) -> None:
        self.words, self.settings = captioner.vocabulary, captioner.decoding
        self.decoder = captioner.decoder
        self.cnn = plain_cnn(*captioner.encoder.cnns)
        self.transform = transforms.Compose([
            transforms.Resize(224),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ])  # fmt: skip
        embedding = self.decoder.embedding
        lstm = self.decoder.cell
        self.cell = nn.LSTMCell(lstm.input_size, lstm.hidden_size)
        self.cell.load_state_dict({k.removesuffix("_l0"): v for k, v in lstm.state_dict().items()})
        self.embed = embedding

    @torch.no_grad()
    def caption(self, file: Path, beam_size: int) -> list[int]:
        """Caption one file."""
        picture = self.transform(Image.open(file).convert("RGB"))
        return self.search(self.cnn(picture[None]), beam_size)

    @torch.no_grad()
    def search(self, features: Tensor, beam_size: int) -> list[int]:
        """Search for the caption of one image, one hypothesis per step."""
        h, c = self.decoder.init_hidden(features)
        live = [([self.words.bos_id], 0.0, h, c)]
        finished: list[tuple[list[int], float]] = []
        for _ in range(self.settings.max_length):
            candidates = []
            for ids, total, h, c in live:
                word = torch.tensor([ids[-1]], device=h.device)
                new_h, new_c = self.cell(self.embed(word), (h, c))
                log_probs = self.decoder.to_logits(new_h).log_softmax(dim=1)
                values, tokens = log_probs[0].topk(beam_size + 1)
                for value, token in zip(values, tokens, strict=True):
                    candidates.append(([*ids, token.item()], total + value.item(), new_h, new_c))
            candidates.sort(key=lambda candidate: candidate[1], reverse=True)
            ended = [each for each in candidates[:beam_size] if self.ends(each[0])]
            finished += [(ids, self.score(ids, total)) for ids, total, *_ in ended]
            live = [each for each in candidates if not self.ends(each[0])][:beam_size]
            if len(finished) >= beam_size:
                break
        finished = finished or [(ids, self.score(ids, total)) for ids, total, *_ in live]
        return max(finished, key=lambda each: each[1])[0]

    @torch.no_grad()
    def search_together(self, features: Tensor, beam_size: int) -> list[int]:
        """Search for the caption of one image, all its hypotheses per step."""
        h, c = self.decoder.init_hidden(features)
        live, totals = [[self.words.bos_id]], torch.zeros(1, 1, device=h.device)
        finished: list[tuple[list[int], float]] = []
        for _ in range(self.settings.max_length):
            last = torch.tensor([ids[-1] for ids in live], device=h.device)
            h, c = self.cell(self.embed(last), (h, c))
            log_probs = self.decoder.to_logits(h).log_softmax(dim=1)
            values, places = (totals + log_probs).view(-1).topk(2 * beam_size)
            kept, rows, kept_totals = [], [], []
            for rank, (total, place) in enumerate(
                zip(values.tolist(), places.tolist(), strict=True)
            ):
                row, token = divmod(place, log_probs.shape[1])
                ids = [*live[row], token]
                if self.ends(ids):
                    finished += [(ids, self.score(ids, total))] if rank < beam_size else []
                elif len(kept) < beam_size:
                    kept.append(ids)
                    rows.append(row)
                    kept_totals.append(total)
            if len(finished) >= beam_size:
                break
            live, h, c = kept, h[rows], c[rows]
            totals = torch.tensor(kept_totals, device=h.device)[:, None]
        finished = finished or [
            (ids, self.score(ids, total))
            for ids, total in zip(live, totals.flatten().tolist(), strict=True)
        ]
        return max(finished, key=lambda each: each[1])[0]

    def ends(self, ids: list[int]) -> bool:
        """Return whether a hypothesis is finished."""
        return ids[-1] == self.words.eos_id

    def score(self, ids: list[int], total: float) -> float:
        """Return the ranking score; the start token does not count."""
        return total / (len(ids) - 1) ** self.settings.length_penalty


def plain_part(scene: Scene) -> bool:
    plain = Plain(scene.captioner)
    some = scene.files[:24]
    five = scene.captioner.settings(beam_size=5)
    ours, theirs = race({
        "ours, JPEG to caption, beam 5": (
            lambda: list(caption_files(scene.captioner, scene.items(), five)),
            len(scene.files),
        ),
        "one image at a time, beam 5": (lambda: [plain.caption(f, 5) for f in some], len(some)),
    }).values()  # fmt: skip
    return check("ours / one image at a time", ours / theirs, at_least=8)


def search_part(scene: Scene) -> bool:
    plain = Plain(scene.captioner)
    features = scene.features[:64]
    five = scene.captioner.settings(beam_size=5)
    ours, words, alternatives, theirs, together = race({
        "batched beam search, 64 images": (
            lambda: scene.captioner.search(features, five),
            len(features),
        ),
        "the same with words": (
            lambda: scene.captioner.search(features, five, words=True),
            len(features),
        ),
        "the same with 4 alternatives": (
            lambda: scene.captioner.search(features, five, alternatives=4),
            len(features),
        ),
        "one hypothesis at a time": (
            lambda: [plain.search(f[None], 5) for f in features],
            len(features),
        ),
        "an image's hypotheses together": (
            lambda: [plain.search_together(f[None], 5) for f in features],
            len(features),
        ),
    }).values()  # fmt: skip
    plain_lengths = [len(plain.search(f[None], 5)) - 2 for f in features]
    lengths = [len(best.text.split()) for best, *_ in scene.captioner.search(features, five)]
    print(f"  words per caption: ours {mean(lengths):.1f}, plain {mean(plain_lengths):.1f}")
    print(f"with words / without: {words / ours:.2f}, with alternatives: {alternatives / ours:.2f}")
    print(f"ours / an image's hypotheses together: {ours / together:.2f}")
    return check("ours / one hypothesis at a time", ours / theirs, at_least=15)


def transformers_part(scene: Scene) -> bool:
    try:
        hf: Any = import_module("transformers")
    except ImportError as error:
        print(f"  transformers skipped: {error}")
        return True
    tokens, batch = {"max_new_tokens": 12, "min_new_tokens": 12}, 8
    blip = hf.BlipForConditionalGeneration(hf.BlipConfig()).eval()
    settings = hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        hf.ViTConfig(), hf.GPT2Config()
    )
    vit_gpt2 = hf.VisionEncoderDecoderModel(settings).eval()
    for_gpt2 = tokens | {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    large = torch.rand(batch, 3, 384, 384)
    small = torch.rand(batch, 3, 224, 224)

    greedy = scene.captioner.settings(beam_size=1)

    def ours() -> None:
        for some in scene.pixels.split(64):
            scene.captioner.search(scene.captioner.encoder(some), greedy)

    def blip_base() -> None:
        blip.generate(pixel_values=large, do_sample=False, num_beams=1, **tokens)

    def vit() -> None:
        vit_gpt2.generate(pixel_values=small, do_sample=False, num_beams=1, **for_gpt2)

    fast, *slow = race({
        "ours, pixels to caption, greedy": (ours, len(scene.files)),
        f"BLIP-base, greedy, batches of {batch}": (blip_base, batch),
        f"ViT-GPT2, greedy, batches of {batch}": (vit, batch),
    }).values()  # fmt: skip
    met = check("ours / BLIP-base", fast / slow[0], at_least=100)
    return met & check("ours / ViT-GPT2", fast / slow[1], at_least=100)


def memory_part(_: Scene) -> bool:
    torch.manual_seed(0)
    words = tuple(f"word{i}" for i in range(WORDS - len(Vocabulary.specials)))
    vocabulary = Vocabulary(dict.fromkeys(words, 5), min_count=5)
    encoder = FrozenEncoder.create("squeezenet1_1", "none", image_size=64)
    decoder = Decoder(DecoderConfig(), vocab_size=WORDS, feature_size=encoder.feature_size)
    with torch.no_grad():
        decoder.output.bias[vocabulary.eos_id] = 4  # short captions take less time
    with tempfile.TemporaryDirectory() as name:
        model, pictures = Path(name) / "model", Path(name) / "pictures"
        Captioner(encoder, decoder, vocabulary).save(model)
        pictures.mkdir()
        for seed in range(200):
            noise_jpeg(pictures / f"{seed}.jpg", seed=seed, size=64)
        peaks = []
        for count in (1_000, 50_000):
            command = [sys.executable, "-c", MEMORY, str(model), str(pictures), str(count)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            peaks.append(float(output))
            print(f"  {f'{count:,} images':44} {peaks[-1]:10,.1f} MiB peak memory")
    return check("peak memory of 50,000 / 1,000 images", peaks[1] / peaks[0], at_most=1.05)


PARTS: dict[str, Callable[[Scene], bool]] = {
    "files": files_part,
    "exports": exports_part,
    "plain": plain_part,
    "search": search_part,
    "transformers": transformers_part,
    "memory": memory_part,
}
ON_REQUEST = ("transformers", "memory")


def main() -> int:
    global ROUNDS  # noqa: PLW0603
    parser = argparse.ArgumentParser()
    for name in ON_REQUEST:
        parser.add_argument(f"--{name}", action="store_true", help=f"also run the part {name}")
    parser.add_argument("--only", choices=PARTS, help="run one part")
    parser.add_argument("--model", type=Path, help="a trained model directory")
    parser.add_argument("--photographs", type=Path, help="a folder of JPEG files")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="measured rounds")
    given = vars(parser.parse_args())
    chosen = [given["only"]] if given["only"] else [n for n in PARTS if given.get(n, True)]
    ROUNDS = given["rounds"]
    print(describe_machine())
    with tempfile.TemporaryDirectory() as name:
        real = given["model"], given["photographs"]
        scene = real_scene(*real) if all(real) else random_scene(Path(name))
        met = True
        for part in chosen:
            print(f"{part}:")
            met &= PARTS[part](scene)
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
