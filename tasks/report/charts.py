"""The charts of a report, as values for `figures` to draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.report.figures import Chart, Line
from tasks.report.phrases import duration
from tasks.report.rendering import number, percent


def charts(values: Mapping[str, Any]) -> list[Chart]:
    """Return every chart for which the content of a report has values."""
    drawn = _training(values["training"]) if values["training"] else []
    if values["test"] and values["test"]["calibration"]:
        drawn.append(_calibration(values["test"]["calibration"]))
    if values["trend"]:
        drawn += _trend(values["trend"]["runs"])
    return drawn


def _training(training: Mapping[str, Any]) -> list[Chart]:
    epochs = training["epochs"]
    if not epochs:
        return []
    x, chosen = [e["epoch"] for e in epochs], training["chosen_epoch"]
    held_out = any(e["validation_loss"] is not None for e in epochs)
    last = epochs[-1]

    def column(key: str, name: str, is_held_out: bool = False) -> Line:
        return Line(name, [e[key] for e in epochs], is_held_out)

    def pair(key: str) -> list[Line]:
        return [column(key, "fitted rows"), *([column(f"validation_{key}", "held-out rows", True)] if held_out else [])]

    mark_name = f"epoch {chosen}, kept"
    loss = f"Loss by epoch; on the fitted rows it ends at {number(last['loss'])}"
    accuracy = f"Accuracy by epoch; on the fitted rows it ends at {percent(last['accuracy'])}"
    rate = f"Learning rate by epoch, from {number(epochs[0]['learning_rate'])} to {number(last['learning_rate'])}"
    seconds = f"Seconds per epoch, {duration(sum(e['seconds'] for e in epochs))} in total"
    return [
        Chart("loss", x, "epoch", pair("loss"), loss, chosen, mark_name),
        Chart("accuracy", x, "epoch", pair("accuracy"), accuracy, chosen, mark_name, percent=True),
        Chart("rate", x, "epoch", [column("learning_rate", "learning rate")], rate, from_zero=True),
        *_gradients(epochs),
        Chart("seconds", x, "epoch", [column("seconds", "seconds")], seconds, from_zero=True),
    ]


def _gradients(epochs: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Return the chart of the norms of the gradients, if a history has any above 0."""
    layers = [*epochs[-1]["gradients"]]
    norms = {layer: [epoch["gradients"].get(layer) for epoch in epochs] for layer in layers}
    if not any(norm for values in norms.values() for norm in values):
        return []
    first, between, last = layers[0], layers[1:-1], layers[-1]
    lines = [
        Line("between" if layer == between[0] else "", norms[layer], points=False, quiet=True) for layer in between
    ]
    lines.append(Line(last, norms[last], held_out=first != last))
    if first != last:
        lines.append(Line(first, norms[first]))
    ends = ", ".join(f"{number(norms[layer][-1])} at {layer}" for layer in dict.fromkeys((first, last)))
    description = f"Norm of the gradient by epoch, on a logarithmic scale; it ends with {ends}"
    x = [epoch["epoch"] for epoch in epochs]
    return [Chart("gradients", x, "epoch", lines, description, logarithmic=True)]


def _calibration(calibration: Mapping[str, Any]) -> Chart:
    bins = calibration["bins"]
    sure = [100 * bin_["confidence"] for bin_ in bins]
    lines = [
        Line("observed", [bin_["accuracy"] for bin_ in bins]),
        Line("perfectly calibrated", [bin_["confidence"] for bin_ in bins], held_out=True, points=False),
    ]
    description = f"Accuracy by confidence; expected calibration error {percent(calibration['ece'])}"
    return Chart("calibration", sure, "predicted probability, %", lines, description, percent=True)


def _trend(runs: Sequence[Mapping[str, Any]]) -> list[Chart]:
    x = range(1, len(runs) + 1)
    accuracy, seconds = ([values[name] for values in runs] for name in ("accuracy", "seconds"))
    intervals = [(v["low"], v["high"]) if v["low"] is not None else None for v in runs]
    promoted = [v["accuracy"] if v["outcome"] == "promoted" else None for v in runs]
    description = (
        f"Test accuracy of the last {len(runs)} runs with its interval; this run is last, at {percent(accuracy[-1])}"
    )
    lines = [Line("test accuracy", accuracy, intervals=intervals)]
    if any(value is not None for value in promoted):
        lines.append(Line("promoted", promoted, held_out=True, joined=False))
    timing = f"Seconds of work of the last {len(runs)} runs; this run is last, at {duration(seconds[-1])}"
    return [
        Chart("trend", x, "run, this one last", lines, description, percent=True),
        Chart("duration", x, "run, this one last", [Line("seconds", seconds)], timing, from_zero=True),
    ]
