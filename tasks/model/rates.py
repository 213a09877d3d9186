"""The learning rate of each step: the schedules of Keras, with a warm-up before any of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from storage.datasets.training import TrainingConfig


def rate_after(config: TrainingConfig, steps: Any, per_epoch: int) -> Any:
    """Return the learning rate after `steps` steps of a training; for an array of steps, an array of rates (float64).

    The formulas are those of `keras.optimizers.schedules` (Keras 3, `learning_rate_schedule.py`), for step t of n after
    the warm-up, where n counts all epochs, even if patience ends the training before:

    - inverse, `InverseTimeDecay`: `learning_rate / (1 + decay · t)`
    - cosine, `CosineDecay`: `learning_rate · ((1 - final_share) · (1 + cos(π · t / n)) / 2 + final_share)`
    - exponential, `ExponentialDecay`: `learning_rate · final_share ^ (t / n)`

    The warm-up, `CosineDecay` from 0, is `learning_rate · t / w` in the w steps before; so the first step has rate 0.

    Args:
        per_epoch: steps per epoch.
    """
    warm = config.warmup_epochs * per_epoch
    rates = _scheduled(config, steps - warm, config.epochs * per_epoch - warm)
    return np.where(steps < warm, config.learning_rate * (steps / warm), rates) if warm else rates


def _scheduled(config: TrainingConfig, done: Any, every: int) -> Any:
    if config.schedule == "inverse":
        (decay,) = config.numbers("decay")
        return config.learning_rate / (1 + decay * done)
    (final,), share = config.numbers("final_share"), done / every
    if config.schedule == "exponential":
        return config.learning_rate * final**share
    return config.learning_rate * ((1 - final) * 0.5 * (1.0 + np.cos(np.pi * share)) + final)
