"""The data: the number of rows per class, example images, and the sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from storage.records import RunRecord, Split, to_json
from tasks.report.evidence import Evidence, Labels
from tasks.report.phrases import class_names, counted


def data(run: RunRecord, evidence: Evidence) -> dict[str, Any] | None:
    """Return the splits, classes and archives of a run; None if it fetched nothing."""
    splits = [split for split in (run.train, run.test) if split]
    facts = run.facts
    if facts is None or not (splits or run.archives):
        return None
    reused = {step.subject for step in run.steps if step.step == "fetch" and step.reused}
    counts: dict[str, Sequence[int] | None] = {split.name: _class_counts(run, split, evidence) for split in splits}
    return {
        "sentence": _sentence(run, splits, counts.get("train")) + (f" {facts.chosen}." if facts.chosen else ""),
        "as_of": run.as_of,
        "image_shape": list(facts.image_shape),
        "classes": _classes(run, counts, evidence.labels.get("train")),
        "splits": to_json(splits),
        "archives": [{**to_json(archive), "reused": archive.role in reused} for archive in run.archives],
        "licence": facts.licence,
        "homepage": facts.homepage,
        "citation": facts.citation,
    }


def _class_counts(run: RunRecord, split: Split, evidence: Evidence) -> Sequence[int] | None:
    """Return rows per class, as counted by validation or, failing that, from the labels."""
    if run.validation and split.name in run.validation.class_counts:
        return run.validation.class_counts[split.name]
    labels = evidence.labels.get(split.name)
    return None if labels is None else labels.counts[: split.classes].tolist()


def _classes(run: RunRecord, counts: Mapping[str, Sequence[int] | None], labels: Labels | None) -> list[dict[str, Any]]:
    first = labels.first if labels else {}

    def rows_of(split: str, label: int) -> int | None:
        class_rows = counts.get(split)
        return class_rows[label] if class_rows is not None and label < len(class_rows) else None

    return [
        {
            "label": label,
            "name": name,
            "train": rows_of("train", label),
            "test": rows_of("test", label),
            "example": first.get(label),
        }
        for label, name in enumerate(class_names(run))
    ]


def _labels(run: RunRecord) -> str:
    """Return a sentence on the values of the classes in the label files, if they are not 0, 1, 2, …"""
    labels = run.facts.labels if run.facts else ()
    if not labels:
        return ""
    consecutive = labels == tuple(range(labels[0], labels[0] + len(labels)))
    shown = f"{labels[0]} to {labels[-1]}" if consecutive else ", ".join(map(str, labels))
    return f" (labelled {shown} in the files)"


def _parts(split: Split) -> str:
    return f" in {counted(split.parts, 'part')}" if split.parts else ""


def _sentence(run: RunRecord, splits: Sequence[Split], counts: Sequence[int] | None) -> str:
    if not splits:
        return "The archives were fetched but not decoded."
    purpose = {"train": "for training", "test": "for testing"}
    sentence = " and ".join(f"{split.rows:,} images {purpose[split.name]}{_parts(split)}" for split in splits)
    if aside := sum(split.set_aside for split in splits):
        sentence += f" ({counted(aside, 'more is', 'more are')} in quarantine)"
    height, width = splits[0].image_shape
    sentence += f", each {height} × {width} pixels, in {len(class_names(run))} classes{_labels(run)}"
    if not counts or not max(counts):
        return sentence + "."
    if not min(counts):
        return f"{sentence}; classes without training images: {sum(not n for n in counts)}."
    return (
        f"{sentence}; the largest class has {max(counts) / min(counts):.2f} times as many training images as "
        "the smallest."
    )
