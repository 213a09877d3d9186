"""The frozen records passed between steps, and their JSON form.

A record names files and digests; it never holds arrays. The field `entry`, if a record has it, is the store entry
that the record describes, and opens its files. It is not part of the JSON form, so a store can be moved.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from storage.runtime.ranged import Source

Severity = Literal["critical", "warning"]
SplitName = Literal["train", "test"]
TestName = Literal["shift", "rotate", "noise", "brightness"]
Verdict = Literal["promoted", "kept", "unchanged", "refused", "forced", "rolled back"]

CUT_OFF = ("interrupted", "terminated", "cancelled", "crashed")
"""States of runs that did not finish: stopped by Ctrl-C, SIGTERM or a person, or because their process died.

The next run resumes from what they left.
"""

HTML = "report.html"
"""The name of a report's page."""
JSON = "report.json"
"""The name of its content for machines."""

SPLITS: tuple[SplitName, ...] = ("train", "test")

R = TypeVar("R")


class Entry(Protocol):
    """The files of a store entry, wherever they are."""

    @property
    def key(self) -> str:
        """Its name in the store: the key, or that of the run for a report."""

    def where(self, name: str = "") -> str:
        """Return the path or address of one of its files, or its own, for people."""

    def path(self, name: str) -> Path:
        """Return the path of one of its files on this machine, fetching the file first if need be.

        Raises:
            StoreError: it cannot be fetched.
        """

    def source(self, name: str) -> Source:
        """Return one of its files for a reader that needs little of it: its path, if it is on this machine.

        Raises:
            StoreError: it cannot be read.
        """

    def sha256(self, name: str) -> str | None:
        """Return the SHA-256 of one of its files, if it is known without reading the file."""

    def beside(self, key: str) -> Entry:
        """Return the entry with this key in the same folder of the store: one of its parts.

        Raises:
            DamagedEntry: there is none.
            StoreError: it cannot be read.
        """


@dataclass(frozen=True)
class FolderEntry:
    """An entry that is a folder of this machine, complete or in the making."""

    folder: Path

    @property
    def key(self) -> str:
        return self.folder.name

    def where(self, name: str = "") -> str:
        return str(self.folder / name)

    def path(self, name: str) -> Path:
        return self.folder / name

    def source(self, name: str) -> Source:
        return self.path(name)

    def sha256(self, name: str) -> str | None:
        return None

    def beside(self, key: str) -> Entry:
        return FolderEntry(self.folder.parent / key)


@dataclass(frozen=True)
class FilesEntry:
    """Some files of an entry by their names, for a process that knows nothing else of the store."""

    key: str
    folder: str
    files: Mapping[str, Path]

    def where(self, name: str = "") -> str:
        return f"{self.folder}/{name}".rstrip("/")

    def path(self, name: str) -> Path:
        return self.files[name]

    def source(self, name: str) -> Source:
        return self.path(name)

    def sha256(self, name: str) -> str | None:
        return None

    def beside(self, key: str) -> Entry:
        raise LookupError(f"expected nothing but the files of {self.folder}; asked for the entry {key}")


@dataclass(frozen=True)
class Step:
    """The result of one step of a run, for people and for machines."""

    step: str
    """Name of the step in `tasks`: `fetch`, `decode`, …"""
    key: str
    """Key of its entry in the store; empty if it makes none."""
    summary: str
    """One line with counts, for people."""
    seconds: float
    reused: bool
    reason: str
    """Why it ran, or why its result was reused."""
    subject: str = ""
    """Which of several results of the step: an archive's role, a split's name."""
    of: str = ""
    """The model it worked on: `champion`; empty for the run's own model."""

    @property
    def name(self) -> str:
        """The name shown to people: `train`, `decode test`, `evaluate champion`."""
        return " ".join(filter(None, (self.step, self.subject, self.of)))


@dataclass(frozen=True)
class Done(typing.Generic[R]):
    """The record that a step made or reused, and the line about the step."""

    record: R
    step: Step


@dataclass(frozen=True)
class Archive:
    """A complete archive in the store, byte for byte as published by its source."""

    entry: Entry
    role: str
    """`train-images`, `train-labels`, `test-images` or `test-labels`."""
    file_name: str
    size_bytes: int
    sha256: str
    source: str
    """Where it came from, without credentials."""
    parts: int = 0
    """If it is all the archives of its role: how many, which `storage.formats.members` lists; 0 if it is one file.

    Then name and source are those of the first, the size is that of all, and the digest that of their digests in order.
    """

    @property
    def file(self) -> Path:
        return self.entry.path(self.file_name)


