"""Every setting with its default, its meaning and its unit.

A YAML file overrides the defaults; `--set section.key=value` overrides both.
All mistakes are reported together, one a line: `section.key: what is wrong, given value`.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, ClassVar, Literal, Self, TypedDict, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from captioner.errors import ConfigError, suggest
from captioner.system.escapes import OBEYED
from captioner.system.foreign import excerpt, plain
from captioner.system.ownership import owns
from captioner.system.plugins import KINDS, Kind, names, plugin
from captioner.system.text_encodings import bad_encoding

Fraction = Annotated[float, Field(ge=0, lt=1)]
# Larger values are typing errors or attacks; smaller ones cannot overflow the arithmetic.
Count = Annotated[int, Field(ge=1, le=10**9)]
Few = Annotated[int, Field(ge=1, le=1000)]
Size = Annotated[int, Field(ge=1, le=2**16)]  # of a layer or a batch
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Cell = Literal["rnn", "gru", "lstm", "elman"]
CELLS: tuple[str, ...] = get_args(Cell)
DataFormat = Literal[
    "auto",
    "flickr",
    "karpathy",
    "coco",
    "csv",
    "jsonl",
    "webdataset",
    "parquet",
    "huggingface",
    "sidecars",
    "kohya",
    "multi30k",
    "scenes",
]
MAX_CAPTIONS = 1000  # per image
MAX_START = 10_000  # characters
MAX_FORBIDDEN = 10**5  # words
MAX_SHOWN = 60  # characters of steering words in a signature
MAX_SETTINGS = 100  # in one section
BUNDLED = "bundled:"  # prefix of a path inside the package
MAX_BYTES = 2**20  # of a config file; larger ones are data
DATA_HINT = "; name data with --set data.root=PATH"


def _with_plugins(kind: Kind) -> tuple[WrapValidator, PlainSerializer]:
    """Return what makes a setting also take the names that plug-ins add."""

    def validate(given: Any, builtin: ValidatorFunctionWrapHandler) -> Any:
        try:
            return builtin(given)
        except ValidationError as error:
            try:
                if isinstance(given, str) and plugin(kind, given):
                    return given
            except ConfigError as clash:
                raise PydanticCustomError("clash", "{clash}", {"clash": str(clash)}) from clash
            mistake = error.errors()[0]["msg"]
            others = ", ".join(names(kind)) or "none is installed"
            rest = f"{mistake}, or the {KINDS[kind]} of a plug-in ({others})"
            raise PydanticCustomError("plugin", "{rest}", {"rest": rest}) from error

    # Pydantic would warn of a value that is none of the literals.
    return WrapValidator(validate), PlainSerializer(lambda value: value)


class _Checked(type(BaseModel)):  # type: ignore[misc]
    """Turns pydantic's errors of a direct call into a `ConfigError`; validation calls no class."""

    def __call__(cls, **settings: Any) -> Any:
        try:
            return super().__call__(**settings)
        except ValidationError as error:
            section = cls.__name__.removesuffix("Config").lower()
            within = {"": (), "cnn": ("encoder", "cnns", "0")}.get(section, (section,))
            raise ConfigError(first_mistake(error, within=within)) from error


_CHECKED: Any = _Checked  # mypy would not see that it is pydantic's own metaclass


