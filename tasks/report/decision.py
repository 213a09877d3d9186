"""The decision: the rules applied, and the paired test against the champion on the same test images and on slices."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from storage.records import Decision, Paired, RunRecord, SliceScore, to_json
from tasks.gate import looks
from tasks.report.evidence import Evidence
from tasks.report.phrases import counted, sentence


def decision(run: RunRecord, evidence: Evidence) -> dict[str, Any] | None:
    """Return the decision of a run with its paired test; None if the run did not reach it."""
    record = run.decision
    if not record:
        return None
    score = run.champion_evaluation
    return {
        **to_json(record),
        "sentence": _rules(run),
        "reason": sentence(record.sentence),
        # Sorted as in the ledger, so that a rebuilt report is byte for byte the same.
        "limits": dict(sorted(record.limits.items())),
        "slices": [_slice(score, record) for score in record.slices],
        "slices_sentence": _slices(record),
        "champion_accuracy": score.accuracy if score else None,
        "comparison": _comparison(record.paired) if record.paired else "",
        "looks_sentence": _looks(record),
        "champion_now": _champion_now(run, record),
        "by_hand": list(evidence.by_hand),
    }


def _rules(run: RunRecord) -> str:
    rules = run.decision.rules if run.decision else ()
    broken = [rule for rule in rules if not rule.passed]
    if not broken:
        return f"All {counted(len(rules), 'rule')} are met." if rules else "No rule was applied."
    return f"Not met: {len(broken)} of {counted(len(rules), 'rule')} ({'; '.join(rule.name for rule in broken)})."


def _comparison(paired: Paired) -> str:
    more = "more" if paired.net > 0 else "fewer"
    apart = f"{abs(paired.net):,} {more} right than the champion" if paired.net else "as many right as the champion"
    return (
        f"Of {counted(paired.rows, 'test image')}, both models get {paired.both_right:,} right, only this model "
        f"{paired.only_candidate:,}, only the champion {paired.only_champion:,}, and neither {paired.both_wrong:,}. "
        f"This model gets {apart}: {100 * paired.difference:+.2f} points of accuracy ({100 * paired.confidence:.4g}% "
        f"interval {100 * paired.low:+.2f} to {100 * paired.high:+.2f}). If both were equally good, a result at least "
        f"this much in favour of this model would have probability {paired.p_better:.2g} (McNemar's exact test, "
        f"one-sided). The p-value of any difference is {paired.p_value:.2g} (mid-p, two-sided)."
    )


def _slice(score: SliceScore, record: Decision) -> dict[str, Any]:
    """Return the score on a slice, and whether what is asked there was met; a slice that is not judged meets all."""
    accuracy, champion = score.right / score.rows, score.champion_right
    is_worse = score.corrected is not None and score.corrected <= record.slicing["alpha"]
    return {
        **to_json(score),
        "accuracy": accuracy,
        "champion_accuracy": None if champion is None else champion / score.rows,
        "met": not score.judged or (accuracy >= score.floor and not is_worse),
    }


def _slices(record: Decision) -> str:
    """Return what was judged on slices; empty without slices."""
    if not record.slices:
        return ""
    judged, settings = sum(score.judged for score in record.slices), record.slicing
    text = f"{counted(judged, 'slice')} of at least {counted(settings['min_rows'], 'image')} were judged"
    text += f", out of {len(record.slices):,}." if judged < len(record.slices) else "."
    if any(score.corrected is not None for score in record.slices):
        text += (
            f" A slice is worse than the champion's if its corrected p is at most {settings['alpha']:.4g} (McNemar's "
            "exact test, one-sided, with Holm's correction for the number of slices)."
        )
    return text


def _looks(record: Decision) -> str:
    """Return how often the test split has been used to decide; empty for a decision that did not count."""
    if not record.looks:
        return ""
    if record.looks == 1:
        return f"This is the first decision on these test images.{_budget(record)}"
    return (
        f"This is decision {record.looks:,} on these test images: the more decisions use them, the more likely it is "
        f"that a promotion is due to chance.{_budget(record) or _chances(record)}"
    )


def _chances(record: Decision) -> str:
    """Return how many promotions by luck so many decisions may have brought, if that is known."""
    alpha = record.limits.get("alpha")
    if alpha is None or record.policy == "not_worse":
        return ""
    return (
        f" If no candidate was better, up to {record.looks * alpha:.2g} promotions by luck are to be expected of them "
        f"at alpha {alpha:.6g}; alpha_budget in the manifest would bound the probability of any."
    )


def _budget(record: Decision) -> str:
    """Return what is left of the error budget; empty without one."""
    if record.budget_left is None:
        return ""
    bound = f" The error budget is {record.limits['alpha_budget']:.6g} for all decisions on them"
    if record.budget_left:
        return f"{bound}; {counted(record.budget_left, 'decision')} {'is' if record.budget_left == 1 else 'are'} left."
    return f"{bound}, and none is left: {looks.REMEDY}."


def _champion_now(run: RunRecord, record: Decision) -> dict[str, Any] | None:
    """Return what the accuracy of the champion after the decision is worth; None if it has no score."""
    score = run.evaluation if record.outcome == "promoted" else run.champion_evaluation
    if record.champion is None or score is None or not score.rows:
        return None
    # An unchanged run shows the number that its decision would have had.
    decisions = record.looks - (record.outcome == "unchanged")
    return asdict(looks.worth(score.correct, score.rows, decisions))
