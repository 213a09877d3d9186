"""The update rules of the optimizers, operation by operation as in Keras 3, for the compiled loop of `fitting`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from storage.datasets.training import TrainingConfig
from tasks.model import network

Slots = Mapping[str, Any]
"""The variables beside a weight, of its shape and zero at first, by name."""


def slots(config: TrainingConfig) -> tuple[str, ...]:
    """Return the names of what an optimizer keeps for each weight, as Keras names it."""
    if config.optimizer == "rmsprop":
        return ("velocity", "momentum") if config.momentum else ("velocity",)
    return ("momentum",) if config.optimizer == "sgd" else ("momentum", "velocity")


def counts_steps(config: TrainingConfig) -> bool:
    """Return whether the rule depends on the number of the step."""
    return config.optimizer in ("adam", "adamw")


def update(config: TrainingConfig, weight: Any, own: Slots, gradient: Any, rates: tuple[Any, ...]) -> None:
    """Change a weight and its slots by a gradient.

    Args:
        weight: a variable, float32.
        own: its slots.
        rates: what `step_rates` returned for this step.
    """
    if config.weight_decay:
        weight.assign_sub(weight * config.weight_decay * rates[0])
    _RULES[config.optimizer](config, weight, own, gradient, rates)


def step_rates(config: TrainingConfig, rate: Any, step: Any = None) -> tuple[Any, ...]:
    """Return what a step's updates have in common: the learning rate, and for adam its corrected one.

    Args:
        rate: the learning rate, float32.
        step: number of the step from 1, float32; None if the rule does not depend on it.

    The correction is for slots that begin at zero: Kingma and Ba, Adam, 2015, end of section 2.
    """
    if not counts_steps(config):
        return (rate,)
    tf, (beta_1, beta_2) = network.tensorflow(), config.numbers("beta_1", "beta_2")
    power_1, power_2 = tf.pow(beta_1, step), tf.pow(beta_2, step)
    return rate, rate * tf.sqrt(1 - power_2) / (1 - power_1)


def _sgd(config: TrainingConfig, weight: Any, own: Slots, gradient: Any, rates: tuple[Any, ...]) -> None:
    """`momentum = share · momentum - rate · gradient`, `weight += momentum` (`sgd.py`)."""
    # Keras's two assignments, in one operation.
    network.tensorflow().raw_ops.ResourceApplyKerasMomentum(
        var=weight.handle, accum=own["momentum"].handle, lr=rates[0], grad=gradient, momentum=config.momentum
    )


def _adam(config: TrainingConfig, weight: Any, own: Slots, gradient: Any, rates: tuple[Any, ...]) -> None:
    """`weight -= corrected rate · mean / (sqrt(mean of squares) + epsilon)` (`adam.py`).

    TensorFlow's own operation for this is not used: it has 1 - beta_2 in float32, 0.005% away from Keras's.
    """
    tf, momentum, velocity = network.tensorflow(), own["momentum"], own["velocity"]
    beta_1, beta_2, epsilon = config.numbers("beta_1", "beta_2", "epsilon")
    momentum.assign_add((gradient - momentum) * (1 - beta_1))
    velocity.assign_add((tf.square(gradient) - velocity) * (1 - beta_2))
    weight.assign_sub(momentum * rates[1] / (tf.sqrt(velocity) + epsilon))


def _rmsprop(config: TrainingConfig, weight: Any, own: Slots, gradient: Any, rates: tuple[Any, ...]) -> None:
    """`weight -= rate · gradient / sqrt(mean of squares + epsilon)`, with momentum if that is not 0 (`rmsprop.py`)."""
    tf, velocity = network.tensorflow(), own["velocity"]
    rho, epsilon, momentum = config.numbers("rho", "epsilon", "momentum")
    velocity.assign(rho * velocity + (1 - rho) * tf.square(gradient))
    change = rates[0] * gradient / tf.sqrt(velocity + epsilon)
    if momentum:
        change = own["momentum"].assign(momentum * own["momentum"] + change)
    weight.assign_sub(change)


_RULES: dict[str, Callable[..., None]] = {"sgd": _sgd, "adam": _adam, "adamw": _adam, "rmsprop": _rmsprop}
