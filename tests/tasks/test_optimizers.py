"""Optimizers and schedules: step by step what Keras computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from storage.datasets.training import CHOICES, TrainingConfig
from tasks.model import network, optimizers
from tasks.model.rates import rate_after
from tests.support.models import random_rows

STEPS = 8
RATE = 0.01


def by_keras(config: TrainingConfig) -> Any:
    """Return Keras's optimizer with the parameters of `config`."""
    network.tensorflow()
    import keras

    kinds = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "rmsprop": "RMSprop"}
    own = {name: getattr(config, name) for name in CHOICES["optimizer"][config.optimizer]}
    return getattr(keras.optimizers, kinds[config.optimizer])(RATE, **own)


@pytest.mark.parametrize(
    "parameters",
    [
        {"optimizer": "sgd", "weight_decay": 0.02},
        {"optimizer": "adam"},
        {"optimizer": "adam", "beta_1": 0.7, "beta_2": 0.95, "epsilon": 0.01, "weight_decay": 0.02},
        {"optimizer": "adamw"},
        {"optimizer": "rmsprop"},
        {"optimizer": "rmsprop", "momentum": 0.8, "rho": 0.5, "epsilon": 0.01, "weight_decay": 0.02},
    ],
    ids=str,
)
def test_every_step_gives_keras_s_weights_and_slots_to_the_bit(parameters: dict[str, Any]):
    tf, config, keras_s = network.tensorflow(), TrainingConfig(**parameters), by_keras(TrainingConfig(**parameters))
    architecture = network.Architecture(12, (7,), "tanh", 3)
    model = network.build(architecture, network.initial_weights(architecture, 1))
    theirs = [variable.value for variable in model.trainable_variables]
    ours = [tf.Variable(variable) for variable in theirs]
    slots = [{slot: tf.Variable(tf.zeros_like(variable)) for slot in optimizers.slots(config)} for variable in ours]
    pixels, labels = random_rows(16 * STEPS)
    for step in range(STEPS):
        rows = slice(16 * step, 16 * step + 16)
        with tf.GradientTape() as tape:
            logits = model(pixels[rows].astype(np.float32) / 100, training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels[rows].astype(np.int32), logits))
        gradients = tape.gradient(loss, theirs)
        rates = optimizers.step_rates(config, tf.constant(RATE, tf.float32), tf.constant(step + 1, tf.float32))
        for weight, own, gradient in zip(ours, slots, gradients, strict=True):
            optimizers.update(config, weight, own, gradient, rates)
        keras_s.apply(gradients, theirs)
        for weight, their in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(weight.numpy(), their.numpy())
    kept = [variable.numpy() for own in slots for variable in own.values()]
    of_keras = [
        variable.numpy() for variable in keras_s.variables if variable.name not in ("iteration", "learning_rate")
    ]
    assert sorted(values.tobytes() for values in kept) == sorted(values.tobytes() for values in of_keras)
    assert all(np.abs(values).max() > 0 for values in kept)


PER_EPOCH, EPOCHS, WARM = 7, 6, 2


def schedule_by_keras(config: TrainingConfig) -> Any:
    """Return Keras's schedule, which computes in float64 if it is given that."""
    network.tensorflow()
    from keras.optimizers import schedules

    steps, warm = EPOCHS * PER_EPOCH, config.warmup_epochs * PER_EPOCH
    rate, decay, share = (np.float64(value or 0) for value in (config.learning_rate, config.decay, config.final_share))
    if config.schedule == "inverse":
        return schedules.InverseTimeDecay(rate, 1, decay)
    if config.schedule == "exponential":
        return schedules.ExponentialDecay(rate, steps, share)
    if not warm:
        return schedules.CosineDecay(rate, steps, share)
    return schedules.CosineDecay(np.float64(0), steps - warm, share, warmup_target=rate, warmup_steps=warm)


@pytest.mark.parametrize(
    "parameters",
    [
        {"schedule": "inverse", "decay": 0.05},
        {"schedule": "cosine"},
        {"schedule": "cosine", "final_share": 0.2},
        {"schedule": "cosine", "final_share": 0.2, "warmup_epochs": WARM},
        {"schedule": "exponential"},
        {"schedule": "exponential", "final_share": 0.5},
    ],
    ids=str,
)
def test_the_rate_of_every_step_is_keras_s(parameters: dict[str, Any]):
    config = TrainingConfig(epochs=EPOCHS, learning_rate=0.03, **parameters)
    schedule, steps = schedule_by_keras(config), np.arange(EPOCHS * PER_EPOCH + 1)
    expected = [float(schedule(np.float64(step))) for step in steps]
    ours = rate_after(config, steps, PER_EPOCH)
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, expected, rtol=1e-13, atol=1e-17)
    np.testing.assert_allclose([rate_after(config, int(step), PER_EPOCH) for step in steps], ours, rtol=1e-15)
    assert len(set(ours.tolist())) > EPOCHS * PER_EPOCH / 2


@pytest.mark.parametrize("parameters", [{"decay": 0.05}, {"schedule": "exponential"}], ids=str)
def test_any_schedule_begins_after_the_warm_up(parameters: dict[str, Any]):
    steps, warm = np.arange(EPOCHS * PER_EPOCH), WARM * PER_EPOCH
    rates = rate_after(TrainingConfig(epochs=EPOCHS, warmup_epochs=WARM, **parameters), steps, PER_EPOCH)
    np.testing.assert_allclose(rates[:warm], 0.001 * np.arange(warm) / warm)
    after = TrainingConfig(epochs=EPOCHS - WARM, **parameters)
    np.testing.assert_array_equal(rates[warm:], rate_after(after, steps[:-warm], PER_EPOCH))
