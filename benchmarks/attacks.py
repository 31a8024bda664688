"""Attack captioner: change files at random, kill processes, flip bits.

    python benchmarks/attacks.py                      # all; about 25 minutes on two cores
    python benchmarks/attacks.py --share 0.05 models journals

The script makes each attack many times, from one seed, on a tiny captioner with random weights.
An attack ends in one of three ways:

- `done`: there is a result, and it is correct where a correct one is known.
- `refused`: captioner raised one error of its own, with short lines and no control characters.
- failed: another exception, a wrong result, or a process that hangs or dies.

The script prints a Markdown table, and how to repeat each failure. If there is a failure, it exits
with code 1.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import io
import json
import lzma
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from common import describe_machine
from safetensors.torch import load_file, save_file

from captioner.captioner import Captioner
from captioner.captioning.job import JobOptions, caption_to_file
from captioner.captioning.journal import journals_of
from captioner.captioning.records import CaptioningOptions, caption_files
from captioner.captioning.sources import list_images
from captioner.errors import CaptionerError
from captioner.training.run import train

import toys
from hostile_tars import sparse_member

SECONDS = 60  # limit for one attack; each usually takes a few seconds
MAX_LINE, MAX_LINES = 1000, 40  # limits for an error: characters of a line, and lines
PROCESSES = multiprocessing.get_context("forkserver")
ODD = (
    *(None, True, -1, 0, 1, 2**31, 2**63, 2**64, 10**30, 1e-320, 1e308, -0.0),
    *("", " ", "\0", "\x1b[31m", "\u202e", "\ud800", "a" * 100_000, "../../etc/passwd", "cuda:99"),
    *([], {}, [[]], {"": None}, [1] * 1000),
)


@dataclass
class Tally:
    """The outcomes of one kind of attack."""

    name: str
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    note: str = ""

    @property
    def count(self) -> int:
        """Number of attacks."""
        return self.outcomes.total()

    def row(self) -> str:
        """Return a line of the table."""
        outcomes = ", ".join(f"{number:,} {what}" for what, number in self.outcomes.most_common())
        note = f"; {self.note}" if self.note else ""
        return f"| {self.name} | {self.count:,} | {outcomes}{note} |"

    def add(self, what: str, attack: Callable[[], str | None]) -> None:
        """Make one attack.

        Args:
            what: says how to repeat the attack.
            attack: makes the attack and returns the outcome; None: done.
        """
        try:
            with within(SECONDS):
                outcome = attack() or "done"
        except CaptionerError as error:
            outcome = "refused"
            if wrong := fault_in(str(error)):
                outcome = "FAILED"
                self.failures.append(f"{what}: {type(error).__name__} is {wrong}")
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            outcome = "FAILED"
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(last.filename).name}:{last.lineno}"
            self.failures.append(f"{what}: {error!r:.300} at {place}")
        self.outcomes[outcome] += 1


def fault_in(message: str) -> str | None:
    """Return what is wrong with an error message, or None."""
    lines = message.splitlines()
    if len(lines) > MAX_LINES or max(map(len, lines), default=0) > MAX_LINE:
        return f"{len(lines)} lines, {len(message):,} characters"
    odd = [c for c in message if c != "\n" and not c.isprintable()]
    return f"not printable: {odd[:5]!r}" if odd else None


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raise `TimeoutError` if the block takes longer."""

    def give_up(*_: Any) -> None:
        raise TimeoutError(f"took more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def peak_megabytes() -> int:
    """Return the peak memory of this process, in megabytes."""
    status = Path("/proc/self/status").read_text()
    return (
        int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) >> 10
    )


def damage(data: bytes, dice: random.Random) -> bytes:
    """Change bytes at random: flip, cut, insert, double, zero or reverse some."""
    kind = dice.choice(("flip", "cut", "insert", "double", "zero", "swap"))
    changed = bytearray(data)
    if not changed:
        return dice.randbytes(dice.randrange(1, 50))
    at, end = sorted(dice.randrange(len(changed) + 1) for _ in range(2))
    if kind == "flip":
        for _ in range(dice.choice((1, 1, 3, 30))):
            changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
    elif kind == "cut":
        del changed[at:]
    elif kind == "insert":
        text = dice.choice(
            (b"\xff", b"\0" * 99, b"\x1b[2J", "\u202e".encode(), b"\r\n", b"{", b'"')
        )
        changed[at:at] = text * dice.choice((1, 7, 999))
    elif kind == "double":
        changed[at:at] = changed[at : min(end, at + 2**16)]
    elif kind == "zero":
        changed[at:end] = bytes(end - at)
    else:
        changed[at:end] = changed[at:end][::-1]
    return bytes(changed)