@dataclass(frozen=True)
class Split:
    """One decoded split, with a row per image in the order of the archives: a Parquet file, or several parts.

    A part is a `Split` with a Parquet file, and an entry of its own beside this one. `storage.formats.split_rows` reads
    both.
    """

    entry: Entry
    name: SplitName
    rows: int
    image_shape: tuple[int, int]
    """Height and width in pixels."""
    classes: int
    digest: str
    """Digest of the decoded content, so that compressing the same pixels differently changes nothing downstream."""
    sources: Mapping[str, str]
    """SHA-256 of each archive's payload (header and data, decompressed), by role."""
    set_aside: int = 0
    """Number of the archives' rows that are in quarantine instead; not in older records."""
    parts: int = 0
    """Number of its parts, which `storage.formats.split_rows` lists; 0 if it is one file, and in older records."""

    @property
    def file(self) -> Path:
        """Its Parquet file, if it has no parts."""
        return self.entry.path(f"{self.name}.parquet")

    @property
    def source(self) -> Source:
        """The same, for a reader that needs little of it."""
        return self.entry.source(f"{self.name}.parquet")


@dataclass(frozen=True)
class Quarantine:
    """The rows of both splits that were set aside, and what is left."""

    entry: Entry
    set_aside: Mapping[str, int]
    """Number of rows by split."""
    reasons: Mapping[str, Mapping[str, int]]
    """Number of rows by split and check; a row can have several reasons."""
    released: int
    """Number of rows that a person has released."""
    checks: tuple[str, ...]
    """The checks whose rows are set aside."""
    max_share: float
    """Largest share of a split's rows that may be, in [0, 1]."""
    left: tuple[Split, ...]
    """What is left of each split from which rows were set aside; its file or the list of its parts is in this entry."""

    @property
    def file(self) -> Path:
        """The rows that were set aside, see `tasks.quarantine`."""
        return self.entry.path("quarantine.parquet")

    def rest(self, split: Split) -> Split:
        """Return what is left of a split: the split itself if no row of it was set aside."""
        left = next((left for left in self.left if left.name == split.name), None)
        return dataclasses.replace(left, entry=self.entry) if left else split


@dataclass(frozen=True)
class Check:
    """One expectation about the data, and its result."""

    table: str
    """`archives`, `train` or `test`."""
    name: str
    """The expectation in plain language."""
    expectation: str
    """The Great Expectations type that was evaluated."""
    column: str
    limit: str
    observed: str
    severity: Severity
    passed: bool
    rows: tuple[int, ...] = ()
    """The first offending row numbers (at most 20), counted from 0."""
    setting: str = ""
    """The manifest key that relaxes this check, such as `[limits] max_blank`."""


@dataclass(frozen=True)
class Validation:
    """The verdict on both splits. `passed` is false if any critical check failed."""

    entry: Entry
    passed: bool
    digest: str
    checks: tuple[Check, ...]
    class_counts: Mapping[str, tuple[int, ...]]
    """Rows per class, by split."""
    parts: int = 0
    """Number of parts of both splits, see `tasks.checking.measuring`; 0 if neither has parts, and in older records."""

    @property
    def summary(self) -> Path:
        """The table that was checked, one row per image, if it has no parts; see `tasks.validate`."""
        return self.entry.path("summary.parquet")

    @property
    def means(self) -> Path:
        """`mean` (float64, 0-255): the mean training image of each class with images; not in older entries."""
        return self.entry.path("means.npz")

    @property
    def failures(self) -> tuple[Check, ...]:
        return tuple(c for c in self.checks if not c.passed and c.severity == "critical")

    @property
    def warnings(self) -> tuple[Check, ...]:
        return tuple(c for c in self.checks if not c.passed and c.severity == "warning")


