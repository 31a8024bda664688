"""Folders as people have them, and everything that captioner writes, tried on them.

`plant` fills a folder by chance, with names that captioner uses too; `COMMANDS` are all that
writes; `changed` says what of the folder is no longer as it was.
"""

from __future__ import annotations

import io
import os
import random
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from captioner.captioner import Captioner
from captioner.captioning.job import JobOptions, caption_to_file
from captioner.captioning.records import Record
from captioner.captioning.sources import list_images
from captioner.captioning.writers import SidecarWriter
from captioner.cli import main
from captioner.config import Config
from captioner.data import scenes
from captioner.data.dataset import Example
from captioner.data.feature_store import FeatureStore
from captioner.errors import CaptionerError
from captioner.evaluation.evaluate import Evaluation, _write
from captioner.evaluation.report import write_report
from captioner.gradients.draw import write_json
from captioner.gradients.study import Study
from captioner.system.ownership import CARD_START, check_files
from captioner.text import Caption
from captioner.training.checkpoint import write_tensors
from captioner.training.run import train

import toys

Snapshot = Mapping[str, tuple[str, int, bytes]]

FILES = (
    *("config.yaml", "train.log", "metrics.jsonl", "curves.png", ".captioner.json", "notes.md"),
    *("config.json", "model.safetensors", "vocab.json", "preprocessor_config.json", "photo.jpg"),
    *("README.md", ".README.md.captioner-4194305-abc.part"),
    *("step-1.safetensors", "step-5 (copy).safetensors", "step-.safetensors", "best.safetensors"),
    *("o.jsonl", "o.jsonl.journal", "o.jsonl.journal.1", "o.jsonl.journal-wal", "errors.jsonl"),
    *("o.csv", "o.json", "o.txt", ".o.jsonl.lock", ".o.jsonl.captioner.lock", ".x.old", ".y.part"),
    *(".o.jsonl.123.part", ".o.jsonl.captioner-4194305-abc.part", ".tmpABCDEF", "rows.f16"),
    *("rows.key", "about.json", "scores.json", "predictions.jsonl", "report.html", "gradients.png"),
    *("gradients.json", "captions.jsonl", "thesis.tex", "events.out.tfevents.1.x", ".model.old"),
)
FOLDERS = ("", "model", "checkpoints", "tensorboard", "evaluation", "gradients", "images", ".x.old")
CONTENTS = (
    *(b"thesis\n", b"{}", b"[]", b"[1, 2]\n", b"\xff\xfe\0nonsense", b"name: mine\n"),
    b'{"kind": "run"}',
    b'{"format_version": 1, "encoder": {}, "decoder": {}}',
    b'{"file_name": "a.jpg", "caption": "mine"}\n',
    b'{"file_name": "a.jpg", "image_id": "a", "caption": "mine", "score": 1}\n',
    b"file_name,caption\na.jpg,mine\n",
    b'[{"image_id": 1, "caption": "mine"}]',
    b"a.jpg\tmine\n",
    b"SQLite format 3\0" + bytes(84),
    b"\x89PNG\r\n\x1a\n" + bytes(50),
    b"<!doctype html><title>mine</title>",
    b'{"cider": 0.9}',
    b'{"kind": "step", "epoch": 1, "step": 1}\n',
    b'{"min_count": 1, "words": {}}',
    b"---\nlibrary_name: transformers\n---\n# Mine\n",
)


def plant(folder: Path, dice: random.Random) -> None:
    """Fill an empty folder with a few files, folders and links of somebody's."""
    for _ in range(dice.randint(1, 12)):
        within = folder / dice.choice(FOLDERS)
        place = within / dice.choice(FILES)
        if os.path.lexists(place) or (os.path.lexists(within) and not within.is_dir()):
            continue
        within.mkdir(exist_ok=True)
        kind = dice.random()
        if kind < 0.1:
            place.mkdir()
            (place / "kept.txt").write_bytes(b"kept")
        elif kind < 0.2:
            place.symlink_to(folder / dice.choice(FILES))
        else:
            place.write_bytes(dice.choice(CONTENTS))
            place.chmod(dice.choice((0o600, 0o640, 0o644)))


def snapshot(folder: Path) -> Snapshot:
    """Return what is in a folder, at any depth; of an empty folder only that it is there."""
    found = {}
    for path in sorted(folder.rglob("*")):
        about = path.lstat()
        content = b""
        if path.is_symlink():
            content = os.fsencode(path.readlink())
        elif path.is_file():
            content = path.read_bytes()
        mode = 0 if path.is_symlink() else stat.S_IMODE(about.st_mode)
        found[str(path.relative_to(folder))] = (stat.filemode(about.st_mode)[0], mode, content)
    return found


def changed(before: Snapshot, after: Snapshot) -> list[str]:
    """Return what was there and is not as it was."""
    return [name for name, what in before.items() if after.get(name) != what]


