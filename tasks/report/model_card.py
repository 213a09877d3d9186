"""The model card of an exported model: what it is for, how good it is, what it was made from, how to load it.

The sections are those of M. Mitchell and others 2019, Model Cards for Model Reporting (FAT* '19, 220-229). The metadata
in front is that of the Hugging Face Hub (https://huggingface.co/docs/hub/model-cards#model-card-metadata), so that the
folder can be published there as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import yaml

from storage.records import DatasetFacts, RunRecord
from storage.registry import Registry, Version
from tasks.report import past_runs, rendering
from tasks.report.document import values_of

_TAGS = {"keras": ("keras",), "savedmodel": ("tensorflow",), "onnx": ("onnx",), "litert": ("litert", "tflite")}
"""The Hub's words for the libraries that load a format."""


def model_card(registry: Registry, version: Version, described: Mapping[str, Any]) -> str:
    """Return the model card of a version as Markdown, made from what the store still has of its run.

    The same store and export give the same card. What is no longer in the store is left out, with a warning in the log.

    Args:
        registry: of the data set.
        version: that was exported.
        described: the export, see `tasks.serving.export`: what `model.json` has.
    """
    values = values_of(registry, _run_of(registry, version))
    shown = {"model": described, "version": dataclasses.asdict(version)}
    return f"---\n{_metadata(values, described)}---\n\n{rendering.model_card({**values, **shown})}"


def _run_of(registry: Registry, version: Version) -> RunRecord:
    """Return the record of the run that made a version; made up from its entries if the ledger has none."""
    run = past_runs.find(registry, version.run)
    if run is None or run.model is None or run.model.weights_digest != version.weights_digest:
        steps = [{"step": "train", "key": version.model}, {"step": "evaluate", "key": version.evaluation}]
        known = {"run": version.run, "dataset": version.dataset, "started": version.time, "steps": steps}
        run = past_runs.run_record(registry.store, known)
    facts = run.facts or DatasetFacts(version.dataset, version.classes, version.image_shape)
    return dataclasses.replace(run, facts=facts)


def _metadata(values: Mapping[str, Any], described: Mapping[str, Any]) -> str:
    """Return the metadata as YAML. It names no licence: its publisher chooses one."""
    kind, run = described["format"], values["run"]
    data = {"name": run["title"], "type": run["dataset"], "split": "test"}
    measured = {
        "task": {"type": "image-classification"},
        "dataset": data,
        "metrics": [{"type": "accuracy", "value": described["test_accuracy"]}],
    }
    metadata = {
        "pipeline_tag": "image-classification",
        **({"library_name": "keras"} if kind == "keras" else {}),
        "tags": ["image-classification", *_TAGS[kind]],
        "metrics": ["accuracy"],
        "model-index": [{"name": f"{run['dataset']} v{described['version']}", "results": [measured]}],
    }
    text: str = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=120)
    return text