@dataclass(frozen=True)
class Audit:
    """What was found out about labels and about images that are in both splits. Nothing was removed."""

    entry: Entry
    digest: str
    """Digest of both tables."""
    rows: int
    """Training rows whose label was judged."""
    left_out: int
    """The other training rows: the label is not a class, or the class has too few different images to judge it."""
    suspect_rows: int
    """Judged rows for which a network that has not seen them finds another class more probable."""
    flagged_rows: int
    """Those of them whose label confident learning counts as wrong."""
    test_rows: int
    compared_rows: int
    """Test rows that were compared with the training split; all, unless there are too many pairs."""
    equal_rows: int
    """Test rows whose image is also in the training split."""
    near_rows: int
    """Other test rows whose image is within `near` of a training image."""
    near: float
    """The largest distance of near-duplicates, see `tasks.auditing.near_duplicates`."""
    folds: int
    """Networks that were fitted, each to the rows of all other folds."""
    seed: int

    @property
    def suspects(self) -> Path:
        """`tasks.auditing.tables.Suspects`, most suspicious first."""
        return self.entry.path("suspects.parquet")

    @property
    def near_duplicates(self) -> Path:
        """`tasks.auditing.tables.NearDuplicates`, the nearest first."""
        return self.entry.path("near_duplicates.parquet")


@dataclass(frozen=True)
class Normalization:
    """The held-out training rows, and statistics of the scaled pixels, `((x / 255) - 0.5) * 2`, of `rows` rows."""

    entry: Entry
    rows: int
    """Number of training rows that are not held out, or of all."""
    mean_of_means: float
    """Mean of the scaled values over all pixels, in [-1, 1]."""
    std: float
    """A single standard deviation of the scaled values over all pixels and rows, in (0, 1]."""
    digest: str
    """Digest of the statistics."""
    pixel_range: tuple[int, int] | None = None
    """The darkest and the brightest pixel of these rows, 0-255; not in older records."""
    held_out_rows: int = 0
    """Not in older records."""
    parts: int = 0
    """Number of parts of the training split, of each of which there is a `PartSums`; 0 if it is one file."""

    @property
    def file(self) -> Path:
        """`mean` (float64, one per pixel, in [-1, 1]) and `std` (float64 scalar)."""
        return self.entry.path("normalization.npz")

    @property
    def held_out(self) -> Path:
        """Whether each training row is held out, see `tasks.model.holdout`; not if it has parts or is older."""
        return self.entry.path("held_out.npz")

    @property
    def sides(self) -> Path:
        """If it has parts: how fitted and held-out rows compare, see `tasks.model.sides`."""
        return self.entry.path("sides.npz")


@dataclass(frozen=True)
class PartSums:
    """The held-out rows of one part of the training split, and the sums from which the statistics of all are made."""

    entry: Entry
    rows: int
    """Number of rows whose pixels are in the sums: those that are not held out, or all."""
    held_out_rows: int
    squares: int
    """Sum of the squares of all their pixels, of 0-255."""
    pixel_range: tuple[int, int]
    """The darkest and the brightest of their pixels, 0-255; (255, 0) if there is no such row."""
    brightness: tuple[tuple[int, int], ...]
    """Of all fitted and of all held-out rows: the sum over rows of the sum of their pixels, and that of its square."""

    @property
    def file(self) -> Path:
        """`pixels` (int64, one sum each) and `labels` (int64, shape (2, 256): fitted and held-out rows by label)."""
        return self.entry.path("sums.npz")

    @property
    def held_out(self) -> Path:
        """Whether each row of the part is held out, see `tasks.model.holdout`."""
        return self.entry.path("held_out.npz")


@dataclass(frozen=True)
class Epoch:
    """One pass over the fitted rows. Losses are mean categorical cross-entropies, in nats."""

    epoch: int
    """Counted from 1."""
    learning_rate: float
    """After the last step of the epoch."""
    loss: float
    accuracy: float
    validation_loss: float | None
    validation_accuracy: float | None
    seconds: float
    gradients: Mapping[str, float] = field(default_factory=dict)
    """By layer, the first one first: the Euclidean norm of the gradient of its weights, without biases, in the last
    step of the epoch; empty in older histories."""


@dataclass(frozen=True)
class LayerActivity:
    """The outputs of a layer's units for the first fitted rows, at most `tasks.model.activity.ROWS`."""

    name: str
    activation: str
    """By its name in Keras."""
    units: int
    """For a convolution: filters times places."""
    saturated: float | None
    """The share of outputs, over units and rows, where the slope of a sigmoid or tanh is less than 5% of its largest;
    None for other activations."""
    dead: float | None
    """The share of units that put out 0 for every row; None for activations other than relu."""


@dataclass(frozen=True)
class OwnFunction:
    """The user's function that has made a network."""

    name: str
    """Its file and its name, such as `my_models:build`."""
    source: str
    """SHA-256 of its source and of the files beside it that it imports."""
    layers: tuple[str, ...]
    """What it has made, in words, such as `Conv2D 8`."""