class Tools:
    """What commands work with: small models, one picture, captions to score."""

    def __init__(self, folder: Path):
        """Make them in a folder."""
        self.config: Config = toys.config(folder)
        self.captioner: Captioner = toys.captioner()
        self.captioner.card = f"{CARD_START}---\n# A toy\n"
        self.picture = toys.draw(folder / "picture.png", "red")
        self.hypotheses = folder / "hypotheses.txt"
        self.hypotheses.write_text("a red square\n")
        self.result: Evaluation = _evaluation(folder, self.picture)
        self.runner = CliRunner()

    @contextmanager
    def without_work(self) -> Iterator[None]:
        """Train in no time: all that is written is written, nothing is learnt."""
        eyes = SimpleNamespace(fingerprint=lambda: "eyes", arithmetic="fp32")
        with pytest.MonkeyPatch.context() as patch:
            for name in ("open_dataset", "prepare"):
                patch.setattr(f"captioner.training.run.{name}", lambda *_: None)
            patch.setattr("captioner.training.run.open_encoder", lambda *_: eyes)
            patch.setattr("captioner.training.run._Setup", self._setup)
            patch.setattr(
                "captioner.training.telemetry.draw_curves", lambda _, to, **how: to.touch()
            )
            patch.setattr(scenes, "PICTURES", {"train": 1})
            yield

    def _setup(self, *parts: Any) -> Any:
        log = parts[4]
        trainer = SimpleNamespace(decoder=self.captioner.decoder, progress=_Progress())

        def run() -> None:
            header = {"identity": '{"encoder": "eyes", "arithmetic": "fp32"}'}
            for name in ("best", "step-7"):
                write_tensors(log.folder / "checkpoints" / f"{name}.safetensors", {}, header)
            log.say("learnt nothing")
            log.record(kind="epoch", epoch=1, step=7, bleu_4=0.0, cider_d=0.0)

        trainer.run, trainer.resume = run, lambda: log.forget_after(3)

        def build(known: Any, resume: bool) -> Any:
            assert known["encoder"] == "eyes"
            return trainer

        return SimpleNamespace(trainer=build, finish=lambda *_: self.captioner)

    def train(self, folder: Path, **how: Any) -> None:
        """Start or resume a run."""
        with self.without_work():
            train(self.config, folder, device="cpu", **how)

    def caption(self, output: Path, *, format: str = "jsonl", **how: Any) -> None:
        """Do a job of one picture."""
        items = list_images([str(self.picture)])
        options = JobOptions(format=format, **how)
        caption_to_file(lambda: self.captioner, items, output, how=options, model="toy")

    def evaluate(self, output: Path) -> None:
        """Write what `evaluate` does."""
        check_files(output, "evaluation")
        result = replace(self.result, output=output)
        _write(result)
        write_report(result, self.captioner.vocabulary, model=output / "model")

    def score(self, output: Path) -> None:
        """Score captions from the command line."""
        words = ["score", str(self.hypotheses), str(self.hypotheses), "--metrics", "bleu"]
        done = self.runner.invoke(main, [*words, "--resamples", "0", "--output", str(output)])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception

    def gradients(self, output: Path) -> None:
        """Write what `gradients` does, the figure apart."""
        check_files(output, "gradients")
        write_json(Study(0, 0, 0, None, 1.0, 0, []), output / "gradients.json")

    def beside(self, folder: Path) -> None:
        """Write a caption beside a picture."""
        record = Record(str(folder / "o.jpg"), (Caption("a square", -1.0, -1.0, True),))
        with SidecarWriter(io.StringIO()) as writer:
            writer.write(record)

    def scenes(self, folder: Path) -> None:
        """Draw a picture."""
        with self.without_work():
            scenes.generate(folder)

    def store(self, folder: Path) -> None:
        """Keep a feature."""
        import numpy as np

        FeatureStore(folder, 2).append([b"k" * 16], np.zeros((1, 2), np.float16))


class _Progress:
    signature, best_score, best_epoch, epoch, seconds, tokens, step = "", 0.0, 0, 1, 0.0, 0, 7


def _evaluation(folder: Path, picture: Path) -> Evaluation:
    from evaluation.report_toys import evaluation

    return evaluation(
        folder,
        [Example(picture, ("a red square",), "dev", "1")],
        [[Caption("a", -1.0, -1.0, True)]],
    )


Command = Callable[[Tools, Path], Any]
COMMANDS: Mapping[str, Command] = {
    "train": lambda tools, folder: tools.train(folder),
    "train --overwrite": lambda tools, folder: tools.train(folder, overwrite=True),
    "train --resume": lambda tools, folder: tools.train(folder, resume=True),
    "train within": lambda tools, folder: tools.train(folder / "model", overwrite=True),
    "save": lambda tools, folder: tools.captioner.save(folder),
    "save within": lambda tools, folder: tools.captioner.save(folder / "model"),
    "save over a file": lambda tools, folder: tools.captioner.save(folder / "o.jsonl"),
    **{
        f"caption {format}{' --overwrite' if overwrite else ''}": (
            lambda tools, folder, name=name, format=format, overwrite=overwrite: tools.caption(
                folder / name, format=format, overwrite=overwrite
            )
        )
        for name, format in (("o.jsonl", "jsonl"), ("o.csv", "csv"), ("o.json", "coco"))
        for overwrite in (False, True)
    },
    "caption text": lambda tools, folder: tools.caption(folder / "o.txt", format="text"),
    "caption txt": lambda tools, folder: tools.beside(folder),
    "evaluate": lambda tools, folder: tools.evaluate(folder / "evaluation"),
    "evaluate here": lambda tools, folder: tools.evaluate(folder),
    "score": lambda tools, folder: tools.score(folder / "scores.json"),
    "gradients": lambda tools, folder: tools.gradients(folder / "gradients"),
    "features": lambda tools, folder: tools.store(folder),
    "vocabulary": lambda tools, folder: tools.captioner.vocabulary.save(folder / "vocab.json"),
    "scenes": lambda tools, folder: tools.scenes(folder),
}


def attempt(tools: Tools, command: Command, folder: Path) -> str | None:
    """Run a command; a refusal is its message, and anything else that is raised is a fault."""
    try:
        command(tools, folder)
    except (CaptionerError, OSError) as error:
        assert str(error).count("\n") == 0
        return str(error)
    return None
