"""The model card: `README.md` of a model directory, with Hugging Face's metadata in front.

The metadata hold the scores. `add_results` adds those of another split, and writes the table of
scores anew from the metadata. `model_card.md` is a Jinja template; every text that is not marked as
Markdown is escaped.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from captioner.captioner import Captioner
from captioner.config import BUNDLED, Config, holds_scenes
from captioner.errors import ModelError
from captioner.metrics import Score, WordUse
from captioner.metrics.signature import joined
from captioner.model_config import read_config
from captioner.model_dir import read_card
from captioner.run_dir import config_of_model, identity_of
from captioner.system.files import write_text
from captioner.system.foreign import plain
from captioner.system.ownership import CARD, CARD_START, owns
from captioner.system.version import __version__
from captioner.text import PTB

BEGIN, END = "<!-- captioner: scores -->", "<!-- captioner: end of scores -->"
# Whatever Markdown, inside a line, reads as more than a character.
_SPECIAL = re.compile(r"[\\`*\[\]<>#|~&$@]|(?<!\w)_|_(?!\w)|:(?=//)|(?<=www)\.")
_FLICKR8K = re.compile(r"(dataset_?)?flickr_?8k", re.IGNORECASE)
_FLICKR8K_FILES = ("Flickr8k.token.txt", "*/Flickr8k.token.txt", "dataset_flickr8k.json")
_CELLS = {"gru": "GRU", "lstm": "LSTM", "rnn": "RNN", "elman": "Elman RNN"}
DIGESTS = ("train captions", "train images", "dev captions", "dev images")
_METRICS = {"bleu": "bleu", "rouge": "rouge", "cider": "cider"}


@dataclass(frozen=True, slots=True)
class Results:
    """The scores of a model on a split."""

    split: str
    scores: Mapping[str, Score]
    word_use: Mapping[str, WordUse]  # "captions" and "first_references"
    truth: float | None = None  # fraction of captions that are true; drawn scenes only


@dataclass(frozen=True, slots=True)
class Source:
    """The data that a model was trained on, as far as they are known."""

    name: str
    format: str = ""
    counts: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # images, captions
    digests: Mapping[str, str] = field(default_factory=dict)  # of images and captions, by name
    version: str = __version__  # of captioner that trained the model


class _Markdown(str):
    """Markdown that a template shows as it is."""

    __slots__ = ()


def write_card(
    captioner: Captioner, config: Config | None, source: Source, results: Results | None = None
) -> str:
    """Return the card of a model.

    Args:
        captioner: the model, not an ensemble.
        config: the settings of its training; None: not known.
        source: its data.
        results: its scores on the dev split; None: not measured.
    """
    kind = _kind_of(config, source)
    name = {"flickr8k": "Flickr8k", "scenes": "Drawn scenes"}.get(kind, source.name)
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "data"
    parts = _parts_of(captioner, config)
    title = f"{captioner.encoder.name}, {parts['cell']}, {slug}"
    metadata: dict[str, Any] = {"pipeline_tag": "image-to-text", **_LICENCES[kind][0]}
    english = kind != "other" and captioner.vocabulary.tokenizer == PTB
    metadata |= {"language": ["en"]} if english else {}
    metadata |= {"datasets": [slug], "metrics": [*_METRICS.values()], "tags": ["image-captioning"]}
    if results:
        metadata["model-index"] = [{"name": title, "results": []}]
        _put(metadata, results, {"name": name, "type": slug})
    body = _template().render(
        title=title,
        version=source.version,
        data_name=name,
        data_format=source.format,
        counts=source.counts,
        digests=source.digests,
        licence=_Markdown(_LICENCES[kind][1]),
        drawn=kind == "scenes",
        scores=_Markdown(f"{BEGIN}\n{_scores_of(metadata)}\n{END}"),
        examined=results and results.split,
        use=results and results.word_use["captions"],
        people=results and results.word_use["first_references"],
        **parts,
        **(_settings_of(config) if config else {"settings": ""}),
    )
    return _whole(metadata, body)


def add_results(card: str, results: Results) -> str | None:
    """Return a card with the scores of a split, which replace earlier ones of this split.

    Everything else stays as it is. None if somebody changed the card so that its metadata or the
    place of the scores is not found.
    """
    parts = re.fullmatch(r"---\n(.*?\n)---\n(.*)", card, re.DOTALL)
    if not parts or not 0 <= parts[2].find(BEGIN) < parts[2].find(END):
        return None
    try:
        metadata = yaml.safe_load(parts[1])
        _put(metadata, results)
        scores = _scores_of(metadata)
    except (yaml.YAMLError, LookupError, TypeError, ValueError, AttributeError, RecursionError):
        return None
    before, _, rest = parts[2].partition(BEGIN)
    return _whole(metadata, f"{before}{BEGIN}\n{scores}\n{END}{rest.partition(END)[2]}")


def record(folder: Path, results: Results) -> Path | None:
    """Add the scores of a split to the card of a run's model; return the card's path.

    None if the model is in no run of captioner, such as one of the package or of a cache; or if
    it has no card, or one that somebody changed so that scores have no place in it.
    """
    card = read_card(folder) if owns(folder.resolve().parent, "run") else ""
    text = add_results(card, results) if card else None
    if text is None:
        return None
    write_text(folder / CARD, text, "card")
    return folder / CARD


def complete(folder: Path, captioner: Captioner, *, write: bool = True) -> Path | None:
    """Write the card of a model that has none, such as one of captioner 0.1; return its path.

    Its scores are not known, and its data only if the model lies in its run. None if there is one.

    Raises:
        ModelError: if there is a `README.md` that is not a card of captioner.
    """
    path = folder / CARD
    if captioner.card:
        return None
    if os.path.lexists(path):
        raise ModelError(
            f"{path}: not a model card of captioner; move it away, and copy what you want to keep "
            f"into the card that captioner writes"
        )
    config, source = None, Source("not known", version=read_config(folder).captioner_version)
    if owns(folder.resolve().parent, "run"):
        config = config_of_model(folder)
        saved = identity_of(folder.resolve().parent / "checkpoints")
        digests = {name: str(saved[name]) for name in DIGESTS if name in saved}
        source = replace(source, name=Path(config.data.root).name, digests=digests)
    if write:
        write_text(path, write_card(captioner, config, source), "card")
    return path


def _whole(metadata: dict[str, Any], body: str) -> str:
    metadata.pop("library_name", None)
    text = yaml.safe_dump(metadata, sort_keys=False, width=1000)
    return f"{CARD_START}{text}---\n{body}"


_LICENCES: Mapping[str, tuple[dict[str, str], str]] = {
    "scenes": (
        {"license": "apache-2.0"},
        "captioner drew the scenes and wrote their captions. They need no licence.",
    ),
    "flickr8k": (
        {"license": "other", "license_name": "research-and-education"},
        "Flickr8k is for research and education only; use the model likewise. The photographs "
        "belong to those who put them on Flickr. The weights of the CNN have terms of their own.",
    ),
    "other": (
        {"license": "unknown"},
        "The licence of these data is not known here: ask the data's owner before you share or "
        "use the model. The weights of the CNN have terms of their own.",
    ),
}


def _kind_of(config: Config | None, source: Source) -> str:
    """Return the key in `_LICENCES`."""
    if config is None:
        return "other"
    if source.format == "scenes" or holds_scenes(config.data.root):
        return "scenes"
    root = Path(config.data.root)
    named = (source.name, root.name, root.stem)
    try:
        known = any(next(root.glob(pattern), None) for pattern in _FLICKR8K_FILES)
    except (OSError, ValueError):  # the data are gone
        known = False
    return "flickr8k" if known or any(map(_FLICKR8K.fullmatch, named)) else "other"


def _parts_of(captioner: Captioner, config: Config | None) -> dict[str, Any]:
    """Return what the template says about the parts of a model."""
    encoder, decoder = captioner.encoder, captioner.single_decoder("described")
    side = captioner.map_size()
    return {
        "cnns": [
            {
                "backbone": cnn.spec.backbone,
                "weights": cnn.spec.weights,
                "size": sum(tensor.numel() for tensor in cnn.state.values()),
            }
            for cnn in encoder.cnns
        ],
        "preprocess": encoder.cnns[0].spec.preprocess if encoder.cnns else None,
        "features": None if encoder.cnns else encoder.name,
        "feature_size": encoder.feature_size,
        "mirrored": encoder.mirrored,
        "decoder": decoder.config,
        "decoder_size": sum(weights.numel() for weights in decoder.parameters()),
        "cell": _CELLS.get(decoder.config.cell, decoder.config.cell),
        "attention": f"over {side} x {side} places of the image" if side else "none",
        "words": len(captioner.vocabulary),
        "min_count": config and config.text.min_count,
        "tokenizer": captioner.vocabulary.tokenizer.name,
        "search": captioner.decoding.summary(),
        "neighbours": captioner.neighbours and len(captioner.neighbours.states),
    }


def without_folders(config: Config) -> tuple[dict[str, Any], list[str]]:
    """Return settings whose paths are names only, and the settings in which a path belongs.

    Paths of bundled files and names on the Hub stay.
    """
    places: list[str] = []

    def without_folder(tree: dict[str, Any], key: str, place: str) -> None:
        value = tree[key]
        if isinstance(value, str) and not value.startswith((BUNDLED, "hub:")):
            tree[key] = Path(value).name
            if value != tree[key] or place == "data.root":
                places.append(place)

    tree = config.model_dump(mode="json")
    without_folder(tree["data"], "root", "data.root")
    without_folder(tree["data"], "images", "data.images")
    without_folder(tree["training"], "start_from", "training.start_from")
    without_folder(tree["encoder"], "features", "encoder.features")
    for number, cnn in enumerate(tree["encoder"]["cnns"]):
        place = f"encoder.cnns.{number}.weights" if number else "encoder.weights"
        without_folder(cnn, "weights", place)
    return tree, places


def _settings_of(config: Config) -> dict[str, Any]:
    """Return what the template says about the settings of a training."""
    tree, places = without_folders(config)
    return {
        "settings": _fenced(yaml.safe_dump(tree, sort_keys=False), "yaml"),
        "options": _Markdown("".join(f" --set {place}=PATH" for place in places)),
        "seed": config.training.seed,
    }


def _put(metadata: dict[str, Any], results: Results, data: dict[str, str] | None = None) -> None:
    """Put the scores of a split into the metadata, in the form of Hugging Face's `model-index`."""
    slug = metadata["datasets"][0]
    index = metadata.setdefault("model-index", [{"name": f"captioner-{slug}", "results": []}])
    entries = index[0]["results"]
    if data is None and entries:
        data = {key: entries[0]["dataset"][key] for key in ("name", "type")}
    known = data or {"name": slug, "type": slug}
    metrics = [
        {
            "type": _METRICS[score.name.partition("_")[0]],
            "name": _label(score.name),
            "value": round(score.value, 4),
            "args": {
                "interval": [round(end, 4) for end in score.interval or ()],
                "signature": score.signature,
            },
        }
        for score in results.scores.values()
        if not math.isnan(score.value)
    ]
    if results.truth is not None:
        signature = f"truth|split:{results.split}"
        args = {"interval": [], "signature": signature}
        value = round(results.truth, 4)
        metrics.append({"type": "accuracy", "name": "true captions", "value": value, "args": args})
    entry = {
        "task": {"type": "image-to-text", "name": "Image captioning"},
        "dataset": {**known, "split": results.split},
        "metrics": metrics,
    }
    kept = [each for each in entries if each["dataset"].get("split") != results.split]
    entries[:] = [*kept, entry] if metrics else kept


