"""`captioner features`."""

from __future__ import annotations

import click

from captioner.cli.options import config_argument, device_option, say, set_option


@click.command("features")
@config_argument
@set_option
@device_option
def command(config: str | None, overrides: tuple[str, ...], device: str) -> None:
    """Fill the feature store for CONFIG, so that training starts at once.

    The store lives in $CAPTIONER_CACHE, else ~/.cache/captioner; what it holds already is not
    computed again.
    """
    from captioner.config import load_config

    settings = load_config(config or "scenes", overrides)

    from captioner.models.captioner import choose_device
    from captioner.training.prepare import open_encoder, prepare

    encoder = open_encoder(settings, choose_device(device))
    prepared = prepare(settings, encoder, say)
    rows = len(prepared.train.features) + len(prepared.dev.features)
    say(f"features: {rows:,} rows of {encoder.feature_size:,} ready")
