"""`captioner gradients`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from captioner.cli.options import (
    config_argument,
    device_option,
    load_settings,
    name_of_results,
    say,
    set_option,
    show,
    with_stream_kept,
)

if TYPE_CHECKING:
    from captioner.gradients.study import Study

STEPS = 300


@click.command("gradients")
@config_argument
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    help="Measure this model, as --model of caption, instead of training each cell.",
)
@set_option
@click.option(
    "--steps", type=click.IntRange(1, 10**6), help=f"Training steps per cell.  [default: {STEPS}]"
)
@click.option(
    "--length",
    type=click.IntRange(2, 10**5),
    help="Join captions into sequences of this many tokens.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Output folder.  [default: gradients/<config name>, or gradients/ in the run]",
)
@device_option
def command(
    config: str | None,
    model: Path | None,
    overrides: tuple[str, ...],
    steps: int | None,
    length: int | None,
    output: Path | None,
    device: str,
) -> None:
    """Show how gradients travel back through time, vanish and explode.

    Briefly trains rnn (tanh and relu), gru and lstm from the same seed on the data of CONFIG.
    Before and after, measures the gradient of the last token's loss at every earlier hidden
    state. Prints a table and writes gradients.png and gradients.json.
    """
    if model and (config or steps):
        raise click.UsageError("--model excludes CONFIG and --steps: the model is trained already")

    from captioner.captioner import Captioner
    from captioner.gradients.draw import describe_study
    from captioner.gradients.study import study_cells, study_model
    from captioner.run_dir import config_of_model, find_model, results_folder
    from captioner.system.ownership import check_files

    if model:
        folder = find_model(model, say)
        settings = with_stream_kept(config_of_model(folder, overrides=overrides), overrides)
        captioner = Captioner.load(folder, device)
        output = output or results_folder(folder, "gradients")
        check_files(output, "gradients")
        study = study_model(captioner, settings, folder, length=length, say=say)
    else:
        settings = load_settings(config, overrides)
        output = output or Path("gradients") / name_of_results(config, overrides)
        check_files(output, "gradients")
        study = study_cells(settings, steps=steps or STEPS, length=length, device=device, say=say)
    show(describe_study(study))
    _write(study, output)


def _write(study: Study, output: Path) -> None:
    from captioner.gradients.draw import draw_study, write_json

    image, numbers = output / "gradients.png", output / "gradients.json"
    draw_study(study, image)
    write_json(study, numbers)
    say(f"wrote {image} and {numbers}")