def change_json(tree: Any, dice: random.Random) -> Any:
    """Change one value, key or item somewhere in parsed JSON."""
    if isinstance(tree, dict) and tree and dice.random() < 0.85:
        key = dice.choice(list(tree))
        kind = dice.random()
        rest = {name: value for name, value in tree.items() if name != key}
        if kind < 0.1:
            return rest
        if kind < 0.2:
            return rest | {str(dice.choice(ODD))[:1000]: tree[key]}
        return tree | {key: change_json(tree[key], dice)}
    if isinstance(tree, list) and tree and dice.random() < 0.85:
        at = dice.randrange(len(tree))
        return [*tree[:at], change_json(tree[at], dice), *tree[at + 1 :]]
    if isinstance(tree, int | float) and dice.random() < 0.5:
        return dice.choice((tree + 1, -tree, tree * 1000, tree / 3, str(tree)))
    return dice.choice(ODD)


class Marked:
    """An object that runs a program when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def models(count: int, dice: random.Random, work: Path) -> Tally:
    """Change a model directory, then load it and caption an image."""
    tally = Tally(
        "model directory: bytes, JSON values and tensors changed, files swapped or pickled"
    )
    toys.captioner().save(work / "one")
    toys.captioner(toys.pair(), hidden_size=6, num_layers=2, cell="gru").save(work / "two")
    good = {
        name: {f.name: f.read_bytes() for f in (work / name).iterdir()} for name in ("one", "two")
    }
    picture = toys.draw(work / "a.png", "red")
    executed = work / "executed"

    def attack(number: int) -> Callable[[], str | None]:
        folder = work / f"model{number}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        files = dict(good[dice.choice(("one", "two"))])
        name = dice.choice(list(files))
        kind = dice.random()
        if name.endswith(".json") and kind < 0.6:
            try:
                tree = change_json(json.loads(files[name]), dice)
                files[name] = json.dumps(tree).encode("utf-8", "surrogatepass")
            except ValueError:
                files[name] = damage(files[name], dice)
        elif name.endswith("safetensors") and kind < 0.5:
            files[name] = change_tensors(work / "weights", files[name], dice)
        elif kind < 0.63 and name.endswith("safetensors"):
            files[name] = pickle.dumps({"state": Marked(executed)})
        elif kind < 0.66:
            files[name] = good["two" if files == good["one"] else "one"][name]
        elif kind < 0.7:
            del files[name]
        else:
            files[name] = damage(files[name], dice)
        for file, content in files.items():
            (folder / file).write_bytes(content)

        def load() -> None:
            text = Captioner.load(folder, "cpu").caption(picture)
            if not isinstance(text, str) or not all(c.isprintable() for c in text):
                raise ValueError(f"the caption is not printable: {text!r:.100}")

        return load

    for number in range(count):
        tally.add(f"model {number}", attack(number))
        if (work / f"model{number}").exists() and not tally.failures:
            shutil.rmtree(work / f"model{number}")
    if executed.exists():
        tally.failures.append("a pickle was executed")
    safe = "" if executed.exists() else "nothing executed; "
    tally.note = f"{safe}{peak_megabytes():,} MB at most"
    return tally


def change_tensors(path: Path, data: bytes, dice: random.Random) -> bytes:
    """Change the values, type, shape or name of one tensor in a file."""
    path.write_bytes(data)
    tensors = load_file(path)
    name = dice.choice(list(tensors))
    tensor = tensors[name]
    kind = dice.randrange(8)
    if kind == 0:
        tensors[name] = (
            torch.full_like(tensor, dice.choice((float("inf"), float("nan"))))
            if tensor.is_floating_point()
            else -tensor
        )
    elif kind == 1:
        tensors[name] = torch.zeros_like(tensor)
    elif kind == 2:
        tensors[name] = (tensor.double() * 1e30).to(tensor.dtype)
    elif kind == 3:
        tensors[name] = tensor.to(
            dice.choice((torch.float16, torch.int64, torch.bool, torch.float64))
        )
    elif kind == 4:
        tensors[name] = tensor.flatten()[: max(1, tensor.numel() // 2)].clone()
    elif kind == 5:
        tensors[name + "\x1b[31m"] = tensors.pop(name)
    elif kind == 6:
        del tensors[name]
    else:
        tensors[name] = tensor.unsqueeze(0)
    save_file(tensors, path)
    return path.read_bytes()


def data(count: int, dice: random.Random, work: Path) -> Tally:
    """Change annotations or images of a data set, then prepare it for training."""
    from captioner.config import Config
    from captioner.data.prepare import open_encoder, prepare

    tally = Tally(
        "data set: annotations and images changed (Flickr, Karpathy, COCO, CSV, TSV, JSONL)"
    )
    config = toys.config(work / "weights_of")
    encoder = open_encoder(config, torch.device("cpu"))
    layouts = write_layouts(work / "layouts")

    def attack(number: int) -> Callable[[], str | None]:
        kind = dice.choice(list(layouts))
        folder = work / f"data{number}"
        shutil.copytree(work / "layouts" / kind, folder)
        files = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix != ".png")
        for _ in range(dice.choice((1, 1, 3))):
            path = dice.choice(files)
            if dice.random() < 0.15:
                path = dice.choice(sorted(folder.rglob("*.png")))
            content = path.read_bytes() if path.is_file() else b""
            roll = dice.random()
            if roll < 0.05:
                path.unlink(missing_ok=True)
            elif roll < 0.08 and path.is_file():
                path.unlink()
                path.mkdir()
            elif path.suffix == ".json" and roll < 0.6 and content:
                try:
                    tree = change_json(json.loads(content), dice)
                    path.write_bytes(json.dumps(tree).encode("utf-8", "surrogatepass"))
                except (ValueError, RecursionError):
                    path.write_bytes(damage(content, dice))
            elif not path.is_dir():
                path.write_bytes(damage(content, dice))
        root = folder / layouts[kind] if dice.random() < 0.5 else folder
        tree = config.model_dump()
        tree["data"] |= {"root": str(root)}
        said: list[str] = []

        def read() -> None:
            try:
                prepare(Config.model_validate(tree), encoder, said.append)
            finally:
                for line in said:
                    if any(not c.isprintable() and c != "\n" for c in line):
                        raise ValueError(f"a message is not printable: {line!r:.200}")

        return read

    for number in range(count):
        tally.add(f"data {number}", attack(number))
        shutil.rmtree(work / f"data{number}")
    tally.note = f"{peak_megabytes():,} MB at most"
    return tally


def write_layouts(folder: Path) -> dict[str, str]:
    """Write one data set in every layout; return the annotation file of each layout."""
    splits = {"train": range(3), "val": [5], "test": [6]}
    rows = [
        (
            f"{split}_{colour}_{shade}.png",
            split,
            (f"a {colour} square", f"A {colour} square in the middle."),
        )
        for split, shades in splits.items()
        for shade in shades
        for colour in toys.COLOURS
    ]

    def start(name: str) -> Path:
        top = folder / name
        for file, _, _ in rows:
            colour, shade = file.split("_")[1], int(file.split("_")[2][0])
            toys.draw(top / "Images" / file, colour, shade)
        return top

    flickr = start("flickr")
    lines = [f"{f}#{i}\t{c}" for f, _, captions in rows for i, c in enumerate(captions)]
    (flickr / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n")
    for name, split in (("train", "train"), ("dev", "val"), ("test", "test")):
        names = [f for f, s, _ in rows if s == split]
        (flickr / f"Flickr_8k.{name}Images.txt").write_text("\n".join(names) + "\n")
    karpathy = start("karpathy")
    about = [
        {"filename": f, "split": s, "imgid": n, "sentences": [{"raw": c} for c in captions]}
        for n, (f, s, captions) in enumerate(rows)
    ]
    (karpathy / "dataset.json").write_text(json.dumps({"images": about, "dataset": "toy"}))
    coco = start("coco")
    (coco / "annotations").mkdir()
    for name, split in (("train2017", "train"), ("val2017", "val")):
        (coco / name).mkdir()
        mine = [(n, f, captions) for n, (f, s, captions) in enumerate(rows) if s == split]
        for _, file, _ in mine:
            shutil.copy(coco / "Images" / file, coco / name / file)
        tree = {
            "images": [{"id": n, "file_name": f} for n, f, _ in mine],
            "annotations": [
                {"id": 10 * n + i, "image_id": n, "caption": c}
                for n, _, captions in mine
                for i, c in enumerate(captions)
            ],
        }
        (coco / "annotations" / f"captions_{name}.json").write_text(json.dumps(tree))
    shutil.rmtree(coco / "Images")
    for name, comma in (("csv", ","), ("tsv", "\t")):
        table = ["image caption split".replace(" ", comma)]
        table += [comma.join((f, c, s)) for f, s, captions in rows for c in captions]
        (start(name) / f"captions.{name}").write_text("\n".join(table) + "\n")
    jsonl = [{"image": f, "captions": list(captions), "split": s} for f, s, captions in rows]
    (start("jsonl") / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in jsonl))
    return {
        "flickr": "Flickr8k.token.txt",
        "karpathy": "dataset.json",
        "coco": "annotations",
        "csv": "captions.csv",
        "tsv": "captions.tsv",
        "jsonl": "captions.jsonl",
    }


def archives(count: int, dice: random.Random, work: Path) -> Tally:
    """Change an archive, or take a bomb, and caption its images."""
    tally = Tally("archive: tar (plain, gzip, bzip2, xz, sparse) and ZIP, changed; and bombs")
    toys.captioner().save(work / "model")
    captioner = Captioner.load(work / "model", "cpu")
    sound = sound_archives()
    bombs = dict(bombs_of(work))

    def attack(number: int) -> Callable[[], str | None]:
        if number < len(bombs):
            path = list(bombs.values())[number]
        else:
            ending = dice.choice(list(sound))
            path = work / f"archive{number}.{ending}"
            path.write_bytes(damage(sound[ending], dice))

        def read() -> str | None:
            small = CaptioningOptions(batch_size=8)
            records = list(caption_files(captioner, list_images([str(path)]), how=small))
            if not records:
                raise ValueError("there is no record")
            for record in records:
                if bool(record.captions) == bool(record.error):
                    raise ValueError(f"needs either captions or an error: {record!r:.200}")
                if record.error and (wrong := fault_in(record.error)):
                    raise ValueError(f"the error is {wrong}")
            return "with failures" if any(record.error for record in records) else None

        return read

    names = list(bombs)
    for number in range(max(count, len(bombs))):
        tally.add(names[number] if number < len(names) else f"archive {number}", attack(number))
        for path in work.glob(f"archive{number}.*"):
            path.unlink()
    tally.note = f"{peak_megabytes():,} MB at most"
    return tally


def sound_archives() -> dict[str, bytes]:
    """Return archives of six images, by file extension."""
    pictures = {f"{n}/{c}.png": toys_png(c, n) for n, c in enumerate(toys.COLOURS)}
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in pictures.items():
            info = tarfile.TarInfo(name if name[0] != "3" else "long" * 60 + name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    plain = tar.getvalue()
    made = {"tar": plain, "tar.gz": gzip.compress(plain), "tar.bz2": bz2.compress(plain)}
    made["tar.xz"] = lzma.compress(plain)
    for name, method in (
        ("stored.zip", zipfile.ZIP_STORED),
        ("deflated.zip", zipfile.ZIP_DEFLATED),
        ("bzip2.zip", zipfile.ZIP_BZIP2),
        ("lzma.zip", zipfile.ZIP_LZMA),
    ):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", method) as packed:
            for member, content in pictures.items():
                packed.writestr(member, content)
        made[name] = file.getvalue()
    return made


def toys_png(colour: str, shade: int) -> bytes:
    """Return an image of one colour as PNG."""
    with tempfile.TemporaryDirectory() as folder:
        return toys.draw(Path(folder, "a.png"), colour, shade).read_bytes()


def bombs_of(work: Path) -> Iterator[tuple[str, Path]]:
    """Write small archives that expand, or claim to expand, to much data."""
    sparse = b"".join(sparse_member(f"{number}.jpg", 500 * 2**20) for number in range(6))
    (work / "sparse.tar").write_bytes(sparse + bytes(1024))
    yield "sparse tar, 6 x 500 MB", work / "sparse.tar"
    zeros = io.BytesIO()
    with gzip.open(zeros, "wb", 9) as file, tarfile.open(fileobj=file, mode="w|") as archive:
        for number in range(4):
            info = tarfile.TarInfo(f"{number}.png")
            info.size = 300 * 2**20
            archive.addfile(info, Zeros(info.size))
    (work / "ratio.tar.gz").write_bytes(zeros.getvalue())
    yield "tar.gz, 4 x 300 MB of zeros", work / "ratio.tar.gz"
    for name, method in (("deflate", zipfile.ZIP_DEFLATED), ("bzip2", zipfile.ZIP_BZIP2)):
        with zipfile.ZipFile(work / f"{name}.zip", "w", method) as packed:
            for number in range(3):
                with packed.open(f"{number}.png", "w") as member:
                    shutil.copyfileobj(Zeros(300 * 2**20), member, 2**20)
        yield f"ZIP ({name}), 3 x 300 MB of zeros", work / f"{name}.zip"
    # The central directory claims a size that the member does not have.
    with zipfile.ZipFile(work / "claims.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a.png", toys_png("red", 1))
    claims = bytearray((work / "claims.zip").read_bytes())
    at = claims.rindex(b"PK\1\2")
    claims[at + 24 : at + 28] = struct.pack("<I", 400 * 2**20)
    (work / "claims.zip").write_bytes(claims)
    yield "ZIP that claims 400 MB", work / "claims.zip"
    # Many entries of the central directory point at the same bytes.
    with zipfile.ZipFile(work / "overlap.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a.png", bytes(2**24))
    whole = (work / "overlap.zip").read_bytes()
    at, end = whole.rindex(b"PK\1\2"), whole.rindex(b"PK\5\6")
    entry = whole[at:end]
    tail = bytearray(whole[end:])
    tail[8:12] = struct.pack("<HH", 200, 200)
    tail[12:16] = struct.pack("<I", 200 * len(entry))
    (work / "overlap.zip").write_bytes(whole[:at] + entry * 200 + bytes(tail))
    yield "ZIP of 200 entries with the same bytes", work / "overlap.zip"


class Zeros(io.RawIOBase):
    """A file of zeros."""

    def __init__(self, size: int):
        self.left = size

    def read(self, size: int = -1) -> bytes:
        """Return at most `size` bytes; -1: all."""
        size = self.left if size < 0 else min(size, self.left)
        self.left -= size
        return bytes(size)


def job(model: Path, pictures: Path, output: Path) -> None:
    """Caption a folder into a file."""
    torch.set_num_threads(1)
    sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    items = list_images([str(pictures)])
    captioner = Captioner.load(model, "cpu")
    asked = captioner.settings(beam_size=2), JobOptions(batch_size=4)
    caption_to_file(lambda: captioner, items, output, *asked, model="toy")


def run_train(config: Any, folder: Path) -> None:
    """Train, or resume a run."""
    torch.set_num_threads(1)
    sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    train(config, folder, resume=True, device="cpu")


def start_process(work: Callable[..., None], *arguments: Any) -> Any:
    """Start a function in a process that has imported all modules already."""
    process = PROCESSES.Process(target=work, args=arguments)
    process.start()
    return process


def seconds_of(work: Callable[..., None], *arguments: Any) -> float:
    """Run a function in its own process; return the seconds it took."""
    began = time.monotonic()
    process = start_process(work, *arguments)
    process.join()
    if process.exitcode:
        raise RuntimeError(f"the process exited with {process.exitcode}")
    return time.monotonic() - began


def draw_pictures(folder: Path, count: int) -> Path:
    """Draw images; number 7 is no image."""
    for number in range(count):
        toys.draw(folder / f"{number:03}.png", list(toys.COLOURS)[number % 6], number)
    (folder / "007.png").write_bytes(b"no picture")
    return folder


def jobs(count: int, dice: random.Random, work: Path) -> Tally:
    """Kill a captioning job several times, then let it finish."""
    tally = Tally("captioning job: SIGKILL at a random moment, then the same command")
    toys.captioner().save(work / "model")
    pictures = draw_pictures(work / "pictures", 60)
    job_of = (job, work / "model", pictures)
    seconds_of(*job_of, work / "warm.jsonl")
    length = seconds_of(*job_of, work / "whole.jsonl")
    right = (work / "whole.jsonl").read_bytes()
    for number in range(count):
        output = work / f"killed{number % 8}" / "out.jsonl"
        process = start_process(*job_of, output)
        process.join(dice.uniform(0.1, 1) * length)
        process.kill()
        process.join()
        if number < count - 8:  # each of the eight outputs finishes only in the last round
            tally.outcomes["done"] += 1
            continue

        def end(output: Path = output) -> None:
            seconds_of(*job_of, output)
            if output.read_bytes() != right:
                raise ValueError("the result differs")
            left = {path.name for path in output.parent.iterdir()}
            left -= {path.name for path in journals_of(output)} | {"out.jsonl", "errors.jsonl"}
            if left := {n for n in left if not n.startswith("out.jsonl.journal")}:
                raise ValueError(f"left behind: {left}")

        tally.add(f"job {number}", end)
    tally.note = "" if tally.failures else "the outputs are equal byte for byte"
    return tally


def trainings(count: int, dice: random.Random, work: Path) -> Tally:
    """Kill a training several times, then let it finish."""
    tally = Tally("training: SIGKILL at a random moment, then --resume")
    config = toys.config(work, save_every=4)
    seconds_of(run_train, config, work / "warm")
    length = seconds_of(run_train, config, work / "whole")
    files = {path.name: path.read_bytes() for path in (work / "whole" / "model").iterdir()}
    for number in range(count):
        process = start_process(run_train, config, work / "killed")
        process.join(dice.uniform(0.05, 0.6) * length)
        process.kill()
        process.join()
        if number < count - 1:
            tally.outcomes["done"] += 1

    def end() -> None:
        seconds_of(run_train, config, work / "killed")
        model = work / "killed" / "model"
        if {path.name: path.read_bytes() for path in model.iterdir()} != files:
            raise ValueError("the result differs")
        if left := {p.name for p in (work / "killed").rglob("*")} ^ {
            p.name for p in (work / "whole").rglob("*")
        }:
            left = {name for name in left if not name.startswith("events.out")}
            if left:
                raise ValueError(f"left behind, or missing: {left}")

    tally.add("training", end)
    tally.note = "" if tally.failures else "the models are equal byte for byte"
    return tally


def journals(count: int, dice: random.Random, work: Path) -> Tally:
    """Flip one bit of a journal, then continue the job."""
    tally = Tally("journal: one bit flipped, then the same command")
    toys.captioner().save(work / "model")
    pictures = draw_pictures(work / "pictures", 60)
    job(work / "model", pictures, work / "whole" / "out.jsonl")
    right = (work / "whole" / "out.jsonl").read_bytes()
    # Half of the flips hit the journal of a killed job, which has a write-ahead log.
    process = start_process(job, work / "model", pictures, work / "killed" / "out.jsonl")
    while process.is_alive() and not any(p.stat().st_size > 2**15 for p in journals_and_logs(work)):
        time.sleep(0.005)
    process.kill()
    process.join()
    for number in range(count):
        folder = work / f"flip{number}"
        shutil.copytree(work / ("killed" if number % 2 else "whole"), folder)
        files = [p for p in folder.iterdir() if ".journal" in p.name and p.stat().st_size]
        path = dice.choice(files)
        content = bytearray(path.read_bytes())
        bit = dice.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        (folder / "out.jsonl").unlink(missing_ok=True)

        def go_on(output: Path = folder / "out.jsonl") -> None:
            job(work / "model", pictures, output)
            # The flip may hide one image of a batch, which is then captioned alone.
            if captions_in(output.read_bytes()) != captions_in(right):
                raise ValueError("the captions differ")

        tally.add(f"bit {bit} of {path.name} ({'half' if number % 2 else 'whole'})", go_on)
        shutil.rmtree(folder)
    tally.note = "" if tally.failures else "no wrong caption"
    return tally


def captions_in(output: bytes) -> list[dict[str, Any]]:
    """Return the rows of an output, with scores of four decimals."""
    rows = [json.loads(line) for line in output.splitlines()]
    return [row | {"score": row["score"] and round(row["score"], 4)} for row in rows]


def journals_and_logs(work: Path) -> list[Path]:
    """Return the journal files of the job that will be killed."""
    folder = work / "killed"
    return [p for p in folder.iterdir() if ".journal" in p.name] if folder.is_dir() else []


NAMES = (
    *(
        "config.yaml",
        "model",
        "checkpoints",
        "evaluation",
        "tensorboard",
        "notes.txt",
        "thesis.tex",
    ),
    *("config.json", "model.safetensors", "vocab.json", "preprocessor_config.json", "train.log"),
    *("metrics.jsonl", "curves.png", "step-6.safetensors", "best.safetensors", "report.html"),
    *("predictions.jsonl", "scores.json", "o.jsonl", "o.csv", "o.jsonl.journal", "errors.jsonl"),
    *(
        ".o.jsonl.lock",
        ".o.jsonl.123.part",
        ".model.7.old",
        ".x.old",
        ".movie.part",
        "gradients.png",
    ),
    *("gradients.json", "o.jsonl.journal-wal", "rows.f16", "rows.key", "about.json", "a b", "é"),
)
CONTENTS = (
    b"",
    b"mine\n",
    b"{}",
    b"name: mine\n",
    b"\x89PNG\r\n\x1a\n",
    bytes(3000),
    b"SQLite format 3\0",
)


def grow(folder: Path, dice: random.Random, real: list[Path], depth: int = 0) -> None:
    """Make files, folders and links, with names that captioner uses and others."""
    for name in dice.sample(NAMES, dice.randrange(2, 9)):
        path = folder / name
        kind = dice.random()
        if kind < 0.25 and depth < 2:
            path.mkdir()
            grow(path, dice, real, depth + 1)
        elif kind < 0.32:
            path.symlink_to(dice.choice((folder, folder.parent / "precious", Path("nowhere"))))
        elif kind < 0.42:
            shutil.copy(dice.choice(real), path)
        else:
            path.write_bytes(dice.choice(CONTENTS))
            path.chmod(dice.choice((0o644, 0o600, 0o640, 0o444)))


def picture_of(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Return the mode and the content, or the target of a link, of each path in a folder."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        content: Any = path.readlink() if path.is_symlink() else None
        if content is None and path.is_file():
            content = path.read_bytes()
        found[str(path)] = (mode, content)
    return found


def trees(count: int, dice: random.Random, work: Path) -> Tally:
    """Let each command write into a folder with files of others; no file may change."""
    from click.testing import CliRunner

    from captioner.cli import main as command

    tally = Tally("command that writes, into a folder with files of others")
    config = toys.config(work / "weights_of", epochs=1)
    (work / "toy.yaml").write_text(config.to_yaml())
    run = CliRunner()
    train(config, work / "own", device="cpu")
    toys.captioner().save(work / "spare")
    captioner = Captioner.load(work / "spare", "cpu")
    pictures = draw_pictures(work / "pictures", 6)
    made = run.invoke(command, ["evaluate", "--model", "own", "--output", "scored"])
    if made.exit_code:
        raise RuntimeError(made.output)
    # A user may have copied files that captioner wrote into another folder.
    real = [path for path in (work / "own").rglob("*") if path.is_file()]
    job_of = ["caption", str(pictures), "--model", "own", "--device", "cpu"]
    commands: list[list[str]] = [
        ["train", "toy.yaml", "--output", "{}"],
        ["train", "toy.yaml", "--output", "{}", "--overwrite"],
        ["train", "toy.yaml", "--output", "{}", "--resume"],
        [*job_of, "--output", "{}/o.jsonl"],
        [*job_of, "--output", "{}/o.jsonl", "--overwrite"],
        [*job_of, "--output", "{}/o.csv", "--overwrite"],
        [*job_of, "--output", "{}/thesis.tex", "--format", "text", "--overwrite"],
        [*job_of, "--output", "{}/model", "--format", "jsonl", "--overwrite"],
        ["evaluate", "--model", "own", "--output", "{}"],
        ["score", "scored", "--resamples", "0", "--output", "{}/scores.json"],
        ["score", "scored", "--resamples", "0", "--output", "{}/notes.txt"],
        ["compare", "scored", "scored", "--resamples", "0", "--output", "{}/scores.json"],
        ["gradients", "--model", "own", "--output", "{}"],
        ["features", "toy.yaml"],
        ["save", "{}"],
        ["save", "{}/model"],
        ["save", "{}/notes.txt"],
    ]

    for number in range(count):
        top = work / f"tree{number}"
        folder = top / "home"
        folder.mkdir(parents=True)
        (top / "precious").mkdir()
        (top / "precious" / "thesis.txt").write_text("thesis")
        grow(folder, dice, real)
        inner = [folder, *(p for p in folder.rglob("*") if p.is_dir())]
        place = dice.choice(inner)
        words = [word.replace("{}", str(place)) for word in dice.choice(commands)]
        before = picture_of(top)
        cache = str(place if words[0] == "features" else work / "cache")

        def write(
            words: list[str] = words,
            before: dict[str, Any] = before,
            top: Path = top,
            cache: str = cache,
        ) -> str | None:
            outcome: str | None = None
            try:
                if words[0] == "save":
                    captioner.save(words[1])
                else:
                    done = run.invoke(command, words, env={"CAPTIONER_CACHE": cache})
                    if done.exception and not isinstance(done.exception, SystemExit):
                        raise done.exception
                    outcome = "refused" if done.exit_code else None
            finally:
                after = picture_of(top)
                if lost := [p for p in before if before[p] != after.get(p)]:
                    raise ValueError(f"changed: {lost[:3]}")
            return outcome

        tally.add(f"tree {number}: {' '.join(words)}", write)
        if not tally.failures:
            shutil.rmtree(top)
    tally.note = "0 foreign bytes changed" if not tally.failures else ""
    return tally


def settings(count: int, dice: random.Random, work: Path) -> Tally:
    """Give every setting values at its bounds, outside, far outside, and of other types."""
    from captioner.config import Config, load_config

    tally = Tally("setting of the config: at, just outside and far outside its bounds")
    toys.captioner().save(work / "model")
    captioner = Captioner.load(work / "model", "cpu")
    picture = toys.draw(work / "a.png", "red")
    features = captioner.encode([captioner_picture(picture)])
    numbers = (
        *(-1, 0, 1, 2, 3, 63, 64, 1000, 1001, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 10**30),
        *(0.0, 1e-45, 1e-300, 1e-9, 0.5, 0.999999, 1.0, 1.000001, 30.0, 300.0, 1e300, -0.5),
        *(float("inf"), float("nan"), "1e400", True, None, "", "x" * 5000, "\x1b[31m", [], {}),
    )
    fields = [
        (section, name)
        for section, field in Config.model_fields.items()
        for name in field.annotation.model_fields  # type: ignore[union-attr]
    ]
    asked = [(section, name, value) for section, name in fields for value in numbers]
    for section, name, value in dice.sample(asked, min(count, len(asked))):

        def use(section: str = section, name: str = name, value: Any = value) -> None:
            if section == "decoding":
                captioner.search(features, captioner.settings(**{name: value}))
            else:
                text = json.dumps(value) if isinstance(value, str | list | dict) else str(value)
                load_config(None, [f"{section}.{name}={text}"])

        tally.add(f"{section}.{name} = {value!r:.60}", use)
    return tally


def captioner_picture(path: Path) -> Any:
    """Return an image as a Pillow image."""
    from PIL import Image

    return Image.open(path).convert("RGB")


ATTACKS: dict[str, tuple[int, Callable[[int, random.Random, Path], Tally]]] = {
    "models": (1000, models),
    "data": (500, data),
    "archives": (200, archives),
    "jobs": (40, jobs),
    "trainings": (10, trainings),
    "journals": (100, journals),
    "trees": (200, trees),
    "settings": (3000, settings),
}


def one_kind(name: str, count: int, seed: int, pipe: Any) -> None:
    """Make one kind of attack in its own process, to measure its peak memory."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="attacks-") as folder:
        os.environ["CAPTIONER_CACHE"] = str(Path(folder, "cache"))
        os.chdir(folder)
        Path("weights_of").mkdir()
        stderr, sys.stderr = sys.stderr, Path(os.devnull).open("w")  # noqa: SIM115
        tally = ATTACKS[name][1](count, random.Random(f"{seed} {name}"), Path(folder))
        sys.stderr = stderr
    pipe.send(tally)


def main() -> int:
    """Make the attacks and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", choices=[*ATTACKS, []], help="default: all")
    parser.add_argument(
        "--share", type=float, default=1.0, help="fraction of the attacks; default 1"
    )
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    print(describe_machine(), "\n\n| attack | count | outcome |\n|---|---|---|", sep="")
    failures: list[str] = []
    for name in asked.kinds or ATTACKS:
        receive, send = multiprocessing.Pipe(duplex=False)
        count = max(1, round(ATTACKS[name][0] * asked.share))
        process = multiprocessing.get_context("spawn").Process(
            target=one_kind, args=(name, count, asked.seed, send)
        )
        process.start()
        send.close()
        try:
            tally: Tally = receive.recv()
            print(tally.row(), flush=True)
            failures += [f"{name}: {failure}" for failure in tally.failures]
        except EOFError:
            process.join()
            failures.append(f"{name}: its process exited with {process.exitcode}")
        process.join()
    print("", *failures, sep="\n")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
