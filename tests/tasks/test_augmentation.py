"""Augmentation: images shifted, turned and scaled, as SciPy would; drawn from seed, epoch and row; never mirrored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.ndimage

from storage.datasets.training import TrainingConfig
from tasks.model import network
from tasks.model.augmentation import Augmentation, chosen
from tasks.model.fitting import Fitting
from tasks.model.scaling import Statistics, scale_and_offset
from tasks.model.training_rows import InMemory, row_order
from tests.support.models import STATISTICS, random_rows

ALL = Augmentation((9, 7), shift=2.0, rotate=20.0, zoom=0.3, seed=1, background=40)
MOVED = {"shift": 1.0, "rotate": 15.0, "zoom": 0.2}


def applied(augmentation: Augmentation, images: np.ndarray, transforms: np.ndarray) -> np.ndarray:
    tf = network.tensorflow()
    flat = augmentation.apply(tf.constant(images.reshape(len(images), -1)), tf.constant(transforms))
    return flat.numpy().reshape(images.shape)


def test_images_are_those_that_scipy_makes():
    images = np.random.default_rng(0).integers(0, 256, (30, 9, 7), np.uint8)
    transforms = ALL.transforms(1, 0, 30)
    for image, t, ours in zip(images, transforms.astype(float), applied(ALL, images, transforms), strict=True):
        # SciPy counts rows first.
        matrix, offset = [[t[4], t[3]], [t[1], t[0]]], [t[5], t[2]]
        theirs = scipy.ndimage.affine_transform(
            image.astype(float), matrix, offset, order=1, mode="grid-constant", cval=40
        )
        np.testing.assert_allclose(ours, theirs, atol=2e-3)
        assert np.abs(ours - image).max() > 10


def test_what_is_drawn_is_within_its_bounds_and_reaches_them_and_never_mirrors():
    t = ALL.transforms(3, 0, 5000).astype(float)
    # Backwards: from the pixels of the result to those of the image.
    forwards = np.linalg.inv(np.stack([t[:, 0:2], t[:, 3:5]], axis=1))
    assert (np.linalg.det(forwards) > 0).all()
    size = np.sqrt(np.linalg.det(forwards))
    angle = np.degrees(np.arctan2(forwards[:, 1, 0], forwards[:, 0, 0]))
    middle = np.array([3.0, 4.0])
    shift = np.einsum("nij,nj->ni", forwards, middle - t[:, [2, 5]]) - middle
    for values, most in ((size - 1, 0.3), (angle, 20), (shift[:, 0], 2), (shift[:, 1], 2)):
        assert np.abs(values).max() <= most * (1 + 1e-4)
        assert -0.99 * most > values.min()
        assert values.max() > 0.99 * most
        assert abs(values.mean()) < 0.05 * most
    assert np.abs(np.corrcoef([size, angle, *shift.T]) - np.eye(4)).max() < 0.06


def test_each_row_s_transform_depends_on_seed_epoch_and_place_only():
    first = ALL.transforms(1, 0, 20)
    np.testing.assert_array_equal(ALL.transforms(1, 7, 20), first[7:])
    np.testing.assert_array_equal(ALL.transforms(1, 0, 20), first)
    others = (ALL.transforms(2, 0, 20), replace(ALL, seed=2).transforms(1, 0, 20), ALL.transforms(1, 1, 21))
    assert all((other != first).any(axis=1).all() for other in others)


@pytest.mark.parametrize(
    ("edge", "middle", "pixel_range", "expected"),
    [
        (0, 200, (0, 255), 0),
        (255, 30, (0, 255), 255),
        (240, 100, (3, 250), 250),
        (10, 100, (3, 250), 3),
        (9, 9, None, 0),
    ],
)
def test_the_background_is_dark_or_bright_as_the_edge_is(
    edge: int, middle: int, pixel_range: tuple[int, int] | None, expected: int
):
    mean = np.full((5, 6), edge, float)
    mean[1:-1, 1:-1] = middle
    statistics = Statistics(mean.ravel() / 127.5 - 1, 0.5)
    augmentation = chosen(TrainingConfig(shift=1), (5, 6), statistics, pixel_range)
    assert augmentation
    assert augmentation.background == expected
    inside = applied(
        augmentation, np.full((1, 5, 6), middle, np.uint8), np.array([[1, 0, 9, 0, 1, 0, 0, 0]], np.float32)
    )
    assert (inside == expected).all()


def test_a_step_is_that_of_the_moved_images_and_scores_are_of_the_images_as_they_are():
    config = TrainingConfig(hidden=(), batch_size=16, momentum=0, learning_rate=0.5, decay=0, **MOVED)
    augmentation = chosen(config, (3, 4), STATISTICS, None)
    assert augmentation
    pixels, labels = random_rows(40)
    architecture = network.Architecture(12, (), "tanh", 3)
    fitting = Fitting(architecture, config, STATISTICS, InMemory(pixels, labels, 40, 1), 40, augmentation)
    fitting.epoch(1)
    reported = fitting.score(0, 40)
    weights = network.initial_weights(architecture, 1)
    kernel, bias = weights["classes.kernel"].astype(float), weights["classes.bias"].astype(float)
    scale, offset = scale_and_offset(STATISTICS)
    transforms, order = augmentation.transforms(1, 0, 40), row_order(1, 1, 40)
    for start in range(0, 40, 16):
        rows = order[start : start + 16]
        moved = applied(augmentation, pixels[rows].reshape(-1, 3, 4), transforms[start : start + 16])
        seen = moved.reshape(len(rows), -1) * scale + offset
        error = np.exp(seen @ kernel + bias)
        error = error / error.sum(axis=1, keepdims=True) - np.eye(3)[labels[rows]]
        kernel, bias = kernel - 0.5 * seen.T @ error / len(rows), bias - 0.5 * error.mean(axis=0)
    np.testing.assert_allclose(fitting.weights["classes.kernel"], kernel, atol=1e-5)
    np.testing.assert_allclose(fitting.weights["classes.bias"], bias, atol=1e-5)
    right = ((pixels * scale + offset) @ kernel + bias).argmax(1) == labels
    assert reported[1] == right.mean()


def test_what_is_off_costs_nothing():
    assert chosen(TrainingConfig(), (3, 4), STATISTICS, None) is None
    rows = InMemory(*random_rows(40), 40, 1)
    found = []
    for more in ({}, {"label_smoothing": 0.1, "optimizer": "adam", **MOVED}):
        config = TrainingConfig(hidden=(), **more)
        architecture = network.Architecture(12, (), "tanh", 3)
        fitting = Fitting(architecture, config, STATISTICS, rows, 40, chosen(config, (3, 4), STATISTICS, None))
        graph = str(fitting._compiled.passes[40].graph.as_graph_def())
        found.append([name in graph for name in ("ImageProjectiveTransformV3", "OneHot", "Pow")])
    assert found == [[False] * 3, [True] * 3]
