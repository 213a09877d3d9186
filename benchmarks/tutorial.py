"""The tutorial's script in today's Keras: `python -m benchmarks.tutorial 50`.

The published recipe from the archives to the accuracies, as a script without any checks, files or orchestration. Its
progress bar is left out, which is in its favour. Prints the accuracy on the training and the test rows.
"""

from __future__ import annotations

import gzip
import os
import sys
from pathlib import Path

import numpy as np


def load(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images (uint8, shape (n, 784)) and labels."""
    with gzip.open(folder / f"{name}-labels-idx1-ubyte.gz") as stream:
        labels = np.frombuffer(stream.read(), np.uint8, offset=8)
    with gzip.open(folder / f"{name}-images-idx3-ubyte.gz") as stream:
        images = np.frombuffer(stream.read(), np.uint8, offset=16).reshape(len(labels), 784)
    return images, labels


def main(folder: Path, epochs: int) -> None:
    """Train and score."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    keras.utils.set_random_seed(1)
    train, train_labels = load(folder, "train")
    test, test_labels = load(folder, "t10k")
    train, test = ((images / 255.0 - 0.5) * 2 for images in (train, test))
    mean, deviation = train.mean(axis=0), train.std()
    train, test = (train - mean) / deviation, (test - mean) / deviation
    model = keras.Sequential(
        [
            keras.Input((784,)),
            keras.layers.Dense(50, activation="tanh"),
            keras.layers.Dense(50, activation="tanh"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    # Keras 3 has no `decay=`; this is the schedule that it was.
    rate = keras.optimizers.schedules.InverseTimeDecay(0.001, 1, 1e-7)
    model.compile(keras.optimizers.SGD(rate, momentum=0.9), "categorical_crossentropy", metrics=["accuracy"])
    wanted = keras.utils.to_categorical(train_labels, 10)
    model.fit(train, wanted, batch_size=64, epochs=epochs, verbose=0, validation_split=0.1)
    right = [
        float((model.predict(images, verbose=0).argmax(1) == labels).mean())
        for images, labels in ((train, train_labels), (test, test_labels))
    ]
    print(f"{right[0]:.2%} on training, {right[1]:.2%} on test")


if __name__ == "__main__":
    main(Path(os.environ["IDXFLOW_MNIST_DIR"]), int(sys.argv[1]))
