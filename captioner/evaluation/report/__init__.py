"""`report.html`: an evaluation as one HTML file that needs no network.

`page.html` is a Jinja template that escapes every value; `page.js` shows the gallery.
"""

from __future__ import annotations

from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Template

from captioner.evaluation.report.findings import FLAGS, find, gallery_rows, thumbnails
from captioner.evaluation.report.word_marks import least_confident
from captioner.metrics.bootstrap import CONFIDENCE
from captioner.metrics.signature import joined
from captioner.page import one_file
from captioner.page.charts import Line, calibration_chart, length_chart, line_chart
from captioner.run_dir import read_metrics
from captioner.system.files import whole_file
from captioner.text import Vocabulary

if TYPE_CHECKING:
    from captioner.evaluation.evaluate import Evaluation

HERE = Path(__file__).parent
WORD_USE = {
    "captions": "Captions",
    "words": "Words",
    "distinct_1": "Distinct-1",
    "distinct_2": "Distinct-2",
    "content_words": "Content words used",
}


def write_report(
    result: Evaluation, vocabulary: Vocabulary, *, model: Path, split_train: str = "train"
) -> Path:
    """Write `report.html` into the folder of an evaluation and return its path.

    A `metrics.jsonl` next to the model directory gives the training curves. The training split
    shows which captions are copies.
    """
    run = model.resolve().parent
    metrics = read_metrics(run / "metrics.jsonl")
    findings = find(result, vocabulary, split_train)
    steps = [line for line in metrics if line.get("kind") == "step"]
    epochs = [line for line in metrics if line.get("kind") == "epoch"]
    curves = {
        name: [(epoch["step"], epoch[name]) for epoch in epochs if name in epoch]
        for name in ("train_loss", "dev_loss", "cider_d", "bleu_4")
    }
    loss = [
        Line("steps", [(step["step"], step["loss"]) for step in steps], "faint"),
        Line("train loss", curves["train_loss"], "first"),
        Line("dev loss", curves["dev_loss"], "second"),
    ]
    scores = [
        Line("CIDEr-D", curves["cider_d"], "first"),
        Line("BLEU-4", curves["bleu_4"], "second"),
    ]
    # As papers write the names.
    labels = {
        name: name.replace("_", "-").upper().replace("CIDER", "CIDEr") for name in result.scores
    }
    stream = _template().stream(
        result=result,
        findings=findings,
        flags=FLAGS,
        labels=labels,
        word_use_labels=WORD_USE,
        signatures=joined(score.signature for score in result.scores.values()),
        confidence=f"{CONFIDENCE:.0%}",
        model=run.name if metrics else model.name,
        split_train=split_train,
        length_chart=length_chart(findings.lengths, findings.reference_lengths),
        calibration_chart=result.calibration
        and calibration_chart([*map(astuple, result.calibration.bins)]),
        least_confident=least_confident([best[0] for best in result.captions]),
        loss_chart=line_chart("Loss over steps", loss, x_label="step"),
        score_chart=line_chart("Dev scores over steps", scores, x_label="step", y_zero=True),
        epochs=epochs,
        gallery={
            "scores": list(labels.values()),
            "keys": list(result.scores),
            "flags": FLAGS,
            "rows": gallery_rows(result, findings),
        },
        thumbnails=partial(thumbnails, [example.image for example in result.table.examples]),
    )
    path = result.output / "report.html"
    with whole_file(path, "report") as aside, aside.open("wb") as file:
        # A file name that is not UTF-8 is escaped instead of raising an error.
        stream.dump(file, encoding="utf-8", errors="backslashreplace")
    return path


def _template() -> Template:
    """Load the page with its styles and script."""
    css, js = ((HERE / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    css = one_file.style("shared") + one_file.style("report") + css
    return one_file.template_of(HERE, "page.html", css, one_file.joined("map") + js)
