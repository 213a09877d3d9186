"""A study of MNIST, the same trials in each variant: `python -m benchmarks.trials "idxflow, one process"`.

The values are drawn at random, so that they do not depend on what came before. Nothing is pruned. Reading the archives
does not count; importing the libraries does, once in each process, as it does in a study.
"""

from __future__ import annotations

import os
import time
import tomllib
from typing import Any

import numpy as np

from benchmarks import subjects, training
from benchmarks.subjects import HELD_OUT, Measured

TRIALS, EPOCHS = 16, 10
ONE, TWO, KERAS = "idxflow, one process", "idxflow, two processes", "Optuna, model.fit"
SPACE = """\
[hidden]
choices = [[50, 50], [100], [100, 50]]
[activation]
choices = ["tanh", "relu"]
[learning_rate]
low = 0.001
high = 0.1
log = true
[batch_size]
choices = [64, 128]
"""


def work() -> tuple[int, int]:
    """Return the number of trials, and of the epochs of each."""
    return (4, 1) if subjects.quick() else (TRIALS, EPOCHS)


def ours(name: str, at_once: int) -> Measured:
    """Carry out the study with so many processes; return the seconds for each trial."""
    from flows.pipeline import Directly
    from flows.run import Request
    from flows.settings import configure_prefect, relax_garbage_collection, silence_prefect
    from flows.tuning.request import StudyRequest
    from flows.tuning.study import carry_out

    # As the command does.
    relax_garbage_collection()
    configure_prefect()
    silence_prefect()
    folder, (trials, epochs) = subjects.new_folder("study"), work()
    space = folder / "space.toml"
    space.write_text(SPACE, encoding="utf-8")
    fixed = (f"epochs={epochs}", "momentum=0.9", "held_out=tail")
    run = Request("mnist", settings=fixed, source=os.environ[subjects.MNIST_VARIABLE], store=str(folder / "store"))
    how: dict[str, Any] = {"space": str(space), "sampler": "random", "pruner": "none", "at_once": at_once}
    # The data, and no trial.
    carry_out(StudyRequest(run, trials, 1e-9, **how), Directly(), "a benchmark", lambda *_: None)
    started = time.perf_counter()
    course = carry_out(StudyRequest(run, trials, **how), Directly(), "a benchmark", lambda *_: None)
    seconds = time.perf_counter() - started
    best = course.ranking[0]
    return Measured({name: seconds / trials}, f"{best.accuracies[0]:.1%} held out, trial {best.number} of {trials}")


def with_keras() -> Measured:
    """The same trials by Optuna, each a `model.fit` of Keras on TensorFlow; return the seconds for each."""
    from tasks.tuning.optuna_study import Proposals
    from tasks.tuning.space import parsed

    pixels, labels = subjects.normalised()
    trials, epochs = work()
    proposals = Proposals(parsed(tomllib.loads(SPACE), "the benchmark"), "random", "loss", 1)
    first = {"hidden": [50, 50], "activation": "tanh", "learning_rate": training.RATE, "batch_size": 64}
    values = [first, *(proposals.values(number, [], []) for number in range(1, trials))]
    started = time.perf_counter()
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    keras = training.tensorflow_keras()
    targets = np.eye(10, dtype=np.float32)[labels]
    accuracies: list[float] = []

    def objective(trial: Any) -> float:
        chosen = values[trial.suggest_categorical("number", [*range(trials)])]
        keras.utils.set_random_seed(1)
        layers = [keras.layers.Dense(units, chosen["activation"]) for units in chosen["hidden"]]
        model = keras.Sequential([keras.Input((784,)), *layers, keras.layers.Dense(10, "softmax")])
        rate = keras.optimizers.schedules.InverseTimeDecay(chosen["learning_rate"], 1, training.DECAY)
        sgd = keras.optimizers.SGD(rate, training.MOMENTUM)
        model.compile(sgd, "categorical_crossentropy", metrics=["accuracy"])
        split = HELD_OUT / len(labels)
        done = model.fit(pixels, targets, chosen["batch_size"], epochs, verbose=0, validation_split=split)
        accuracies.append(done.history["val_accuracy"][-1])
        return float(done.history["val_loss"][-1])

    best = _optimized(optuna, objective, trials)
    seconds = time.perf_counter() - started
    return Measured({KERAS: seconds / trials}, f"{accuracies[best]:.1%} held out, trial {best} of {trials}")


def _optimized(optuna: Any, objective: Any, trials: int) -> int:
    """Have Optuna call the objective once for each trial, in order; return the number of the best."""
    study = optuna.create_study(direction="minimize")
    for number in range(trials):
        study.enqueue_trial({"number": number})
    study.optimize(objective, n_trials=trials)
    return int(study.best_trial.number)


VARIANTS: subjects.Variants = {
    ONE: lambda: ours(ONE, 1),
    TWO: lambda: ours(TWO, 2),
    KERAS: with_keras,
}

if __name__ == "__main__":
    subjects.answer(VARIANTS)
