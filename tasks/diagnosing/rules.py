"""What went wrong in a training, by stated rules: `docs/diagnosis.md` has each rule, its threshold and its source.

Each rule looks at the course of a training and returns what it found, with one thing to try, or None. Rules that name a
cause come before those that name only its effect: a network whose units are all dead fits too little, too, but more
units would not help.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from storage.datasets.training import NETWORK, TrainingConfig
from storage.records import Epoch, LayerActivity

NOT_LEARNING = 0.98
"""Least loss of a network that has not learned, as a share of the loss of predicting the class shares."""
NO_BETTER = 0.1
"""Most accuracy of such a network: that of the largest class, and this share of the rest."""
EXPLODING = 10.0
"""Least norm of all gradients, as a multiple of that of the first epoch, and of the median of all epochs."""
VANISHING = 1e-3
"""Most norm of the gradient of a hidden layer, as a share of that of the last layer; the median over epochs."""
SATURATED = 0.8
"""Least share of a layer's outputs that are saturated."""
DEAD = 0.5
"""Least share of a layer's units that are dead."""
FITTED = 0.05
"""Fitted loss below which it does no harm if gradients are small, as a share of that of predicting the class shares."""
RISE, RISE_OF_ALL = 0.05, 0.01
"""Least rise of the fitted loss from one epoch to the next that counts, as a share of the loss, and of that of
predicting the class shares."""
RISES = 0.1
"""Least share of epochs in which the loss rises, at least two."""
TURNED = 0.05
"""Least rise of the held-out loss above its lowest value."""
FALLING = 0.03
"""Least fall of the loss over the last fifth of the epochs, as a share of the loss of predicting the class shares."""
STILL_LEARNING = 0.1
"""Least fall of a high loss over the last fifth of the epochs, as a share of what was learned in all of them."""
HIGH = 0.25
"""Least fitted loss that is high, as a share of the loss of predicting the class shares."""
UNLIKE = 1.25
"""Least held-out loss after the first epoch, as a multiple of the fitted loss in it."""
FEWEST_EPOCHS = 5
"""Epochs below which the end of a curve says nothing."""
FEWEST_ROWS = 30
"""Held-out rows below which their loss says nothing."""

_FIFTH = 5
_MOST_RATE = 1.0
_USUAL = TrainingConfig()


@dataclass(frozen=True)
class Found:
    """What one rule found."""

    name: str
    sentence: str
    """What was seen, with its figures."""
    source: str
    """The publication that the rule comes from."""
    settings: Mapping[str, Any]
    """The training parameters to try instead, by name."""


