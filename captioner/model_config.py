"""The small files of a model directory: which model it is, and its settings; imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from captioner.config import (
    CELLS,
    DecoderConfig,
    DecodingConfig,
    Precision,
    bundled,
    first_mistake,
)
from captioner.errors import ConfigError, ModelError
from captioner.hub import fetch, is_hub
from captioner.system.files import no_stream, read_json, sweep
from captioner.system.foreign import excerpt, plain
from captioner.system.ownership import MODEL_FILES
from captioner.system.plugins import KINDS, NAME, PACKAGE, VERSION, normal, plugin
from captioner.system.version import __version__

BUNDLED_MODELS = ("photos", "scenes")  # names for --model; run directories in the package
Storage = Literal["fp32", "fp16"]
# The format version of each storage: older versions of captioner read fp32 only.
FORMAT_VERSIONS: Mapping[Storage, int] = {"fp32": 1, "fp16": 2}
OTHER_WORDS = 2  # added for a tokeniser that is not ptb, whose words older versions cannot join
MAX_PLUGINS = 100
NO_CNN = 4  # added for a model of features, without which older versions would see no mistake


class CnnConfig(BaseModel):
    """One CNN in `config.json`; fields of later versions are ignored."""

    backbone: str
    builder_args: dict[str, Any]
    weights: str
    precision: Precision = "auto"


class FeaturesConfig(BaseModel):
    """What stands for the CNNs of a model of features; the decoder states their sizes."""

    source: str = Field(max_length=1000)  # name of the file that the model learnt from


class PlugInConfig(BaseModel):
    """A plug-in that the model needs; only its name leads to an import, by an entry point."""

    kind: Literal["cells", "backbones"]
    name: str = Field(pattern=rf"\A{NAME}\z")
    package: str = Field(pattern=rf"\A{PACKAGE}\z")
    version: str = Field(pattern=rf"\A{VERSION}\z")


class SizedDecoderConfig(DecoderConfig):
    """The decoder in `config.json`: its settings, vocabulary size and feature size."""

    vocab_size: int
    feature_size: int
    places: int = 0
    channels: int = 0


class ModelConfig(BaseModel):
    """`config.json`; fields of later versions are ignored."""

    format_version: int
    captioner_version: str = __version__
    encoder: Annotated[
        Annotated[CnnConfig, Tag("one")]
        | Annotated[list[CnnConfig], Field(fail_fast=True), Tag("several")],
        Discriminator(lambda given: "several" if isinstance(given, list) else "one"),
    ]
    features: FeaturesConfig | None = None  # the list of CNNs is then empty
    # Of the numbers in `model.safetensors`; None: any, in directories of captioner 0.1.
    storage: Storage | None = None
    mirrored: bool = False
    grid: int = Field(default=0, ge=0)
    grid_channels: int = Field(default=256, ge=1)
    tokenizer: str = "ptb"  # as in vocab.json, which holds what it has learnt
    decoder: SizedDecoderConfig
    decoding: DecodingConfig
    plugins: list[PlugInConfig] = Field([], max_length=MAX_PLUGINS)

    @model_validator(mode="after")
    def _sees(self) -> Self:
        if (self.features is None) != bool(self.cnns()):
            raise ValueError("encoder: either CNNs or features")
        return self

    def version(self) -> int:
        """Return the format version of a directory with these settings."""
        words = OTHER_WORDS * (self.tokenizer != "ptb")
        return (
            FORMAT_VERSIONS[self.storage or "fp32"] + words + NO_CNN * (self.features is not None)
        )

    def cnns(self) -> dict[str, CnnConfig]:
        """Return the CNNs by the prefix of their weights' names."""
        if isinstance(self.encoder, list):
            return {f"encoder.{number}": cnn for number, cnn in enumerate(self.encoder)}
        return {"encoder": self.encoder}


_PLUGINS = TypeAdapter(Annotated[list[PlugInConfig], Field(max_length=MAX_PLUGINS)])


def bundled_model(name: str) -> Path | None:
    """Return the run directory of a bundled model; None if there is none of this name."""
    folder = bundled(f"models/{name}") if name in BUNDLED_MODELS else None
    return folder if folder and (folder / "model" / "config.json").is_file() else None


def bundled_name(folder: Path) -> str | None:
    """Return the name of the bundled model with this model directory; None if it is not bundled."""
    for name in BUNDLED_MODELS:
        run = bundled_model(name)
        if run and (run / "model").resolve() == folder.resolve():
            return name
    return None


