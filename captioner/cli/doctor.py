"""`captioner doctor`."""

from __future__ import annotations

from pathlib import Path

import click

from captioner.cli.options import (
    device_option,
    model_option,
    say,
    set_option,
    show,
    with_stream_kept,
)


@click.command("doctor")
@model_option
@click.option("--data", help="Data set to examine.  [default: the model's training data set]")
@click.option("--split", help="Split to examine.  [default: dev if it exists, else test]")
@set_option
@device_option
def command(
    model: Path | None,
    data: str | None,
    split: str | None,
    overrides: tuple[str, ...],
    device: str,
) -> None:
    """Find out why captions are poor or all the same.

    Checks each step from the image file to the caption. The exit code is 1 if a problem is found.
    """
    from captioner.captioner import Captioner
    from captioner.doctor.checks import verdict
    from captioner.doctor.examine import examine
    from captioner.run_dir import config_of_model, find_model

    folder = find_model(model, say)
    config = with_stream_kept(config_of_model(folder, data, overrides), overrides, data)
    captioner = Captioner.load(folder, device)
    checks = examine(captioner, config, folder, split, say=say)
    width = max(len(check.name) for check in checks)
    for check in checks:
        show(f"{check.status:7}  {check.name:{width}}  {check.finding}")
        if check.advice:
            show(f"{'':7}  {'':{width}}  -> {check.advice}")
    show(f"\nVerdict: {verdict(checks)}")
    if any(check.status == "problem" for check in checks):
        raise SystemExit(1)