@dataclass(frozen=True)
class Course:
    """What the rules look at."""

    epochs: Sequence[Epoch]
    """Up to the one whose weights were kept, at least one."""
    config: TrainingConfig
    shares: Sequence[float]
    """Of each class in the training rows; they add up to 1."""
    layers: Sequence[LayerActivity] = ()
    held_out_rows: int = 0
    differences: Sequence[str] = field(default_factory=tuple)
    """How the held-out rows differ from the fitted ones, in words."""

    @property
    def last(self) -> Epoch:
        """The epoch whose weights were kept."""
        return self.epochs[-1]

    @property
    def by_shares(self) -> float:
        """See `entropy`."""
        return entropy(self.shares)

    @property
    def losses(self) -> np.ndarray:
        """Of the fitted rows by epoch, float64."""
        return np.array([epoch.loss for epoch in self.epochs])

    @property
    def held_out(self) -> np.ndarray:
        """The losses of the held-out rows by epoch, float64; empty if an epoch has none."""
        losses = [epoch.validation_loss for epoch in self.epochs if epoch.validation_loss is not None]
        return np.array(losses if len(losses) == len(self.epochs) else [])

    @property
    def fifth(self) -> int:
        """A fifth of the epochs, at least one."""
        return max(1, len(self.epochs) // _FIFTH)

    @property
    def rises(self) -> int:
        """In how many epochs the fitted loss rose, by more than chance would have it."""
        steps = np.diff(self.losses)
        return int(((steps > RISE * self.losses[:-1]) & (steps > RISE_OF_ALL * self.by_shares)).sum())

    @property
    def is_unsteady(self) -> bool:
        """Whether the fitted loss rose in so many epochs that the steps must be too long."""
        return self.rises >= max(2, RISES * (len(self.epochs) - 1))

    @property
    def is_high(self) -> bool:
        """Whether much is left to learn of the fitted rows."""
        return self.last.loss >= HIGH * self.by_shares

    @property
    def is_still_learning(self) -> bool:
        """Whether the loss was falling at the end: of the held-out rows, if there are any."""
        losses = self.held_out if len(self.held_out) else self.losses
        if len(losses) < FEWEST_EPOCHS or losses.argmin() < len(losses) - self.fifth:
            return False
        fallen = losses[-1 - self.fifth] - losses[-1]
        learned = self.by_shares - losses[-1]
        return bool(fallen >= FALLING * self.by_shares or (self.is_high and fallen >= STILL_LEARNING * learned > 0))

    @property
    def is_fitted(self) -> bool:
        """Whether hardly anything is left to learn of the fitted rows."""
        return self.last.loss < FITTED * self.by_shares

    @property
    def has_learned(self) -> bool:
        """Whether the network knows more than the class shares."""
        return knows_more(self.shares, self.last.loss, self.last.accuracy)


def entropy(shares: Sequence[float]) -> float:
    """Return the loss, in nats, of predicting only the class shares; 0 for a single class."""
    return -sum(share * math.log(share) for share in shares if share)


def knows_more(shares: Sequence[float], loss: float, accuracy: float) -> bool:
    """Return whether a network with this loss, in nats, and accuracy knows more than the class shares."""
    most, by_shares = max(shares), entropy(shares)
    no_better = accuracy <= most + NO_BETTER * (1 - most)
    return not by_shares or not no_better or loss < NOT_LEARNING * by_shares


def findings(course: Course) -> tuple[Found, ...]:
    """Return what the rules found in the course of a training, the most important first.

    Of a network that a user's own function has made, only what other parameters than those of the network can change.
    """
    causes = [*filter(None, (_changeable(rule(course), course) for rule in _CAUSES))]
    effects = [] if causes else [*filter(None, (_changeable(rule(course), course) for rule in _EFFECTS))]
    found = [*causes, *effects, *filter(None, (rule(course) for rule in _HELD_OUT))]
    if not course.has_learned:
        # It is the news; the first cause, if one is known, has the thing to try.
        found.insert(0, _not_learning(course, found[0] if causes else None))
    return tuple(found)


def _changeable(found: Found | None, course: Course) -> Found | None:
    is_of_network = found and course.config.model and not found.settings.keys().isdisjoint(NETWORK)
    return None if is_of_network else found


def _not_learning(course: Course, cause: Found | None) -> Found:
    last, rate = course.last, course.config.learning_rate
    sentence = (
        f"The network did not learn: after epoch {last.epoch:,} its loss on the fitted rows is {last.loss:.4f}, and "
        f"predicting only the class shares gives {course.by_shares:.4f}."
    )
    fallen = course.losses[0] - last.loss
    factor = 10 ** math.ceil(math.log10(course.by_shares / fallen)) if 0 < fallen < course.by_shares else 10
    settings = cause.settings if cause else {"learning_rate": _rate(rate * min(max(factor, 10), 1000))}
    return Found("not learning", sentence, "A. Karpathy 2019, A Recipe for Training Neural Networks", settings)


def _exploding(course: Course) -> Found | None:
    norms = [math.hypot(*epoch.gradients.values()) for epoch in course.epochs if epoch.gradients]
    if not norms or max(norms) < EXPLODING * max(norms[0], float(np.median(norms))) or not norms[0]:
        return None
    worst = int(np.argmax(norms))
    sentence = (
        f"The gradients exploded: their norm was {norms[0]:.3g} at the end of epoch 1 and {norms[worst]:.3g} at the "
        f"end of epoch {course.epochs[worst].epoch:,}, {norms[worst] / norms[0]:.3g} times as large."
    )
    source = "R. Pascanu, T. Mikolov, Y. Bengio 2013, On the Difficulty of Training Recurrent Neural Networks, ICML"
    return Found("exploding gradients", sentence, source, _slower(course))


def _dead(course: Course) -> Found | None:
    worst = max(course.layers, key=lambda layer: layer.dead or 0, default=None)
    if worst is None or (worst.dead or 0) < DEAD or course.is_fitted:
        return None
    sentence = (
        f"Units are dead: {worst.dead:.0%} of the {worst.units:,} units of layer {worst.name} put out 0 for every row, "
        "so their weights get no gradient and cannot change."
    )
    source = "L. Lu, Y. Shin, Y. Su, G. Karniadakis 2020, Dying ReLU and Initialization, CiCP 28"
    return Found("dead units", sentence, source, _slower(course))


def _saturated(course: Course) -> Found | None:
    worst = max(course.layers, key=lambda layer: layer.saturated or 0, default=None)
    if worst is None or (worst.saturated or 0) < SATURATED or course.is_fitted:
        return None
    sentence = (
        f"Units are saturated: {worst.saturated:.0%} of the outputs of layer {worst.name} are where {worst.activation} "
        "is almost flat, so hardly any gradient gets through."
    )
    source = "X. Glorot, Y. Bengio 2010, Understanding the Difficulty of Training Deep Feedforward Neural Networks"
    return Found("saturated units", sentence, f"{source}, AISTATS", _slower(course))


def _vanishing(course: Course) -> Found | None:
    rows = [[*epoch.gradients.values()] for epoch in course.epochs if len(epoch.gradients) > 1]
    # The last layer has none where nothing is left to learn.
    shares = np.array([np.array(norms[:-1]) / norms[-1] for norms in rows if norms[-1] and len(norms) == len(rows[0])])
    if not len(shares) or course.is_fitted or np.median(shares, axis=0).min() >= VANISHING:
        return None
    worst = int(np.median(shares, axis=0).argmin())
    names = [*course.epochs[-1].gradients]
    sentence = (
        f"The gradients vanished on their way back: that of layer {names[worst]} is "
        f"{float(np.median(shares, axis=0)[worst]):.1e} times that of layer {names[-1]}, so it hardly changes."
    )
    source = "S. Hochreiter 1998, The Vanishing Gradient Problem During Learning Recurrent Neural Nets, IJUFKS 6"
    flat = course.config.activation in ("sigmoid", "tanh")
    settings = {"activation": "relu"} if flat else {"hidden": list(course.config.hidden[:2])}
    return Found("vanishing gradients", sentence, source, settings)


def _too_high(course: Course) -> Found | None:
    if not course.is_unsteady:
        return None
    sentence = (
        f"The learning rate is too high: in {course.rises:,} of {len(course.epochs) - 1:,} epochs the loss on the "
        f"fitted rows rose by more than {RISE:.0%} instead of falling."
    )
    source = "Y. Bengio 2012, Practical Recommendations for Gradient-Based Training of Deep Architectures"
    return Found("learning rate too high", sentence, source, _slower(course))


def _too_low(course: Course) -> Found | None:
    losses = course.held_out if len(course.held_out) else course.losses
    if not course.is_still_learning or not course.has_learned or course.rises:
        return None
    which = "held-out" if len(course.held_out) else "fitted"
    epochs = "epoch" if course.fifth == 1 else f"{course.fifth:,} epochs"
    sentence = (
        f"The learning rate is too low for {len(losses):,} epochs: the loss on the {which} rows was still falling, "
        f"from {losses[-1 - course.fifth]:.4f} to {losses[-1]:.4f} over the last {epochs}."
    )
    source = "I. Goodfellow, Y. Bengio, A. Courville 2016, Deep Learning, section 11.4.1"
    return Found("learning rate too low", sentence, source, {"learning_rate": _rate(course.config.learning_rate * 10)})


def _under_fitting(course: Course) -> Found | None:
    losses = course.losses
    if len(losses) < FEWEST_EPOCHS or not (course.has_learned and course.is_high) or course.is_still_learning:
        return None
    sentence = (
        f"The network under-fits: it gets only {course.last.accuracy:.2%} of the fitted rows right, and its loss on "
        f"them, {losses[-1]:.4f}, is {losses[-1] / course.by_shares:.0%} of that of predicting only the class shares "
        "and no longer falls."
    )
    source = "I. Goodfellow, Y. Bengio, A. Courville 2016, Deep Learning, section 5.2"
    config = course.config
    if config.weight_decay:
        return Found("under-fitting", sentence, source, {"weight_decay": 0.0})
    usual = max(_USUAL.hidden)
    hidden = [max(2 * units, usual) for units in config.hidden] or [*_USUAL.hidden]
    return Found("under-fitting", sentence, source, {"hidden": hidden})


def _over_fitting(course: Course) -> Found | None:
    losses = course.held_out
    if not len(losses) or course.is_unsteady:
        return None
    best = int(losses.argmin())
    after = losses[max(best + 1, len(losses) - max(2, course.fifth)) :]
    if len(after) < 2 or after.min() <= (1 + TURNED) * losses[best] or course.losses[-1] > course.losses[best]:
        return None
    sentence = (
        f"The network over-fits: the loss on the held-out rows was lowest after epoch {best + 1:,}, "
        f"{losses[best]:.4f}, and has risen to {losses[-1]:.4f} since, while that on the fitted rows fell from "
        f"{course.losses[best]:.4f} to {course.losses[-1]:.4f}."
    )
    source = "L. Prechelt 1998, Early Stopping – But When?, Neural Networks: Tricks of the Trade"
    settings = {"patience": 5} if course.config.patience is None else {"restore_best": True}
    return Found("over-fitting", sentence, source, settings)


def _unlike(course: Course) -> Found | None:
    first, differences = course.epochs[0], [*course.differences]
    apart = first.validation_loss is not None and first.validation_loss >= UNLIKE * first.loss
    if apart and course.held_out_rows >= FEWEST_ROWS and course.has_learned and not course.is_unsteady:
        differences.append(
            f"a loss of {first.validation_loss:.4f} after the first epoch, when that on the fitted rows was "
            f"{first.loss:.4f}"
        )
    if not differences:
        return None
    sentence = (
        f"The held-out rows are unlike the fitted ones: {', '.join(differences)}. So the difference between the two "
        "says little about over-fitting."
    )
    source = "B. L. Welch 1947, Biometrika 34, and K. Pearson 1900, Philosophical Magazine 50"
    config = course.config
    settings = {"held_out": "stratified"} if config.held_out == "tail" else {"seed": config.seed + 1}
    return Found("held-out rows unlike", sentence, source, settings)


_Rule = Callable[[Course], Found | None]
_CAUSES: tuple[_Rule, ...] = (_exploding, _dead, _saturated, _vanishing, _too_high)
_EFFECTS: tuple[_Rule, ...] = (_too_low, _under_fitting)
_HELD_OUT: tuple[_Rule, ...] = (_over_fitting, _unlike)


def _slower(course: Course) -> dict[str, Any]:
    return {"learning_rate": _rate(course.config.learning_rate / 10)}


def _rate(value: float) -> float:
    """Return a learning rate of two significant digits, within what an experiment can use."""
    return float(f"{min(value, _MOST_RATE):.2g}")
