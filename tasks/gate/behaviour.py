"""The rules about a model's behaviour: small changes of images, and images that it must get right."""

from __future__ import annotations

from collections.abc import Sequence

from storage.records import Behaviour, BehaviourTest, Rule
from storage.words import counted


def behaviour_rules(behaviour: Behaviour | None, classes: Sequence[str]) -> tuple[Rule, ...]:
    """Return a rule for each test that was asked for; every model has to meet them, with or without a champion.

    Args:
        classes: the names of the classes, by number.
    """
    if behaviour is None:
        return ()
    rules = [_of_test(test, behaviour.images) for test in behaviour.tests]
    return (*rules, _of_named(behaviour, classes)) if behaviour.named else tuple(rules)


def described(test: BehaviourTest) -> str:
    """Return what a test changes, such as `a shift of 1 pixel`."""
    amount = f"{test.amount:g}"
    if test.name == "shift":
        return f"a shift of {counted(int(test.amount), 'pixel')}"
    if test.name == "rotate":
        return f"a rotation by {amount} {'degree' if test.amount == 1 else 'degrees'}"
    return f"noise of deviation {amount}" if test.name == "noise" else f"a change of brightness by {amount}%"


def _of_test(test: BehaviourTest, images: int) -> Rule:
    worst = test.worst
    way = f", {worst.name}" if len(test.variants) > 1 and worst.changed else ""
    return Rule(
        f"share of answers changed by {described(test)}",
        f"at most {test.limit:.2%}",
        f"{worst.share:.2%} ({worst.changed:,} of {images:,}{way})",
        test.passed,
    )


def _of_named(behaviour: Behaviour, classes: Sequence[str]) -> Rule:
    wrong, right = behaviour.wrong, len(behaviour.named) - len(behaviour.wrong)
    observed = f"{right:,}"
    if wrong:
        first = f"{wrong[0].file}: {classes[wrong[0].predicted]} instead of {classes[wrong[0].label]}"
        observed += f" ({first}{f', and {len(wrong) - 1:,} more' if len(wrong) > 1 else ''})"
    return Rule("number of named images that are right", f"all {len(behaviour.named):,}", observed, not wrong)
