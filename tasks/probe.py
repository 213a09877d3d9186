"""Test how a model behaves where accuracy says nothing: on slightly changed images, and on images it must get right.

Only if the manifest asks for it, in `[behaviour]`. The gate refuses a model that fails (`tasks.gate.behaviour`).
"""

from __future__ import annotations

import logging
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from storage.datasets.catalog import Dataset
from storage.datasets.training import TrainingConfig
from storage.errors import ConfigError
from storage.files import digest_of
from storage.formats import behaviour_images
from storage.formats.behaviour_images import Images
from storage.records import Behaviour, Done, Evaluation, FolderEntry, Split, TrainedModel
from storage.runtime import code_digests
from storage.store import Plan, Store
from tasks.model import augmentation, scaling
from tasks.model.classifier import Classifier, libraries_of
from tasks.probing import answers, changes, named_images
from tasks.ui import progress, summaries
from tasks.ui.steps import log_step

NAMED_IMAGES = "named_images"
"""The parameter that has the digest of the images that must be right."""

_log = logging.getLogger(__name__)


@task(task_run_name="probe", cache_policy=NO_CACHE)
def probe(store: Store, dataset: Dataset, model: TrainedModel, test: Split, evaluation: Evaluation) -> Done[Behaviour]:
    """Carry out the tests of `dataset.behaviour` on a model, or find an earlier result.

    Args:
        evaluation: of `model` on `test`; its key stands for both.

    Raises:
        ConfigError, FormatError: see `tasks.probing.named_images.read`.
        DamagedEntry: a file of the model or of the split is not what its record says.
    """
    settings = asked(dataset)
    plan = Plan(
        dataset.name,
        "probe",
        inputs={"weights": model.weights_digest, "evaluation": evaluation.entry.key},
        parameters=settings,
        code=code_digests.digests(__name__),
        libraries=code_digests.library_versions("numpy", "scipy", *libraries_of(model)),
    )

    def make(folder: Path) -> Behaviour:
        with progress.working("probe"):
            return probe_into(folder, dataset, model, test, digest_of(settings))

    result = store.get_or_make(plan, Behaviour, make, summaries.behaviour)
    log_step(_log, result.step)
    return result


def asked(dataset: Dataset) -> dict[str, object]:
    """Return what the manifest asks for, as JSON values, with the digest of the named images instead of their folder.

    Raises:
        ConfigError, FormatError: see `tasks.probing.named_images.read`.
    """
    settings = dataset.behaviour.model_dump(mode="json", exclude_none=True) if dataset.behaviour else {}
    settings.pop("must_be_right", None)
    images = named_images.digest(dataset)
    return settings | ({NAMED_IMAGES: images} if images else {})


def probe_into(folder: Path, dataset: Dataset, model: TrainedModel, test: Split, asked_digest: str) -> Behaviour:
    """Write pictures of examples to `<folder>/examples.npz`, and return the results of all tests.

    Raises:
        ConfigError: an image was changed meanwhile, or see `probe`.
        FormatError, DamagedEntry: see `probe`.
    """
    settings = dataset.behaviour
    if settings is None:
        raise ValueError(f"expected tests in [behaviour] of {dataset.manifest}; found none")
    classifier = Classifier(model)
    ways = list(changes.ways(settings, background(model, test.image_shape)))
    tested = answers.tested(classifier, settings, ways, test)
    named, wrong = answers.named(classifier, named_images.read(dataset), dataset.image_shape)
    entry = FolderEntry(folder)
    result = Behaviour(entry, asked_digest, tested.images, test.image_shape, tested.tests, named)
    behaviour_images.write(result, Images(tested.before, tested.after, wrong))
    if digest_of(asked(dataset)) != asked_digest:
        raise ConfigError(
            f"{dataset.manifest}: expected the images of behaviour.must_be_right to stay as they are during a run; "
            "found others than at its start; run again"
        )
    return result


def background(model: TrainedModel, image_shape: tuple[int, int]) -> int:
    """Return what fills the pixels that nothing is moved to, 0-255: the same as in augmentation."""
    statistics = scaling.read(model.normalization, image_shape[0] * image_shape[1])
    moved = augmentation.chosen(TrainingConfig(shift=1.0), image_shape, statistics, model.pixel_range)
    return moved.background if moved else 0
