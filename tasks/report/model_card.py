"""The model card of a version: what it is for, how good it is, what it was made from, how to load an export of it.

The sections are those of M. Mitchell and others 2019, Model Cards for Model Reporting (FAT* '19, 220-229). The metadata
in front is that of the Hugging Face Hub (https://huggingface.co/docs/hub/model-cards#model-card-metadata), so that the
folder of an export can be published there as it is.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from storage.records import DatasetFacts, RunRecord
from storage.registry import Registry, Version
from tasks.report import past_runs, rendering
from tasks.report.document import values_of

_TAGS = {"keras": ("keras",), "savedmodel": ("tensorflow",), "onnx": ("onnx",), "litert": ("litert", "tflite")}
"""The Hub's words for the libraries that load a format."""
_LIBRARIES = {"keras": "keras", "onnx": "onnx"}
"""The Hub's names for libraries that it shows how to load a model with."""
_LICENCES = """
    afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc0-1.0
    cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0
    cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cdla-permissive-1.0
    cdla-permissive-2.0 cdla-sharing-1.0 ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 gfdl gpl gpl-2.0 gpl-3.0
    isc lgpl lgpl-2.1 lgpl-3.0 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 osl-3.0 pddl postgresql unlicense
    wtfpl zlib
"""
"""The Hub's words for licences, but those of single models (https://huggingface.co/docs/hub/repositories-licenses)."""
_MACRO = {"precision": "Precision", "recall": "Recall", "f1": "F1"}


def model_card(registry: Registry, version: Version, described: Mapping[str, Any], licence: str = "") -> str:
    """Return the model card of a version as Markdown, made from what the store still has of its run.

    The same store and export give the same card. What is no longer in the store is left out, with a warning in the log.

    Args:
        registry: of the data set.
        version: what the card is about.
        described: an export, see `tasks.serving.export`: what `model.json` has. For a card without an export, `format`
            and `checked` are None, and `files` is empty.
        licence: under which the model is published, such as `Apache-2.0`; empty: its publisher will choose one.
    """
    values = values_of(registry, _run_of(registry, version))
    metadata = _metadata(values, described, licence)
    by_hand = [turn for turn in registry.about(version.number) if turn.by_hand]
    shown = {"model": described, "version": dataclasses.asdict(version), "licence": licence, "by_hand": by_hand}
    text: str = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=120)
    return f"---\n{text}---\n\n{rendering.model_card({**values, **shown})}\n"


def _run_of(registry: Registry, version: Version) -> RunRecord:
    """Return the record of the run that made a version; made up from its entries if the ledger has none."""
    run = past_runs.find(registry, version.run)
    if run is None or run.model is None or run.model.weights_digest != version.weights_digest:
        steps = [{"step": "train", "key": version.model}, {"step": "evaluate", "key": version.evaluation}]
        known = {"run": version.run, "dataset": version.dataset, "started": version.time, "steps": steps}
        run = past_runs.run_record(registry.store, known)
    facts = run.facts or DatasetFacts(version.dataset, version.classes, version.image_shape)
    return dataclasses.replace(run, facts=facts)


def _metadata(values: Mapping[str, Any], described: Mapping[str, Any], licence: str) -> dict[str, Any]:
    """Return the metadata, with a licence only if somebody has chosen one: that of the data need not be the model's."""
    kind, run, test = described["format"] or "keras", values["run"], values["test"]
    accuracy = {"type": "accuracy", "value": described["test_accuracy"]}
    metrics = [accuracy, *_means(test["per_class"] if test else [])]
    measured = {
        "task": {"type": "image-classification", "name": "Image Classification"},
        "dataset": {"name": run["title"], "type": run["dataset"], "split": "test"},
        "metrics": metrics,
    }
    return {
        **_licence(licence),
        **({"library_name": _LIBRARIES[kind]} if kind in _LIBRARIES else {}),
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", *_TAGS[kind], "idxflow"],
        "datasets": [run["dataset"]],
        "metrics": [metric["type"] for metric in metrics],
        "model-index": [{"name": f"{run['dataset']} v{described['version']}", "results": [measured]}],
    }


def _means(per_class: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the means of the scores of the classes, each class counting the same."""
    if not per_class:
        return []
    means = {measure: sum(score[measure] for score in per_class) / len(per_class) for measure in _MACRO}
    return [{"type": measure, "value": mean, "name": f"{_MACRO[measure]} (macro)"} for measure, mean in means.items()]


def _licence(text: str) -> dict[str, str]:
    """Return a licence in the words of the Hub, which calls one that it does not know `other`."""
    word = re.sub(r"[\s_]+", "-", text.strip().lower())
    if not word:
        return {}
    return {"license": word} if word in _LICENCES.split() else {"license": "other", "license_name": word}