def model_folder(folder: str | Path) -> Path:
    """Return the model directory of a path or of the name of a bundled model.

    A path is a model directory, or a run directory with `model/`. It wins over a bundled model.

    A model on the Hub, `hub:OWNER/NAME`, is fetched; see `hub.fetch`.

    Raises:
        ModelError: if it is neither, or the model cannot be fetched.
    """
    if is_hub(folder):
        return fetch(folder)
    path = Path(folder).expanduser()
    for candidate in (path, path / "model"):
        if not candidate.exists():
            sweep(candidate)  # restores a directory whose replacement was killed
        if (candidate / "config.json").is_file():
            return candidate
    if run := bundled_model(str(folder)):
        return run / "model"
    if str(folder) in BUNDLED_MODELS and not path.exists():
        raise ModelError(
            f"{path}: this captioner bundles no such model, and there is no folder of that name; "
            f"`captioner models` lists those that exist"
        )
    raise ModelError(f"{path}: no model here: expected config.json and model.safetensors")


def fingerprint(folder: Path) -> str:
    """Return a digest of the files in a model directory, without its card.

    Raises:
        ModelError: if a file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name in MODEL_FILES:
        try:
            with open(folder / name, "rb", opener=no_stream) as file:
                digest.update(hashlib.file_digest(file, "blake2b").digest())
        except OSError as error:
            raise ModelError(f"{folder / name}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def read_config(folder: Path) -> ModelConfig:
    """Read `config.json` from a model directory.

    Raises:
        ModelError: if it is missing or invalid, or of another format version.
    """
    path = folder / "config.json"
    try:
        config = read_json(path)
        version = config["format_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = "format_version is missing" if isinstance(error, KeyError) else plain(error)
        raise ModelError(f"{path}: not a captioner model config: {reason}") from error
    known = range(1, 1 + NO_CNN + OTHER_WORDS + max(FORMAT_VERSIONS.values()))
    if type(version) is not int or version not in known:
        raise ModelError(
            f"{path}: format version {excerpt(version)}, this captioner reads 1 to {known[-1]}; "
            f"update captioner or convert the model"
        )
    _check_plugins(path, config.get("plugins", []))
    try:
        model = ModelConfig.model_validate(config, strict=True)
    except ValidationError as error:
        mistake = first_mistake(error, "one", "several")
        raise ModelError(f"{path}: cannot be used: {mistake}") from error
    if model.version() != version:
        stated = str(model.storage or "not stated")
        if model.features:
            stated += " and features"
        if model.tokenizer != "ptb":
            stated += f" and tokenizer {plain(model.tokenizer, 60)}"
        raise ModelError(
            f"{path}: damaged: format version {version} with storage {stated}; restore the file"
        )
    return model


def _check_plugins(path: Path, stated: object) -> None:
    """Refuse a model whose plug-ins are not installed; this imports none of them.

    Raises:
        ModelError: with what to install.
    """
    try:
        plugins = _PLUGINS.validate_python(stated, strict=True)
    except ValidationError as error:
        mistake = first_mistake(error, within=("plugins",))
        raise ModelError(f"{path}: cannot be used: {mistake}") from error
    for each in plugins:
        what = f"the {KINDS[each.kind]} {each.name} of {each.package} {each.version}"
        if each.kind == "cells" and each.name in CELLS:
            raise ModelError(
                f"{path}: needs {what}, but captioner now has a cell of this name; use the version "
                f"of captioner that wrote it, or give the plug-in another name and train again"
            )
        try:
            found = plugin(each.kind, each.name)
        except ConfigError as error:
            raise ModelError(f"{path}: needs {what}: {error}") from error
        if found is None:
            raise ModelError(
                f"{path}: needs {what}, a plug-in that is not installed: if you trust it, "
                f"pip install '{each.package}=={each.version}'"
            )
        if normal(found.package) != normal(each.package):
            raise ModelError(
                f"{path}: needs {what}, but {found.package} {found.version} adds this name; "
                f"uninstall that, and if you trust it, "
                f"pip install '{each.package}=={each.version}'"
            )


def plugins_of(cell: str, backbones: Iterable[str]) -> list[PlugInConfig]:
    """Return the plug-ins that a decoder's cell and CNNs come from."""
    wanted = [] if cell in CELLS else [plugin("cells", cell)]
    names = (name.partition(":")[2] for name in backbones if name.startswith("plugin:"))
    wanted += [plugin("backbones", name) for name in dict.fromkeys(names)]
    return [
        PlugInConfig.model_validate(
            {"kind": p.kind, "name": p.name, "package": p.package, "version": p.version}
        )
        for p in wanted
        if p
    ]


def plugins_in_signature(plugins: Iterable[PlugInConfig]) -> str:
    """Return plug-ins as a signature shows them after the search, such as `,cell=skip@name-1.0`."""
    each = (f",{KINDS[p.kind]}={p.name}@{p.package}-{p.version}" for p in plugins)
    return "".join(dict.fromkeys(each))