class Section(BaseModel, metaclass=_CHECKED):  # type: ignore[metaclass]
    """Base class of all sections: immutable, and unknown keys are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, ser_json_inf_nan="constants"
    )
    # Settings of version 0.1 that no longer exist, with the value that turned each one off.
    removed: ClassVar[Mapping[str, Any]] = {}

    @model_validator(mode="before")
    @classmethod
    def _drop_removed(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        if len(given) > MAX_SETTINGS:  # pydantic would report every unknown key
            raise PydanticCustomError("many", f"More than {MAX_SETTINGS} settings")
        kept = dict(given)
        for setting, off in cls.removed.items():
            if kept.pop(setting.rpartition(".")[2], off) != off:
                raise ValueError(
                    f"{setting}: removed in captioner 0.2; delete it or set it to {off!r}"
                )
        return kept

    @field_validator("*", mode="before")
    @classmethod
    def _reject_booleans(cls, value: Any, info: ValidationInfo) -> Any:
        # Pydantic reads `epochs: yes` as 1.
        expected = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and expected not in (bool, bool | None):
            raise PydanticCustomError("boolean", "should not be true or false")
        return value


class DataConfig(Section):
    """Where the images and captions are."""

    root: str = Field(
        "bundled:data/scenes",
        description="folder, annotation file, hf:OWNER/NAME, or pipe:COMMAND if typed",
    )
    format: Annotated[DataFormat, *_with_plugins("datasets")] = Field(
        "auto", description="annotation format; auto detects it"
    )
    images: str | None = Field(None, description="image folder; null: found from data.root")
    split_train: str = Field("train", description="split to train on")
    split_dev: str = Field("dev", description="split that chooses the best epoch")
    split_test: str = Field("test", description="split for the final score")
    restval: bool = Field(False, description="add Karpathy's `restval` images to the train split")
    image_column: str | None = Field(None, description="image column of a table; null: guessed")
    caption_column: str | None = Field(None, description="caption column of a table; null: guessed")
    split_column: str = Field("split", description="split column of a table")
    holdout: Fraction = Field(
        0.05, description="fraction of train images moved to dev if the data has no dev split"
    )
    encoding: str | None = Field(
        None,
        description="encoding of texts without a byte order mark, by Python's name; null: UTF-8",
    )
    strict: bool = Field(False, description="stop at any problem in the data")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.split_dev == self.split_train:
            given = excerpt(self.split_dev)
            raise ValueError(f"data.split_dev: must differ from data.split_train, given {given}")
        if self.encoding is not None and (problem := bad_encoding(self.encoding)):
            raise ValueError(f"data.encoding: {problem}, given {excerpt(self.encoding, 60)}")
        return self


class TextConfig(Section):
    """How captions become token ids."""

    tokenizer: Literal["ptb", "unicode", "characters", "bpe"] = Field(
        "ptb",
        description="ptb: English words, as the COCO evaluation splits them; unicode: words of any "
        "language; characters; bpe: pieces of words",
    )
    min_count: Count = Field(5, description="rarer words in train become <unk>; not with bpe")
    vocab_size: int = Field(
        2000, ge=300, le=2**16, description="for text.tokenizer bpe: pieces, at most"
    )
    max_length: Size = Field(50, description="tokens of a training caption; the rest is cut off")


class CnnConfig(Section):
    """One frozen CNN and its weights."""

    backbone: str = Field(
        "resnet50", description="torchvision classification CNN, timm:NAME, or plugin:NAME"
    )
    weights: str = Field(
        "DEFAULT", description="torchvision enum name, tag of timm, .pth/.safetensors, or none"
    )
    builder_args: dict[str, Any] = Field({}, description="keyword arguments of the CNN's builder")


class EncoderConfig(Section):
    """The frozen CNNs, and the settings that apply to all of them."""

    cnns: list[CnnConfig] = Field(
        [CnnConfig()],
        min_length=1,
        description="CNNs that read the same pixels; their features are concatenated. "
        "encoder.backbone, .weights and .builder_args set the first CNN",
    )
    features: str | None = Field(
        None,
        description="file of features that another program made, instead of CNNs: .npy, .npz, .h5 "
        "or .safetensors, keyed by image id",
    )
    image_size: int | None = Field(
        None, ge=32, le=2048, description="pixels of the centre crop; null: set by the weights"
    )
    precision: Precision = Field(
        "auto", description="number format of the CNNs; auto: bf16 if the hardware supports it"
    )
    grid: int = Field(
        7, ge=1, le=32, description="for decoder.attention: places per side of the last feature map"
    )
    grid_channels: int = Field(
        256,
        ge=1,
        le=2**16,
        description="for decoder.attention: numbers of a place and CNN; channels beyond are added "
        "to these with random signs",
    )
    flip: bool = Field(False, description="train on mirrored images too")
    mirrored: bool | None = Field(
        None,
        description="caption from the mean features of image and mirror image; null: as flip",
    )
    batch_size: Size = Field(64, description="images per forward pass of the CNNs")

    @model_validator(mode="before")
    @classmethod
    def _list_cnns(cls, given: Any) -> Any:
        return list_cnns(given)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.features is not None and (self.flip or self.mirrored):
            name = "flip" if self.flip else "mirrored"
            raise ValueError(
                f"encoder.{name}: encoder.features holds no mirrored images; set it to false"
            )
        return self


def list_cnns(encoder: Any) -> Any:
    """Convert the short form of one CNN, and both forms of version 0.1, to a list `cnns`.

    In 0.1 an encoder was one CNN with others in `beside`, or a list. Other input is returned as is.
    """
    if isinstance(encoder, list) and encoder and isinstance(encoder[0], dict):
        encoder = encoder[0] | {"beside": encoder[1:]}
    if not isinstance(encoder, dict) or "cnns" in encoder:
        return encoder
    if not isinstance(others := encoder.get("beside", []), list):
        return encoder
    first = {name: encoder[name] for name in CnnConfig.model_fields if name in encoder}
    shared = {name: encoder[name] for name in encoder if name not in {*first, "beside"}}
    return shared | {"cnns": [first, *others]}


class DecoderConfig(Section):
    """The RNN that writes the caption, and the layer that computes its initial state."""

    removed = {"decoder.init_activation": "tanh"}

    cell: Annotated[Cell, *_with_plugins("cells")] = Field("lstm", description="recurrent cell")
    nonlinearity: Literal["tanh", "relu"] = Field("tanh", description="activation of rnn and elman")
    hidden_size: Size = Field(512, description="units per layer")
    num_layers: int = Field(1, ge=1, le=100, description="recurrent layers")
    embed_size: Size = Field(256, description="dimensions of a word vector")
    dropout: Fraction = Field(0.5, description="on word vectors, between layers, on outputs")
    feature_dropout: Fraction = Field(0.0, description="dropout on the image features")
    tie_weights: bool = Field(True, description="output layer reuses the word vectors")
    attention: Literal["none", "spatial"] = Field(
        "none",
        description="spatial: before each word, look at places of the image; see encoder.grid",
    )
    place_dropout: Fraction = Field(0.2, description="places that are dropped whole; for attention")
    feature_norm: Literal["standardize", "none"] = Field(
        "standardize", description="scale each feature to mean 0 and standard deviation 1 on train"
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.cell not in ("rnn", "elman") and self.nonlinearity != "tanh":
            raise ValueError(
                f"decoder.nonlinearity: only rnn and elman have one, given "
                f"{self.nonlinearity!r} with cell {self.cell!r}"
            )
        return self


class TrainingConfig(Section):
    """How the decoder is trained."""

    removed = {"training.teachers": [], "training.teachers_share": 0.5, "training.compile": False}

    objective: Literal["xent", "scst"] = Field(
        "xent",
        description="xent: cross-entropy of the next word; scst: self-critical training, which "
        "rewards the scores of sampled captions",
    )
    start_from: str | None = Field(
        None,
        description="run or model directory, or hub:OWNER/NAME@REVISION, with the initial weights; "
        "scst requires it",
    )
    samples: int = Field(5, ge=2, le=1000, description="scst: captions sampled per image")
    bleu_weight: float = Field(
        0.0, ge=0, le=1000, description="scst: weight of BLEU-4 in the reward; CIDEr-D has weight 1"
    )
    epochs: int = Field(10, ge=1, le=10**6, description="passes over the captions; scst: images")
    batch_size: Size = Field(128, description="captions per step; scst: images per step")
    learning_rate: float = Field(2e-3, ge=1e-12, le=1e6, description="peak learning rate of AdamW")
    warmup_steps: int = Field(
        100, ge=0, le=10**9, description="steps of linear warm-up; at most a tenth of the run"
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="learning rate after the warm-up"
    )
    beta2: float = Field(0.98, gt=0, le=0.99999, description="AdamW's second beta")
    weight_decay: float = Field(
        0.01, ge=0, le=1000, description="AdamW's weight decay of matrices; biases have none"
    )
    label_smoothing: Fraction = Field(
        0.1, description="probability spread over the vocabulary; not used by scst"
    )
    clip_norm: float = Field(5.0, ge=1e-12, le=1e12, description="maximum global gradient norm")
    bptt_window: Count | None = Field(
        None, description="tokens per window of truncated BPTT; null: the whole caption"
    )
    ema_decay: Fraction = Field(
        0.0, description="moving average of the weights: decay per step; saves the average; 0: off"
    )
    metric: Literal["bleu_4", "cider_d"] = Field(
        "cider_d",
        description="dev score that selects the best epoch; if undefined or equal, the lower dev "
        "loss does",
    )
    patience: Count | None = Field(
        None, description="epochs without a better one before training stops; null: no limit"
    )
    accumulate: Few = Field(1, description="forward passes per batch, to save memory")
    save_every: Count = Field(
        500, description="steps between checkpoints; every epoch also ends with one"
    )
    precision: Precision = Field(
        "auto", description="number format of the decoder; auto: bf16 if the hardware supports it"
    )
    seed: Seed = Field(0, description="random seed of weights, order and dropout")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.objective == "scst":
            if self.start_from is None:
                raise ValueError(
                    "training.start_from: scst needs a trained model; set its run directory"
                )
            return self
        for name in ("samples", "bleu_weight"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"training.{name}: applies only to training.objective scst")
        return self


class DecodingOverrides(TypedDict, total=False):
    """Settings of `DecodingConfig` that a call overrides; the model's own apply otherwise."""

    search: Literal["beam", "sample"]
    beam_size: int
    length_penalty: float
    max_length: int
    min_length: int
    start: str
    forbid: Sequence[str]
    no_repeat_ngram_size: int
    repeat_penalty: float
    neighbours: float
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    temperature: float
    top_k: int
    top_p: float
    seed: int