@dataclass(frozen=True)
class TrainedModel:
    """Weights, architecture and history of one training."""

    entry: Entry
    weights_digest: str
    parameters: int
    """Number of trained weights and biases."""
    fitted_rows: int
    validation_rows: int
    epochs_run: int
    chosen_epoch: int
    """The epoch whose weights were kept, counted from 1."""
    train_loss: float
    train_accuracy: float
    """Accuracy of the chosen weights over all training rows, held-out rows included, as in the tutorial."""
    pixel_range: tuple[int, int] | None = None
    """The darkest and the brightest pixel of the rows used for the statistics, 0-255; not in older records."""
    resumed_after: int = 0
    """Epochs that an interrupted run had completed; 0 if one run did all, and in older records."""
    device: str = ""
    """What TensorFlow has trained on: `CPU`, or the name of a GPU; empty in older records."""
    layers: tuple[LayerActivity, ...] = ()
    """The hidden layers whose activation has a saturated or a dead side; empty in older records."""
    own: OwnFunction | None = None
    """What has made the network, if a user's function has."""

    @property
    def weights(self) -> Path:
        return self.entry.path("weights.npz")

    @property
    def architecture(self) -> Path:
        return self.entry.path("architecture.json")

    @property
    def normalization(self) -> Path:
        return self.entry.path("normalization.npz")

    @property
    def history(self) -> Path:
        """JSON Lines, one `Epoch` per line."""
        return self.entry.path("history.jsonl")

    @property
    def history_source(self) -> Source:
        """The same, for a reader that needs it once."""
        return self.entry.source("history.jsonl")

    @property
    def export(self) -> Path:
        """The model for users, which takes raw pixels. No run reads it back."""
        return self.entry.path("model.keras")


@dataclass(frozen=True)
class Study:
    """What a search for better training parameters is about; its trials are entries beside this one."""

    entry: Entry
    space: Mapping[str, Mapping[str, Any]]
    """What is searched, by parameter, as `tasks.tuning.space` reads it."""
    config: Mapping[str, Any]
    """The complete training configuration before the search."""
    sampler: str
    pruner: str
    by: str
    """What is compared on the held-out rows: `accuracy` or `loss`."""
    seed: int
    """Of the sampler."""
    seeds: int
    """How many trainings each trial has, each with a seed and held-out rows of its own."""
    fitted_rows: int
    held_out_rows: int

    @property
    def space_file(self) -> Path:
        """The space, as `--space` takes it."""
        return self.entry.path("space.toml")


@dataclass(frozen=True)
class Trial:
    """One configuration that a study has tried, scored on held-out rows."""

    entry: Entry
    number: int
    """Counted from 0: the configuration before the search."""
    state: Literal["complete", "pruned", "failed"]
    values: Mapping[str, Any]
    """What the study has chosen, by parameter."""
    accuracies: tuple[float, ...]
    """On the held-out rows, in [0, 1], of each training; empty unless all are complete."""
    losses: tuple[float, ...]
    """Mean cross-entropy on the held-out rows, in nats, of each training; likewise."""
    curve: tuple[float, ...]
    """What is compared, after each epoch of the first training, as far as it went."""
    epochs: int
    """Passes over the fitted rows, of all trainings."""
    weights: int
    """Number of trained weights and biases; 0 if no training is complete."""
    seconds: float
    """That it took; less if a training was found in the store."""
    reason: str = ""
    """Why it was pruned or failed."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What the pruner needs to know of it later."""


@dataclass(frozen=True)
class Finding:
    """What a rule of `tasks.diagnosing` found in a training."""

    name: str
    """`not learning`, `over-fitting`, …"""
    sentence: str
    """What was seen, with its figures."""
    source: str
    """The publication that the rule comes from."""
    settings: Mapping[str, Any]
    """The training parameters to try instead, by name."""
    remedy: str
    """The command that trains with them."""


@dataclass(frozen=True)
class ClassScore:
    """Scores of one class on the test split."""

    label: int
    name: str
    rows: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Mistake:
    """One misclassified test row."""

    row: int
    label: int
    predicted: int
    probability: float
    """The model's probability of its wrong answer, in (0, 1]."""


