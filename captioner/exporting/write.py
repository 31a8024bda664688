"""Write the programs of a model, its words and a README into a folder."""

from __future__ import annotations

import json
import re
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jinja2 import Environment, StrictUndefined

from captioner.captioner import Captioner
from captioner.decoder.decoder import SPECIAL_IDS
from captioner.encoder.given_features import GivenFeatures
from captioner.errors import ConfigError, ImageError, checked_names, must_be
from captioner.exporting.int8 import compute_int8, store_int8
from captioner.exporting.joining import joining
from captioner.exporting.programs import Program, trace
from captioner.images.decode import SUFFIXES, read_image
from captioner.steering import steered
from captioner.system.files import whole_folder
from captioner.system.foreign import excerpt
from captioner.system.ownership import check
from captioner.system.version import __version__

Form = Literal["onnx", "torch"]
ENDINGS: dict[Form, str] = {"onnx": ".onnx", "torch": ".pt2"}
OPSET = 18
PICTURES = 200  # whose ranges decide how numbers are rounded
# Tensors in the table of the README, by program and name.
SHAPES = {
    ("encoder", "pixels"): "`pixels`: uint8 (B, 3, `crop_size`, `crop_size`)",
    ("encoder", "features"): "`features`: (B, F)",
    ("start", "features"): "`features`: (B, F)",
    ("start", "hidden"): "`hidden`: the first state, (L, B, H)",
    ("start", "keys"): "`keys` of the places to look at: (B, P, E)",
    ("step", "token_ids"): "`token_ids`: the last words, int64 (N,)",
    ("step", "hidden"): "`hidden`: (L, N, H)",
    ("step", "keys"): "`keys` of the image of each row: (N, P, E)",
    ("step", "log_probs"): "`log_probs` of the next word: (N, V)",
    ("step", "next_hidden"): "`next_hidden`: (L, N, H)",
}
SEARCHED = ("beam_size", "length_penalty", "max_length", "min_length", "repeat_penalty")


@checked_names
def export(
    captioner: Captioner,
    folder: Path,
    to: Form = "onnx",
    *,
    int8: bool = False,
    pictures: Path | None = None,
) -> Path:
    """Write the encoder, the start and a step of a model as programs that need no captioner.

    They compute in float32, for any number of images or rows: see `programs.trace`. The folder also
    gets `captioner.json`, with words and search settings, `README.md`, with a search in Python and
    in JavaScript, and `caption.py`, the one in Python.

    Args:
        captioner: one model.
        folder: absent, empty, or written by this function, which is then replaced.
        to: `onnx`, opset 18; `torch`: programs of `torch.export`.
        int8: store the weights of ONNX programs as 8-bit numbers, a quarter of the size.
        pictures: folder of pictures like those to caption; with int8, the encoder also computes in
            8 bits, in the ranges that the first 200 of them show. None: it computes in float32.

    Returns:
        The folder.

    Raises:
        ConfigError: if an argument is unknown, a package is missing, or the folder is foreign.
        ImageError: if a picture cannot be read.
        ModelError: for an ensemble.
    """
    must_be("captioner", captioner, Captioner)
    must_be("folder", folder, str, Path)
    folder = Path(folder)
    if to not in ENDINGS:
        raise ConfigError(f"to: must be onnx or torch, given {excerpt(to, 60)}")
    if int8 and to != "onnx":
        raise ConfigError("int8: only for ONNX programs")
    files = _files(captioner, pictures) if int8 and pictures else []
    if pictures and not files:
        raise ConfigError("pictures: only with int8, and for a model that sees pictures")
    _check_packages(to, files)
    check(folder, "programs")
    programs = trace(captioner)
    with whole_folder(folder, "programs") as aside:
        for name, program in programs.items():
            file = aside / f"{name}{ENDINGS[to]}"
            _write(program, file)
            if name == "encoder" and files:
                compute_int8(file, (_pixels(captioner, picture) for picture in files))
            elif int8:
                store_int8(file)
        about = _about(captioner, programs, to, int8)
        text = json.dumps(about, ensure_ascii=False, indent=1) + "\n"
        (aside / "captioner.json").write_text(text, encoding="utf-8")
        readme = _readme(captioner, about, programs)
        (aside / "README.md").write_text(readme, encoding="utf-8")
        [code] = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
        (aside / "caption.py").write_text(code, encoding="utf-8")
    return folder


def _files(captioner: Captioner, folder: Path) -> list[Path]:
    """Return the first pictures of a folder."""
    if isinstance(captioner.encoder, GivenFeatures):
        return []
    try:
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be read: {error.strerror}") from error
    if not files:
        raise ConfigError(f"{folder}: holds no pictures; subfolders are not searched")
    return files[:PICTURES]


def _pixels(captioner: Captioner, picture: Path) -> np.ndarray:
    """Return the pixels (1, 3, S, S) of a picture; an `ImageError` names the file."""
    try:
        return captioner.encoder.preprocess.pixels(read_image(picture))[None].numpy()
    except ImageError as error:
        raise ImageError(f"{picture}: {error}", kind=error.kind) from error


def _check_packages(to: Form, files: list[Path]) -> None:
    wanted = (["onnx", "onnxscript"] if to == "onnx" else []) + ["onnxruntime"] * bool(files)
    for name in wanted:
        try:
            import_module(name)
        except ImportError as error:
            raise ConfigError(f"{name} is missing: pip install 'captioner[export]'") from error


def _write(program: Program, file: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about tensors that torch itself keeps beside weights
        if file.suffix == ".pt2":
            torch.export.save(program.exported, file)
            return
        written = torch.onnx.export(
            program.exported,
            dynamo=True,
            opset_version=OPSET,
            input_names=program.inputs,
            output_names=program.outputs,
            verbose=False,
        )
    assert written
    model = written.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]  # lines of source code, with paths of this machine
    del model.graph.metadata_props[:], model.metadata_props[:]
    file.write_bytes(model.SerializeToString())


def _about(
    captioner: Captioner, programs: dict[str, Program], to: Form, int8: bool
) -> dict[str, Any]:
    """Return the content of `captioner.json`."""
    words, options = captioner.vocabulary, captioner.decoding
    ids = steered(SPECIAL_IDS, options, words)
    about: dict[str, Any] = {
        "captioner_version": __version__,
        "programs": [f"{name}{ENDINGS[to]}" for name in programs],
        "weights": "int8" if int8 else "fp32",
        "decoding": {name: getattr(options, name) for name in SEARCHED},
        "bos_id": ids.bos_id,
        "eos_id": ids.eos_id,
        "never_ids": ids.suppress_ids,
        "repeatable_ids": ids.repeatable,
        **joining(words)._asdict(),
    }
    if not isinstance(captioner.encoder, GivenFeatures):
        preprocess = captioner.encoder.preprocess
        for name in ("resize_size", "crop_size", "interpolation", "squash"):
            about[name] = getattr(preprocess, name)
    return about


def _readme(captioner: Captioner, about: dict[str, Any], programs: dict[str, Program]) -> str:
    template = Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(
        Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    )
    rows = []
    for file, (name, program) in zip(about["programs"], programs.items(), strict=True):
        inputs, outputs = (
            ", ".join(SHAPES[name, tensor] for tensor in tensors)
            for tensors in (program.inputs, program.outputs)
        )
        rows.append(f"| `{file}` | {inputs} | {outputs} |")
    return template.render(
        name=captioner.name,
        version=__version__,
        table="\n".join(rows),
        sees="encoder" in programs,
        interpolation=about.get("interpolation", ""),
        squash=about.get("squash", False),
    )