class DecodingConfig(Section):
    """How captions are searched."""

    removed = {"decoding.consensus": 0, "decoding.draws": 1}
    # Settings that a search ignores.
    idle: ClassVar[Mapping[str, frozenset[str]]] = {
        "beam": frozenset({"temperature", "top_k", "top_p"}),
        "sample": frozenset(
            {"beam_size", "length_penalty", "no_repeat_ngram_size", "repeat_penalty", "neighbours"}
        ),
    }

    search: Literal["beam", "sample"] = Field(
        "beam", description="beam: the most probable captions; sample: random captions"
    )
    beam_size: Few = Field(3, description="hypotheses per image; 1: greedy search")
    length_penalty: float = Field(
        0.7, ge=0, le=10, description="exponent a in score = log-probability / length^a"
    )
    max_length: Few = Field(24, description="maximum tokens, end token included")
    min_length: int = Field(1, ge=0, le=1000, description="minimum words, those of start included")
    start: str = Field(
        "", max_length=MAX_START, description="first words of every caption, such as `a photo of`"
    )
    forbid: Sequence[str] = Field(
        (), max_length=MAX_FORBIDDEN, description="words that no caption may hold"
    )
    no_repeat_ngram_size: int = Field(
        0, ge=0, le=1000, description="n: no n-gram repeats in a caption; 0: off"
    )
    repeat_penalty: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="subtracted from a caption's log-probability, for its score, for each earlier "
        "use of a word; words that make up 2% of the training captions or more are free",
    )
    neighbours: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="ranks the beam: weight of the captions of similar training images; above 0, "
        "training stores those captions in the model",
    )
    precision: Precision = Field(
        "auto", description="number format of matrix products; auto: bf16 if that is faster"
    )
    temperature: float = Field(
        1.0, ge=1e-3, le=1000, description="sampling: below 1, probable words are drawn more often"
    )
    top_k: int = Field(
        0, ge=0, le=10**9, description="sampling: draw from the k most probable words; 0: from all"
    )
    top_p: float = Field(
        1.0, ge=1e-6, le=1, description="sampling: draw from the fewest words of this probability"
    )
    seed: Seed = Field(0, description="sampling: random seed")

    @model_validator(mode="before")
    @classmethod
    def _read_sample(cls, given: Any) -> Any:
        # Version 0.1 wrote `sample: true` or `false`.
        if not isinstance(given, dict) or "sample" not in given:
            return given
        rest = dict(given)
        sample = rest.pop("sample")
        if not isinstance(sample, bool) or (sample and rest.get("search", "sample") != "sample"):
            raise ValueError(
                f"decoding.sample: use `decoding.search: sample` or `beam`, given {excerpt(sample)}"
            )
        return rest | {"search": "sample"} if sample else rest

    @field_validator("start", mode="before")
    @classmethod
    def _one_space_between_words(cls, start: Any) -> Any:
        # YAML reads nothing after the colon as null.
        return "" if start is None else " ".join(start.split()) if isinstance(start, str) else start

    @field_validator("forbid", mode="before")
    @classmethod
    def _tuple_of_words(cls, words: Any) -> Any:
        # A string is a sequence of letters, a list could change, and YAML reads nothing as null.
        if isinstance(words, str):
            return (words,)
        if not isinstance(words, list | tuple | NoneType):
            raise PydanticCustomError("words", "should be a list of words")
        return tuple(words or ())

    @model_validator(mode="after")
    def _min_below_max(self) -> Self:
        if self.min_length > self.max_length:
            raise ValueError(
                f"decoding.min_length: must be at most decoding.max_length, {self.max_length}, "
                f"given {self.min_length}"
            )
        return self

    def summary(self) -> str:
        """Return the settings in the form of a score's signature, such as `beam3,lp0.7`."""
        if self.search == "sample":
            drawn = f"sample,t{self.temperature},k{self.top_k},p{self.top_p},seed{self.seed}"
            return drawn + self._steering()
        blocked = f",no_repeat{self.no_repeat_ngram_size}" if self.no_repeat_ngram_size else ""
        repeats = f",repeat{self.repeat_penalty}" if self.repeat_penalty else ""
        votes = f",neighbours{self.neighbours}" if self.neighbours else ""
        more = f"{blocked}{repeats}{votes}{self._steering()}"
        return f"beam{self.beam_size},lp{self.length_penalty}{more}"

    def _steering(self) -> str:
        """Return the steering of the summary; empty for the defaults."""
        least = f",min{self.min_length}" if self.min_length != 1 else ""
        start = f",start={_in_signature(self.start.lower())}" if self.start else ""
        words = sorted({word.lower() for word in self.forbid})
        forbid = f",forbid={_in_signature(' '.join(words))}" if words else ""
        return f"{least}{start}{forbid}"