@dataclass(frozen=True)
class Evaluation:
    """The score of one model on every row of one test split."""

    entry: Entry
    weights_digest: str
    split_digest: str
    rows: int
    correct: int
    accuracy: float
    accuracy_low: float
    """Lower end of the 95% Wilson score interval."""
    accuracy_high: float
    loss: float
    per_class: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Counts; rows: true class; columns: predicted class."""
    mistakes: tuple[Mistake, ...]
    """The most confident mistakes first, at most 25."""
    parts: int = 0
    """Number of parts of the test split, of each of which there is an `Evaluation`; 0 if it is one file.

    `storage.formats.predictions` reads both.
    """

    @property
    def file(self) -> Path:
        """If it has no parts: `predicted` (uint8) and `probability` (float32, one column per class), by test image."""
        return self.entry.path("predictions.npz")

    @property
    def source(self) -> Source:
        """The same, for a reader that needs little of it."""
        return self.entry.source("predictions.npz")


@dataclass(frozen=True)
class Confirmation:
    """Evidence that a fresh process loaded the saved model and reproduced the trained model's predictions."""

    entry: Entry
    rows: int
    difference: float
    """Largest absolute difference between two probabilities."""


@dataclass(frozen=True)
class Variant:
    """How one change of test images, such as a shift to the left, changes a model's answers."""

    name: str
    """`left`, `right`, `up`, `down`, `clockwise`, `anticlockwise`, `brighter`, `darker` or `noise`."""
    changed: int
    """Number of images whose answer changes."""
    share: float
    """Of the images that were changed, in [0, 1]."""
    low: float
    """Lower end of the 95% Wilson score interval of the share."""
    high: float


@dataclass(frozen=True)
class ChangedClass:
    """How often the answers of one class change in a test, over all its variants."""

    label: int
    """The answer to the unchanged images."""
    answers: int
    changed: int


@dataclass(frozen=True)
class ChangedAnswer:
    """A test image that is answered in another way after a change. Classes are numbers."""

    row: int
    variant: str
    before: int
    after: int


@dataclass(frozen=True)
class BehaviourTest:
    """How changed test images change a model's answers, and how often they may."""

    name: TestName
    amount: float
    """Pixels, degrees, standard deviation of pixels of 0-255, or percent."""
    limit: float
    """Largest share of the answers that each variant may change, in [0, 1]."""
    variants: tuple[Variant, ...]
    classes: tuple[ChangedClass, ...]
    """Those that change most often, at most `tasks.probing.answers.MOST_CLASSES`."""
    examples: tuple[ChangedAnswer, ...]
    """Of the worst variant, at most `tasks.probing.answers.MOST_EXAMPLES`."""

    @property
    def worst(self) -> Variant:
        """The variant that changes most answers, the first of several."""
        return max(self.variants, key=lambda variant: variant.changed)

    @property
    def passed(self) -> bool:
        return self.worst.share <= self.limit


@dataclass(frozen=True)
class NamedImage:
    """A model's answer to an image that the manifest says it must get right. Classes are numbers."""

    file: str
    """Its path from the folder that the manifest names, with that folder's name: `checked/7/seven.png`."""
    label: int
    """The class that its folder names."""
    predicted: int
    probability: float
    """The model's probability of its answer, in (0, 1]."""

    @property
    def is_right(self) -> bool:
        return self.predicted == self.label


@dataclass(frozen=True)
class Behaviour:
    """How a model behaves in the tests that the manifest asks for in `[behaviour]`."""

    entry: Entry
    asked: str
    """Digest of what was asked: the settings, and the named images."""
    images: int
    """Number of test images that were changed in each way; 0 if there is no such test."""
    image_shape: tuple[int, int]
    """Height and width in pixels."""
    tests: tuple[BehaviourTest, ...]
    named: tuple[NamedImage, ...]
    """In the order of classes and file names."""

    @property
    def wrong(self) -> tuple[NamedImage, ...]:
        """The named images that the model gets wrong."""
        return tuple(image for image in self.named if not image.is_right)

    @property
    def file(self) -> Path:
        """Pictures, uint8 of shape (n, height, width): `before` and `after` of the examples of all tests, in order, and
        `named`, the first that are wrong, see `storage.formats.behaviour_images`."""
        return self.entry.path("examples.npz")


@dataclass(frozen=True)
class Rule:
    """One rule of the decision: its name, its limit, the observed value and the result."""

    name: str
    limit: str
    observed: str
    passed: bool