def _scores_of(metadata: dict[str, Any]) -> str:
    """Return the scores in the metadata as a table in Markdown, with their signatures."""
    entries = metadata["model-index"][0]["results"] if "model-index" in metadata else []
    if not entries:
        return "Not measured."
    splits = [str(entry["dataset"]["split"]) for entry in entries]
    cells: dict[str, dict[str, str]] = {}
    signatures = []
    for split, entry in zip(splits, entries, strict=True):
        for metric in entry["metrics"]:
            ends = metric["args"]["interval"]
            text = f"{metric['value']:.3f}"
            text += f" ({ends[0]:.3f} to {ends[1]:.3f})" if ends else ""
            cells.setdefault(str(metric["name"]), {})[split] = text
            signatures.append(str(metric["args"]["signature"]))
    rows = [
        ["score", *splits],
        *([name, *(row.get(split, "") for split in splits)] for name, row in cells.items()),
    ]
    lines = [f"| {' | '.join(map(escape, row))} |" for row in rows]
    lines.insert(1, "|---" * (len(splits) + 1) + "|")
    table = "\n".join(lines)
    return (
        f"{table}\n\nIn parentheses: the 95% confidence interval, by bootstrap over the images. "
        f"Signatures:\n\n{_fenced(_lines(joined(dict.fromkeys(signatures))))}"
    )


def _label(name: str) -> str:
    """Return the name of a score as papers write it."""
    return name.replace("_", "-").upper().replace("CIDER", "CIDEr")


def escape(text: str) -> str:
    """Return a foreign text as one line of Markdown that shows it, and nothing else."""
    return _SPECIAL.sub(r"\\\g<0>", plain(text))


def _code(text: str) -> _Markdown:
    """Return a foreign text as a code span, which may stand in a table."""
    text = plain(text)
    quote = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    padding = " " if quote != "`" else ""
    return _Markdown(f"{quote}{padding}{text}{padding}{quote}".replace("|", r"\|"))


def _fenced(text: str, language: str = "") -> _Markdown:
    """Return a foreign text as a block of code."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return _Markdown(f"{fence}{language}\n{text.rstrip()}\n{fence}")


def _lines(texts: Iterable[str]) -> str:
    return "\n".join(map(plain, texts))


def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # which is for HTML
        finalize=lambda value: (
            escape(value) if isinstance(value, str) and not isinstance(value, _Markdown) else value
        ),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["code"] = _code
    return environment.get_template("model_card.md")
