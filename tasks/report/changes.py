"""What changed since the champion: parameters, data, code, libraries, environment; only what differs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from storage.differences import Difference, differences
from storage.records import Environment, RunRecord, Split, to_json
from tasks.report.evidence import Evidence, Origins
from tasks.report.phrases import counted

PARTS = ("parameters", "data", "contract", "code", "libraries", "environment")
_ABOUT_DATA = ("decode", "quarantine", "validate")


def changes(run: RunRecord, evidence: Evidence) -> dict[str, Any]:
    """Return the champion before the run, and each difference from its inputs as old and new value.

    Only steps that both runs reached are compared. Values are strings, numbers or lists; a missing value is null.
    """
    champion = evidence.champion
    if champion is None:
        met = run.decision.previous if run.decision else None
        sentence = "No champion (the model in use) existed before this run, so there is nothing to compare it with."
        if met is not None:
            sentence = f"The record of the inputs of champion v{met} can no longer be read."
        return {"sentence": sentence, "champion": None, "run": None, "differences": []}
    changed = run_differences((champion.run, champion.origins), (run, evidence.origins))
    return {
        "sentence": _sentence(champion.number, changed),
        "champion": champion.number,
        "run": champion.run.id,
        "differences": to_json(changed),
    }


def run_differences(old: tuple[RunRecord, Origins], new: tuple[RunRecord, Origins]) -> list[Difference]:
    """Return the differences between the inputs of two runs, by `PARTS`.

    Only steps that both runs reached, and that can be read for both, are compared.
    """
    both = sorted(old[1].keys() & new[1].keys())
    first, second = (_parts(run, {name: origins[name] for name in both}) for run, origins in (old, new))
    # A run that ended earlier, or of an older version, has no such values to compare.
    for part in ("data", "environment"):
        common = first[part].keys() & second[part].keys()
        first[part], second[part] = ({name: values[part][name] for name in common} for values in (first, second))
    if None in (first["parameters"]["profile"], second["parameters"]["profile"]):
        first["parameters"]["profile"] = second["parameters"]["profile"] = None
    return differences(first, second)


def _parts(run: RunRecord, origins: Origins) -> dict[str, dict[str, Any]]:
    return {
        "parameters": _parameters(run),
        "data": _data(run, origins),
        "contract": _contract(origins),
        "code": _merged(origin.code for origin in origins.values()),
        "libraries": _merged(origin.libraries for origin in origins.values()),
        "environment": _environment(run.environment),
    }


def _parameters(run: RunRecord) -> dict[str, Any]:
    return {"profile": run.profile if run.profile != "unknown" else None, **to_json(run.config)}


def _data(run: RunRecord, origins: Origins) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for split in (run.train, run.test):
        if split:
            values |= _split(split)
    for origin in origins.values():
        if origin.step == "decode":
            values |= {f"{role} archive": digest for role, digest in origin.inputs.items()}
    return values


def _split(split: Split) -> dict[str, Any]:
    size = "×".join(str(side) for side in split.image_shape)
    named = {
        "rows": split.rows,
        "rows set aside": split.set_aside,
        "image size": size,
        "classes": split.classes,
        "content": split.digest,
    }
    return {f"{split.name} {name}": value for name, value in named.items()}


def _contract(origins: Origins) -> dict[str, Any]:
    """Return the manifest's requirements on data and behaviour: the parameters of the steps that check them."""
    values: dict[str, Any] = {}
    for origin in origins.values():
        if origin.step in _ABOUT_DATA:
            values |= origin.parameters
        if origin.step == "probe":
            values |= {f"behaviour {name}": value for name, value in origin.parameters.items()}
    return values


def _merged(parts: Iterable[Mapping[str, str]]) -> dict[str, Any]:
    """Return the values of all steps by name; if steps differ, all of their values."""
    merged: dict[str, set[str]] = {}
    for part in parts:
        for name, value in part.items():
            merged.setdefault(name, set()).add(str(value))
    return {name: ", ".join(sorted(values)) for name, values in merged.items()}


def _environment(environment: Environment | None) -> dict[str, Any]:
    if environment is None:
        return {}
    # Of an older record, it is unknown.
    processor = {"processor": environment.processor} if environment.processor else {}
    return {"python": environment.python, "platform": environment.platform, **processor}


def _sentence(number: int, changed: Sequence[Difference]) -> str:
    if not changed:
        return f"Nothing: parameters, data, code and libraries are the same as for champion v{number}."
    parts = [part for part in PARTS if any(difference.part == part for difference in changed)]
    named = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
    return f"{counted(len(changed), 'difference')} from champion v{number}: in {named}."
