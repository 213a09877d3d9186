"""Use the champion of a data set from Python, after `python examples/own_data.py`.

    python examples/use_champion.py

Its arrays are read from the store and verified, and NumPy does the rest: neither Prefect nor TensorFlow is imported.
"""

from __future__ import annotations

from own_data import draw

from tasks.serving.predict import load_champion


def main() -> None:
    """Classify new images, and print the answers beside the truth."""
    model = load_champion("shapes")
    print(f"champion v{model.version.number}, test accuracy {model.version.test_accuracy:.1%}")

    # Raw pixels, as the archives have them: the model normalizes them itself.
    images, labels = draw(6, seed=3)
    predictions = model.predict(images)
    for name, probability, label in zip(predictions.name, predictions.probability, labels, strict=True):
        print(f"{name:<6} {probability:.1%}  (it is a {model.classes[label]})")


if __name__ == "__main__":
    main()