@dataclass(frozen=True)
class Paired:
    """A paired comparison of a candidate and the champion on the same test rows. Made by `tasks.gate.criteria`."""

    rows: int
    both_right: int
    only_candidate: int
    """Rows that the candidate gets right and the champion does not."""
    only_champion: int
    both_wrong: int
    differing: int
    """Rows with different answers, including those that both models get wrong in different ways."""
    net: int
    """`only_candidate` - `only_champion`."""
    p_value: float
    """p-value for no difference: McNemar, mid-p, two-sided; in (0, 1]."""
    p_better: float
    """p-value for the candidate being no better: McNemar, exact, one-sided; in (0, 1]. The gate uses this one."""
    difference: float
    """`net` / `rows`: the gain in accuracy, in [-1, 1]."""
    low: float
    """Lower end of the confidence interval of the difference, in [-1, 1]."""
    high: float
    confidence: float
    """Confidence level of the interval: 1 - 2 alpha."""


@dataclass(frozen=True)
class SliceScore:
    """How the candidate and the champion do on one slice of the test split. Made by `tasks.gate.slices`."""

    name: str
    """Such as `class 8`, `ink quantile 1 of 4` or `column 2 = 13`."""
    by: str
    """By what it was cut, as `[slices] by` of the manifest has it."""
    lowest: float
    """The lowest value in it: of the measure, of the column, or the number of the class."""
    highest: float
    rows: int
    right: int
    """Rows that the candidate gets right."""
    champion_right: int | None
    """This and the following are None if there was no champion to compare with."""
    only_candidate: int | None
    """Rows that the candidate gets right and the champion does not."""
    only_champion: int | None
    p: float | None
    """p-value for the champion being no better here: McNemar, exact, one-sided; in (0, 1]. None if not judged, too."""
    corrected: float | None
    """The same, corrected for the number of judged slices (Holm)."""
    floor: float
    """The smallest accuracy that the manifest allows here, in [0, 1]."""
    judged: bool
    """Whether it has as many rows as the manifest asks for."""


@dataclass(frozen=True)
class Answer:
    """A person's answer about a candidate, if the gate's policy is `ask`."""

    promote: bool
    reason: str


@dataclass(frozen=True)
class Decision:
    """Why a model replaced the champion, or did not. Fields with a default are missing in older records."""

    outcome: Verdict
    sentence: str
    version: int | None
    """The candidate's version; None if it was refused before it was registered."""
    champion: int | None
    """The champion's version after the decision."""
    previous: int | None
    """The champion's version before the decision."""
    rules: tuple[Rule, ...]
    policy: str = ""
    """The gate's policy: `better`, `not_worse` or `ask`."""
    limits: Mapping[str, float] = field(default_factory=dict)
    """The other settings of the gate, by name."""
    paired: Paired | None = None
    """None if there was no champion to compare with."""
    looks: int = 0
    """Number of decisions on this same test split so far, including this one."""
    spent: float = 0.0
    """What it took of the error budget of the test split: the alpha of its comparison."""
    budget_left: int | None = None
    """Number of decisions that the error budget still allows; None without one."""
    weights_digest: str = ""
    """Of the candidate."""
    champion_weights_digest: str = ""
    """Of the previous champion; empty if there was none."""
    train_digest: str = ""
    """Content digest of the split that the run trained on."""
    test_digest: str = ""
    """Content digest of the split on which both were scored."""
    slices: tuple[SliceScore, ...] = ()
    """Empty if the manifest asks for none."""
    slicing: Mapping[str, Any] = field(default_factory=dict)
    """`[slices]` of the manifest; empty if it asks for none."""
    asked: str = ""
    """Digest of what `[slices]` and `[behaviour]` of the manifest asked for; empty if nothing."""


@dataclass(frozen=True)
class Failure:
    """Why a run stopped."""

    kind: str
    """Name of the error class."""
    sentence: str
    exit_code: int


@dataclass(frozen=True)
class DatasetFacts:
    """The facts from a data set's manifest that a report shows, kept so that they can be shown without either."""

    title: str
    classes: tuple[str, ...]
    image_shape: tuple[int, int]
    """Height and width in pixels."""
    licence: str = ""
    homepage: str = ""
    citation: str = ""
    manifest: str = ""
    """File name of the user's own manifest; empty for a data set of the catalog."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Its own training defaults, by name."""
    labels: tuple[int, ...] = ()
    """The label files' value for each class; empty: 0, 1, 2, …"""
    chosen: str = ""
    """Which archives were used for training, if not all; not in older records."""
    quarantine: tuple[str, ...] | None = None
    """The checks whose rows were to be set aside, if the manifest or the run said so; not in older records."""
    max_share: float | None = None
    """Largest share of a split's rows to set aside, in [0, 1], if some were to be."""
    drift: Mapping[str, float] | None = None
    """The limits of drift that differ from the defaults, by name; not in older records."""


