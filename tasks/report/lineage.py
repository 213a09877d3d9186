"""The lineage: every digest, the code, the package versions, the seed, and the command for this configuration."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from storage.datasets.manifest import NOTHING
from storage.datasets.training import CHOICES, PROFILES, TrainingConfig, combined
from storage.records import RunRecord, to_json
from storage.studies import TUNED
from tasks.report.evidence import Evidence


def lineage(run: RunRecord, evidence: Evidence) -> dict[str, Any]:
    """Return the inputs, code and environment of a run's result."""
    environment, code = run.environment, {}
    for name, origin in evidence.origins.items():
        if origin.code:
            code[name] = dict(origin.code)
    if evidence.code:
        code["decide"] = dict(evidence.code)
    return {
        "sentence": "The inputs of this run, and the command that runs its configuration again.",
        "command": command(run),
        "seed": run.config.get("seed"),
        "python": environment.python if environment else None,
        "platform": environment.platform if environment else None,
        "packages": dict(sorted(environment.packages.items())) if environment else {},
        "libraries": {name: dict(origin.libraries) for name, origin in evidence.origins.items() if origin.libraries},
        "digests": _digests(run),
        "code": code,
    }


def command(run: RunRecord) -> str:
    """Return the command line that trains with this run's configuration on this data set."""
    manifest = run.facts.manifest if run.facts else ""
    words = ["idxflow", "run", *(["--dataset-file", manifest] if manifest else [run.dataset])]
    # What a study has found may be another thing by then.
    words += ["--profile", "default" if run.profile == TUNED else run.profile]
    words += ["--as-of", run.as_of] if run.as_of else []
    for name, value in _overrides(run).items():
        text = value if isinstance(value, str) else json.dumps(value)
        words += ["--set", f"{name}={text}"]
    return shlex.join([*words, *_quarantine(run)])


def _quarantine(run: RunRecord) -> list[str]:
    """Return the options by which the same rows are set aside, also of a run that was refused before it did that."""
    checks, limit = (run.facts.quarantine, run.facts.max_share) if run.facts else (None, None)
    if run.quarantine:
        # Facts of an older record do not say it.
        checks, limit = run.quarantine.checks, run.quarantine.max_share
    if checks is None:
        return []
    return ["--quarantine", ",".join(checks) or NOTHING, *(["--quarantine-limit", str(limit)] if checks else [])]


def _overrides(run: RunRecord) -> dict[str, Any]:
    config = to_json(run.config)
    usual, others = (_usual(run, choices) for choices in ({c: config[c] for c in CHOICES if c in config}, {}))
    # What follows from a choice need not be said, but the choice itself.
    usual |= {choice: others[choice] for choice in CHOICES if choice in others}
    order = [*TrainingConfig.model_fields, *sorted(config.keys() - TrainingConfig.model_fields.keys())]
    return {
        name: config[name] for name in order if name in config and (name not in usual or usual[name] != config[name])
    }


def _usual(run: RunRecord, choices: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of the profile and the data set with these choices; empty if unknown."""
    if run.profile not in PROFILES or run.facts is None:
        return {}
    try:
        return TrainingConfig(**combined(run.profile, run.facts.training, choices)).model_dump(mode="json")
    except ValidationError:
        return {}


def _digests(run: RunRecord) -> dict[str, str]:
    digests = {archive.role: archive.sha256 for archive in run.archives}
    for split in (run.train, run.test):
        if split:
            digests |= {f"{role} payload": digest for role, digest in sorted(split.sources.items())}
            digests[f"{split.name} split"] = split.digest
    named = {"validation": run.validation, "normalization": run.normalization}
    digests |= {name: record.digest for name, record in named.items() if record}
    if run.model:
        digests["weights"] = run.model.weights_digest
    if run.decision and run.decision.champion_weights_digest:
        digests["champion's weights"] = run.decision.champion_weights_digest
    return digests