def _in_signature(words: str) -> str:
    """Write words in a signature, which has no `|`; a digest if there are many."""
    if len(words) <= MAX_SHOWN and words.isprintable() and "|" not in words:
        return words
    digest = hashlib.blake2b(words.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    return f"{len(words.split())} words {digest}"


def changed_decoding(
    decoding: DecodingConfig, n_best: int, overrides: DecodingOverrides
) -> DecodingConfig:
    """Return search settings with some of them changed; see `Captioner.settings`.

    Raises:
        ConfigError: if a setting is unknown, out of range, or has no effect on this search.
    """
    try:
        options = DecodingConfig.model_validate(decoding.model_dump() | overrides)
    except ValidationError as error:
        raise ConfigError(first_mistake(error, within=("decoding",))) from error
    if idle := sorted(overrides.keys() & DecodingConfig.idle[options.search]):
        other = "beam" if options.search == "sample" else "sample"
        raise ConfigError(
            f"decoding.{idle[0]}: needs decoding.search {other} (--search {other}); has no effect "
            f"with {options.search}"
        )
    if options.search == "beam" and "beam_size" not in overrides and isinstance(n_best, int):
        beam_size = max(options.beam_size, min(n_best, MAX_CAPTIONS))
        options = options.model_copy(update={"beam_size": beam_size})
    return options


class Config(Section):
    """All sections together."""

    data: DataConfig = DataConfig()
    text: TextConfig = TextConfig()
    encoder: EncoderConfig = EncoderConfig()
    decoder: DecoderConfig = DecoderConfig()
    training: TrainingConfig = TrainingConfig()
    decoding: DecodingConfig = DecodingConfig()

    def to_yaml(self) -> str:
        """Return every value, defaults included, as YAML for `load_config`."""
        values = self.model_dump(mode="json")
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        return yaml.safe_dump(values, sort_keys=False) if OBEYED.search(text) else text


def bundled(name: str) -> Path:
    """Return the path of a file or folder inside the package, such as `configs/scenes.yaml`."""
    package = Path(str(resources.files("captioner")))
    installed = package / "bundled" / name
    # In a checkout the bundle is the repository itself.
    return installed if installed.exists() else package.parent / name


def resolve_path(value: str) -> Path:
    """Return the path in a setting; `bundled:` paths are inside the package."""
    if value.startswith(BUNDLED):
        return bundled(value.removeprefix(BUNDLED))
    return home_path(value)


def home_path(value: str) -> Path:
    """Return the path with `~` expanded; `~name` of an unknown user stays as it is."""
    return Path(os.path.expanduser(value))  # noqa: PTH111 pathlib raises for an unknown user


def find_config(name: str) -> Path:
    """Return the config file with a path or a bundled name.

    Raises:
        ConfigError: if the file does not exist.
    """
    path = home_path(name)
    packaged = sorted(bundled("configs").glob("*.yaml"))
    if os.path.isfile(path):  # noqa: PTH113 pathlib raises for a name that is too long
        return path
    for config in packaged:
        if name in (config.stem, config.name, f"configs/{config.name}"):
            return config
    if name and os.path.isdir(path):  # noqa: PTH112 as above
        run = f"; its config is {plain(path / 'config.yaml')}"
        hint = run if (path / "config.yaml").is_file() else DATA_HINT
        raise ConfigError(f"{plain(name)}: a folder, not a config file{hint}")
    names = ", ".join(config.stem for config in packaged)
    raise ConfigError(f"{plain(name)}: no such config file; give a path or a bundled name: {names}")


def root_of(overrides: Iterable[str]) -> str | None:
    """Return the `data.root` that overrides give; None if they give none."""
    tree: dict[str, Any] = {}
    for override in overrides:
        if override.partition("=")[0].strip() == "data.root":
            _apply(tree, override)
    root = tree.get("data", {}).get("root")
    return root if isinstance(root, str) else None


def holds_scenes(root: str) -> bool:
    """Whether a `data.root` is a folder of drawn scenes, or its annotation file."""
    place = resolve_path(root)
    try:
        return owns(place.parent if place.name == "captions.jsonl" else place, "scenes")
    except (OSError, ValueError):  # no possible path
        return False


def load_config(name: str | None, overrides: Iterable[str] = ()) -> Config:
    """Read a config, and apply overrides such as `section.key=value`, whose value is YAML.

    The name is a path of a YAML file, or that of a bundled config; None gives the defaults.

    Raises:
        ConfigError: if the file or an override has mistakes; one line for each.
    """
    path = None if name is None else find_config(name)
    tree = _read_yaml(path) if path else {}
    overrides = tuple(overrides)
    typed = tree.get("encoder", {})
    tree["encoder"] = list_cnns(typed)  # overrides need the long form
    _renew_cnns(tree["encoder"], overrides)
    mistakes = [mistake for override in overrides if (mistake := _apply(tree, override))]
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        lines = map(_line, error.errors(include_url=False))
        mistakes += [_as_typed(line, typed, overrides) for line in lines]
    if mistakes:
        source = f"{path or 'defaults'}{' with --set' if overrides else ''}"
        raise ConfigError(f"{source}: {len(mistakes)} mistake(s)", *mistakes)
    return config


def _read_yaml(path: Path) -> dict[str, Any]:
    hint = "" if path.suffix in (".yaml", ".yml") else DATA_HINT
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: too large for a config file{hint}")
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {plain(error)}{hint}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: an impossible date
        raise ConfigError(f"{path}: not valid YAML: {plain(error)}{hint}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        given = excerpt(tree, 60)
        raise ConfigError(f"{path}: must hold sections such as `training:`, given {given}{hint}")
    return {section: {} if values is None else values for section, values in tree.items()}


def _renew_cnns(encoder: Any, overrides: Sequence[str]) -> None:
    """Drop the weights and builder arguments of each CNN that overrides replace by another."""
    cnns = encoder.get("cnns") if isinstance(encoder, dict) else None
    for override in overrides:
        key, _, name = map(str.strip, override.partition("="))
        index = re.fullmatch(r"encoder\.(?:cnns\.([0-9]{1,3})\.)?backbone", key)
        if not index or not isinstance(cnns, list) or int(index[1] or 0) >= len(cnns):
            continue
        cnn = cnns[int(index[1] or 0)]
        if not isinstance(cnn, dict):
            continue
        theirs = cnn.get("backbone", CnnConfig.model_fields["backbone"].default)
        if name == theirs:
            continue
        belong = ("builder_args",) if cnn.get("weights") == "none" else ("weights", "builder_args")
        if dropped := [setting for setting in belong if setting in cnn]:
            what, other = " and ".join(dropped), plain(name)
            note = f"note: {key}: {what} of {plain(theirs)} do not apply to {other}"
            print(note, file=sys.stderr)
        for setting in dropped:
            del cnn[setting]


def _is_text(path: list[str]) -> bool:
    """Return whether a setting is a text."""
    section = Config.model_fields.get(path[0])
    models = (section and section.annotation, CnnConfig if path[0] == "encoder" else None)
    fields = [getattr(model, "model_fields", {}).get(path[-1]) for model in models]
    return any(field and field.annotation in (str, str | None) for field in fields)


def _apply(tree: dict[str, Any], override: str) -> str | None:
    """Apply one `section.key=value` to the tree; return its mistake, or None."""
    shown = f"--set {plain(override)}"
    key, equals, text = override.partition("=")
    path = key.strip().split(".")
    if not equals or len(path) < 2 or "" in path:
        return f"{shown}: must look like section.key=value"
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        if not _is_text(path):
            return f"{shown}: the value is not valid YAML"
        value = text
    if value is not None and not isinstance(value, str) and _is_text(path):
        value = text.strip()  # data.root=2017 is a name
    if path[:2] == ["encoder", "beside"]:
        return f"{shown}: the CNNs are a list since captioner 0.2: set encoder.cnns.1 and so on"
    if path[0] == "encoder" and path[1] in CnnConfig.model_fields:
        path[1:1] = ["cnns", "0"]
    node: Any = tree
    for section, name in pairwise(path):
        if isinstance(node, dict) and node.get(section) is None:
            node[section] = {}
        node = node[int(section) if isinstance(node, list) else section]
        whole = map(str, range(len(node))) if isinstance(node, list) else None
        if not (name in whole if whole else isinstance(node, dict)):
            return f"{shown}: {plain(section)} is not a section"
    node[int(name) if isinstance(node, list) else name] = value
    return None


def first_mistake(error: ValidationError, *tags: str | int, within: tuple[str, ...] = ()) -> str:
    """Return the first mistake, on one line.

    Tags are steps of pydantic's paths that are not keys of the file; `within` is the section.
    """
    item = error.errors(include_url=False)[0]
    item["loc"] = (*within, *item["loc"])
    return _line(item, tags)


def _line(item: ErrorDetails, tags: tuple[str | int, ...] = ()) -> str:
    """Return a mistake as `section.key: what is wrong, given value`."""
    key = ".".join(plain(part) for part in item["loc"] if part not in tags)
    mistake = item["msg"][0].lower() + item["msg"][1:]
    match item["type"]:
        case "value_error":  # from our validators, which name the key
            return plain(item["ctx"]["error"])
        case "missing":
            return f"{key} is missing"
        case "model_type":
            mistake = "must hold keys and values"
        case "extra_forbidden":
            mistake = f"no such setting{_suggest(item['loc'])}"
    return f"{key}{': ' if key else ''}{mistake}, given {excerpt(item['input'])}"


def _as_typed(line: str, encoder: Any, overrides: Sequence[str]) -> str:
    """Name the settings of a CNN as the file or the command line does, not by `encoder.cnns`."""
    index = re.match(r"encoder\.cnns\.([0-9]+)\b\.?", line)
    if not index or not isinstance(encoder, dict):
        return line
    rest, number = line[index.end() :], int(index[1])
    if number and "beside" in encoder:
        return f"encoder.beside.{number - 1}{'' if rest.startswith(':') else '.'}{rest}"
    short = f"encoder.{re.split('[:.=]', rest)[0]}"
    given = any(override.strip().startswith(short) for override in overrides)
    return f"encoder.{rest}" if not number and ("cnns" not in encoder or given) else line


def _suggest(loc: tuple[int | str, ...]) -> str:
    """Return the most similar setting, or all settings of the section."""
    *sections, name = map(plain, loc)
    fields = Config.model_fields
    if len(sections) == 1:
        fields = type(getattr(Config(), sections[0])).model_fields
    elif sections:
        fields = CnnConfig.model_fields
        if name in EncoderConfig.model_fields:
            return f" of one CNN: set encoder.{name}, for all CNNs"
    return suggest(name, fields)