@dataclass(frozen=True)
class Environment:
    """The environment of a run."""

    python: str
    platform: str
    """System, processor and number of cores."""
    packages: Mapping[str, str]
    """Version by name."""
    processor: str = ""
    """Its name and instruction sets (`storage.runtime.processor`); not in older records."""


@dataclass(frozen=True)
class RunRecord:
    """All results of one run, as far as it got: the content of its report and of its record in the ledger."""

    id: str
    """Sorts by time: `YYYYMMDD-HHMMSS-xxxx`, UTC."""
    dataset: str
    started: str
    """ISO 8601, UTC."""
    asked_by: str
    """`command line`, or the deployment that started it."""
    profile: str
    config: Mapping[str, Any]
    """The complete training configuration."""
    steps: tuple[Step, ...] = ()
    archives: tuple[Archive, ...] = ()
    train: Split | None = None
    """Without the rows that were set aside, like `test`."""
    test: Split | None = None
    decoded: tuple[Split, ...] = ()
    """Both splits with all rows of the archives."""
    audit: Audit | None = None
    """None if none was asked for, and in older records."""
    quarantine: Quarantine | None = None
    """None if nothing was to be set aside, and in older records."""
    validation: Validation | None = None
    normalization: Normalization | None = None
    model: TrainedModel | None = None
    evaluation: Evaluation | None = None
    confirmation: Confirmation | None = None
    """Not in older records of the ledger."""
    behaviour: Behaviour | None = None
    """None if the manifest asks for no such tests, and in older records."""
    champion_evaluation: Evaluation | None = None
    """Of the previous champion, on the same test split."""
    decision: Decision | None = None
    failure: Failure | None = None
    facts: DatasetFacts | None = None
    environment: Environment | None = None
    as_of: str = ""
    """The day, ISO 8601, whose data it used: archives of this day or earlier; empty: all."""
    study: str = ""
    """The key of the study whose result it trained with, if its profile is `tuned`."""


@dataclass(frozen=True)
class Report:
    """The report of one run or of one study, as HTML and as JSON."""

    entry: Entry
    findings: tuple[Finding, ...] = ()
    """What was found in the training, the most important first; not in older records."""

    @property
    def html(self) -> Path:
        """One self-contained page."""
        return self.entry.path(HTML)

    @property
    def json(self) -> Path:
        """The same content for machines."""
        return self.entry.path(JSON)


def to_json(record: Any) -> Any:
    """Turn a record into JSON values, leaving out `entry`."""
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        fields = dataclasses.fields(record)
        return {f.name: to_json(getattr(record, f.name)) for f in fields if f.name != "entry"}
    if isinstance(record, Mapping):
        return {str(k): to_json(v) for k, v in record.items()}
    if isinstance(record, tuple | list):
        return [to_json(v) for v in record]
    return str(record) if isinstance(record, Path) else record


def from_json(kind: type[R], values: Mapping[str, Any], entry: Entry | None = None) -> R:
    """Return a record of `kind` from its JSON form.

    Raises:
        TypeError: a field is missing or unknown.
    """
    hints = _hints(kind)  # type: ignore[arg-type]
    arguments = {name: _revive(hints[name], value) for name, value in values.items() if name in hints}
    unknown = values.keys() - arguments.keys()
    if unknown:
        raise TypeError(f"{kind.__name__} has no field {', '.join(sorted(unknown))}")
    if "entry" in hints:
        arguments["entry"] = entry
    return kind(**arguments)


@cache
def _hints(kind: type) -> dict[str, Any]:
    """Return the types of the fields by name; to find them out takes longer than to read a record."""
    return typing.get_type_hints(kind)


def _revive(hint: Any, value: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType and value is not None:
        return _revive(next(a for a in arguments if a is not type(None)), value)
    if origin is tuple and value is not None:
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(_revive(k, v) for k, v in zip(kinds, value, strict=True))
    if origin is not None and isinstance(value, dict):
        return {k: _revive(arguments[1], v) for k, v in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_json(hint, value)
    return Path(value) if hint is Path else value
