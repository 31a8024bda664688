"""The models that are served, each with a name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from captioner.captioner import Captioner
from captioner.hub import cached_name
from captioner.model_config import bundled_name
from captioner.system.foreign import plain


def load(folders: Sequence[Path], device: str) -> dict[str, Captioner]:
    """Load models; the name of each is that of its run.

    Raises:
        ModelError: if one cannot be loaded, or sees no pictures.
        ConfigError: if the device is not available.
    """
    served: dict[str, Captioner] = {}
    for folder in folders:
        name = name_of(folder)
        number = 2
        while name in served:
            name, number = f"{name_of(folder)}-{number}", number + 1
        served[name] = Captioner.load(folder, device)
        served[name].encoder.preprocess  # noqa: B018 a model of features sees no pictures
    return served


def name_of(folder: Path) -> str:
    """Return the name of a model directory: of the bundled model, on the Hub, or of its run."""
    place = folder.resolve()
    run = place.parent if place.name == "model" else place
    return bundled_name(folder) or cached_name(folder) or plain(run.name, 60)
