"""How the model behaves in the tests of the manifest: on slightly changed images, and on images it must get right."""

from __future__ import annotations

from typing import Any

from storage.records import Behaviour, BehaviourTest, RunRecord, to_json
from tasks.gate.behaviour import described
from tasks.report.phrases import class_name, counted


def behaviour(run: RunRecord) -> dict[str, Any] | None:
    """Return the result of each test, with examples; None if the manifest asks for none."""
    record = run.behaviour
    if not record:
        return None
    return {
        "sentence": _sentence(record),
        "images": record.images,
        "tests": [_test(run, test) for test in record.tests],
        "named_images": len(record.named),
        "named_right": len(record.named) - len(record.wrong),
        "wrong": [
            {
                "file": image.file,
                "label": image.label,
                "name": class_name(run, image.label),
                "predicted": image.predicted,
                "predicted_name": class_name(run, image.predicted),
                "probability": image.probability,
            }
            for image in record.wrong
        ],
    }


def _test(run: RunRecord, test: BehaviourTest) -> dict[str, Any]:
    return {
        "name": test.name,
        "change": described(test),
        "amount": test.amount,
        "limit": test.limit,
        "passed": test.passed,
        "worst": test.worst.name,
        "variants": to_json(test.variants),
        "classes": [{**to_json(one), "name": class_name(run, one.label)} for one in test.classes],
        "examples": [
            {
                **to_json(example),
                "before_name": class_name(run, example.before),
                "after_name": class_name(run, example.after),
            }
            for example in test.examples
        ],
    }


def _sentence(record: Behaviour) -> str:
    failed = [described(test) for test in record.tests if not test.passed]
    sentences = []
    if failed:
        sentences.append(f"Too many answers change with {' and '.join(failed)}.")
    elif record.tests:
        sentences.append(
            f"No change to {counted(record.images, 'test image')} alters more answers than its limit allows."
        )
    if record.named:
        right = len(record.named) - len(record.wrong)
        sentences.append(f"{right:,} of {counted(len(record.named), 'image')} that must be right are right.")
    return " ".join(sentences)
