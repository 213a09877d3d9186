"""The form of a manifest: its keys, their bounds and meanings. Messages, editors and the reference use it.

Commands that only name data sets do not import it: importing pydantic takes a tenth of a second.
"""

from __future__ import annotations

import datetime
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from storage.datasets.catalog import (
    DEFAULT_FILES,
    MAX_ARCHIVES,
    MAX_BYTES,
    MAX_CLASSES,
    MAX_LABEL,
    MAX_LABEL_COLUMNS,
    MAX_ROWS,
    MAX_SIDE,
    MIN_LABEL,
    NAME_SCHEMA,
    ROLES,
    ArchiveSpec,
    BadRow,
    Dataset,
    Ink,
    ZipSpec,
    shown,
)
from storage.datasets.json_schema import EXPECTED
from storage.datasets.training import TrainingOverrides
from storage.records import SPLITS, TestName
from storage.words import counted

Element = TypeVar("Element")

_MODEL = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
_TABLE = ConfigDict(extra="forbid", allow_inf_nan=False)


def _expects(words: str, **more: Any) -> dict[str, Any]:
    return {EXPECTED: words, **more}


def _printable(text: str) -> str:
    if not text.isprintable():
        raise PydanticCustomError("printable", "expected printable characters")
    return text


def _address(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("https", "http") and bool(parts.hostname) and url.isprintable()
    except ValueError:
        usable = False
    if not usable:
        raise PydanticCustomError("address", "expected an https:// or http:// address")
    return url


def _different(values: tuple[Element, ...]) -> tuple[Element, ...]:
    if len(set(values)) < len(values):
        raise PydanticCustomError("different", "expected different values")
    return values


def _shares(values: Mapping[str, Any]) -> Mapping[str, Any]:
    for value in values.values():
        if type(value) not in (int, float) or not 0 <= value <= 1:
            raise PydanticCustomError("shares", "expected numbers from 0 to 1")
    return values


Share = Annotated[float, Field(strict=True, ge=0, le=1)]
Pixel = Annotated[float, Field(strict=True, ge=0, le=255)]
Rate = Annotated[float, Field(strict=True, gt=0, lt=0.5)]
Effect = Annotated[float, Field(strict=True, ge=0)]
Bytes = Annotated[int, Field(strict=True, ge=1, le=MAX_BYTES)]
RowCount = Annotated[int, Field(strict=True, ge=1, le=MAX_ROWS)]
Side = Annotated[int, Field(strict=True, ge=1, le=MAX_SIDE)]
Label = Annotated[int, Field(strict=True, ge=MIN_LABEL, le=MAX_LABEL)]
ClassName = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printable)]
Sha256 = Annotated[
    str,
    Field(pattern="^[0-9A-Fa-f]{64}$", json_schema_extra=_expects("a SHA-256 of 64 hexadecimal digits")),
    AfterValidator(str.lower),
]
FileName = Annotated[
    str, Field(pattern=r"^[^/\x00.][^/\x00]*$", json_schema_extra=_expects("a file name without a folder"))
]
Address = Annotated[
    str, AfterValidator(_address), Field(json_schema_extra={"format": "uri", "pattern": "^[Hh][Tt][Tt][Pp][Ss]?://"})
]
Day = Annotated[
    datetime.date,
    Field(strict=True, json_schema_extra=_expects("a date without quotes, such as 2026-11-30")),
]
SliceBy = Annotated[str, Field(pattern=r"^(class|ink|contrast|roughness|slant|column (0|[1-9][0-9]{0,3}))$")]
Addresses = Annotated[tuple[Address, ...], Field(json_schema_extra=_expects("a list of https:// or http:// addresses"))]


@dataclass(frozen=True, config=_TABLE)
class _Table:
    @field_validator("*", mode="wrap")
    @classmethod
    def _as_written(cls, value: Any, check: ValidatorFunctionWrapHandler) -> Any:
        # Integers stay integers: the keys of results are made from these values.
        check(value)
        return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True, config=_TABLE)
class Limits(_Table):
    """Limits of the data checks, beyond which the data is refused (critical) or a warning is given."""

    min_class_share: Share | None = Field(
        default=None,
        description="Critical: smallest share of a split's rows for a class. Not set: a tenth of an even share.",
    )
    max_class_share: Share = Field(default=0.9, description="Critical: largest share of a split's rows for a class.")
    max_imbalance: float = Field(
        default=2.0,
        strict=True,
        ge=0,
        allow_inf_nan=True,
        description="Warning: rows of the largest class divided by rows of the smallest.",
    )
    max_duplicates: Share = Field(
        default=0.01, description="Warning: share of rows whose image occurs earlier in the same split."
    )
    max_conflicts: Share = Field(
        default=0.0, description="Warning: share of rows whose image also occurs in the same split with another label."
    )
    max_leaked: Share = Field(
        default=0.0, description="Critical: share of test rows whose image is in the training split."
    )
    max_blank: Share = Field(default=0.0, description="Critical: share of rows whose pixels all have one value.")
    min_pixel_max: Pixel = Field(
        default=129,
        description="Critical: lowest value of a split's brightest pixel. It finds pixels scaled to 0-1 or 0-127.",
    )
    max_pixel_min: Pixel = Field(default=64, description="Critical: highest value of a split's darkest pixel.")
    min_pixel_mean: Pixel = Field(default=0, description="Critical: lowest mean of all pixels of a split.")
    max_pixel_mean: Pixel = Field(
        default=255,
        description="Critical: highest mean of all pixels of a split. It finds inverted and scaled pixels.",
    )
    max_label_chance: Share = Field(
        default=0.01,
        description="Critical: highest chance that labels unrelated to their images match the nearest class mean as "
        "often as these do. It finds shifted and shuffled labels. 1: off.",
    )
    min_centroid_hit: Share | None = Field(
        default=None,
        description="Critical: smallest share of rows whose nearest class mean is that of their label. Not set: a "
        "warning below a quarter of the way from chance to certainty, as with half of the labels shifted.",
    )

    def least_class_share(self, classes: int) -> float:
        """Return the lower limit of a class's share for a data set of `classes` classes."""
        return 0.1 / classes if self.min_class_share is None else self.min_class_share

    def least_centroid_hit(self, classes: int) -> float:
        """Return the lower limit of the share of rows nearest to their own class."""
        return 0.25 + 0.75 / classes if self.min_centroid_hit is None else self.min_centroid_hit


@dataclass(frozen=True, config=_TABLE)
class Floors(_Table):
    """Minimum scores on the test split for a model to be used at all."""

    accuracy: Share = Field(default=0.5, description="Smallest share of test rows that the model predicts correctly.")
    class_recall: Share = Field(
        default=0.1,
        description="Smallest recall of the model's worst class: a model that never predicts a class is useless for "
        "it.",
    )


@dataclass(frozen=True, config=_TABLE)
class Gate(_Table):
    """Conditions under which a model above the floors replaces the champion."""

    policy: Literal["better", "not_worse", "ask"] = Field(
        default="better",
        description="`better`: more correct predictions than chance explains; `not_worse`: worse by at most `margin`; "
        "`ask`: like `better`, but a person decides.",
    )
    alpha: Rate = Field(
        default=0.05,
        description="Largest probability that a model no better than the champion (`not_worse`: worse by `margin`) "
        "passes.",
    )
    margin: Share = Field(default=0.005, description="For `not_worse`: the share of test rows that may be lost.")
    max_class_loss: Share = Field(
        default=0.05, description="Largest drop in the recall of any class, compared with the champion; 1: no limit."
    )
    ask_hours: float = Field(
        default=24,
        strict=True,
        gt=0,
        le=24 * 365,
        description="For `ask`: hours to wait for an answer; after that, the champion stays.",
    )
    borderline: float | None = Field(
        default=None,
        strict=True,
        gt=1,
        le=1000,
        description="For `ask`: ask only if p is within this factor of alpha on either side, or if the comparison is "
        "passed and another rule is not; the rules of `better` decide the rest. 4 is a good start. Not set: always "
        "ask.",
    )
    alpha_budget: Rate | None = Field(
        default=None,
        description="Largest probability that any decision on one test split promotes such a model, over all of them. "
        "Not set: each decision has `alpha` of its own.",
    )
    budget_decisions: int = Field(
        default=52,
        strict=True,
        ge=1,
        le=100_000,
        description="For `alpha_budget`: how many decisions share it evenly. After them, the rules promote nothing on "
        "this test split.",
    )


MEASURES = ("ink", "contrast", "roughness", "slant")
"""The measures of an image by which `[slices]` divides."""
COLUMN = re.compile(r"column (0|[1-9][0-9]{0,3})")
"""How `[slices]` names a column of the label files."""


@dataclass(frozen=True, config=_TABLE)
class Slices(_Table):
    """Slices of the test split, such as a class or the faintest images, on which a model must not be bad or worse."""

    by: Annotated[tuple[SliceBy, ...], AfterValidator(_different)] = Field(
        default=(),
        description="By what: `class`; a measure of the images, `ink` (mean pixel), `contrast` (standard deviation of "
        "the pixels), `roughness` (mean difference between neighbouring pixels), `slant` (degrees); or a column of "
        "label files that have several, such as `column 2`, counted from 0. Not set: no slices.",
        json_schema_extra=_expects(
            f"a list of different words from class, {', '.join(MEASURES)}, column N", uniqueItems=True
        ),
    )
    quantiles: int = Field(
        default=4,
        strict=True,
        ge=2,
        le=20,
        description="Into how many slices of equally many rows a measure divides the test split, and a column of more "
        "than 64 different values; of fewer, each value is a slice.",
    )
    min_rows: int = Field(
        default=30,
        strict=True,
        ge=1,
        le=MAX_ROWS,
        description="Fewest test rows of a slice to judge it. Smaller ones are only shown.",
    )
    accuracy: Share = Field(default=0.0, description="Smallest accuracy on every slice; below it, a model is refused.")
    alpha: Rate = Field(
        default=0.05,
        description="Largest probability that a model as good as the champion on each slice is kept from replacing it "
        "by any of them.",
    )
    floors: Annotated[Mapping[str, Any], AfterValidator(_shares)] = Field(
        default_factory=dict,
        description="Smallest accuracy on single slices, by name, instead of `accuracy`: `class 8`, `ink quantile 1 "
        "of 4` (the least ink), `column 2 = 13`.",
        json_schema_extra=_expects(
            "a table of numbers from 0 to 1, by the name of a slice",
            additionalProperties={"type": "number", "minimum": 0, "maximum": 1},
        ),
    )

    def floor(self, name: str) -> float:
        """Return the smallest accuracy on the slice with this name."""
        return float(self.floors.get(name, self.accuracy))

    def may_have(self, name: str, classes: tuple[str, ...]) -> bool:
        """Return whether a slice can have this name; which values a column has is only known when it is read."""
        for by in self.by:
            if by == "class":
                names = {f"class {known}" for known in classes}
            else:
                names = {f"{by} quantile {number} of {self.quantiles}" for number in range(1, self.quantiles + 1)}
            if name in names or (COLUMN.fullmatch(by) and re.fullmatch(f"{by} = (0|-?[1-9][0-9]{{0,9}})", name)):
                return True
        return False


NOTHING = "none"
"""What `--quarantine` is given to set nothing aside."""


@dataclass(frozen=True, config=_TABLE)
class Quarantine(_Table):
    """Bad rows that are set aside, so that they do not stop the run: neither trained on nor tested on."""

    checks: Annotated[tuple[BadRow, ...], AfterValidator(_different)] = Field(
        default=(),
        description="What is set aside. `blank`: images of a single value; `duplicate`: images that occur earlier in "
        "the same split; `conflict`: images that occur in the same split with another label; `leaked`: test images "
        "that are in the training split; `label`: labels that are no class; `suspect`: training labels that look "
        "wrong (flagged).",
        json_schema_extra=_expects(f"a list of different words from {', '.join(get_args(BadRow))}", uniqueItems=True),
    )
    max_share: Share = Field(
        default=0.01,
        description="Largest share of a split's rows to set aside; with more, the data is refused.",
    )


@dataclass(frozen=True, config=_TABLE)
class Drift(_Table):
    """How far new images may differ from what the champion was trained on, for `idxflow drift` and the flow `monitor`.

    A test has to be significant and beyond its limit. The limits are larger than what samples of the same distribution
    show, and smaller than changes that cost accuracy: docs/how-to/drift.md has both, measured.
    """

    false_alarms: Rate = Field(
        default=0.01,
        description="Largest probability that a sample of the same distribution is said to have drifted, for all tests "
        "together. At one look a day, 0.01 is at most about four false alarms a year; lower it for hourly looks.",
    )
    min_images: int = Field(
        default=100,
        strict=True,
        ge=20,
        le=MAX_ROWS,
        description="Fewest images to compare. With fewer, only large differences can be told from chance.",
    )
    label_shares: Effect = Field(
        default=0.2,
        description="Largest change of the shares of labels (Cohen's w: 0.1 is small, 0.3 medium). One of ten equal "
        "classes that is missing, or twice as frequent, is 0.33.",
    )
    predicted_shares: Effect = Field(
        default=0.2,
        description="Largest change of the shares of predicted classes, compared with those on the test split "
        "(Cohen's w), for the reason of `label_shares`.",
    )
    measure_distance: Share = Field(
        default=0.2,
        description="Largest difference of the distribution of a measure of the images, such as ink "
        "(Kolmogorov-Smirnov's D). At 0.2, a fifth of the images have moved beyond a value that they were below.",
    )
    measure_stability: Effect = Field(
        default=0.25,
        description="Largest population stability index of a measure of the images. Above 0.25 is usually called a "
        "shift, below 0.1 stable.",
    )
    mean_image: Effect = Field(
        default=0.2,
        description="Largest distance of the mean image, in standard deviations of an image around the mean. 0.2 is a "
        "small effect (Cohen's d).",
    )
    confidence: Share = Field(
        default=0.15,
        description="Largest difference of the distribution of the champion's confidence from that on the test split "
        "(Kolmogorov-Smirnov's D). A model that meets images of another kind is less sure of many.",
    )
    told_apart: Share = Field(
        default=0.65,
        description="Largest AUC of a classifier that tries to tell new images from old ones; 0.5 is chance. At 0.65, "
        "it is right for about two of three pairs.",
    )


class _Limited(BaseModel):
    """A change of test images, and how many answers it may change."""

    model_config = _MODEL

    changed: Share = Field(
        description="Largest share of the answers that may change, counted for each way of changing by itself. With "
        "more, the model is refused."
    )


class Shift(_Limited):
    """Test images that are moved by whole pixels: to the left, to the right, up and down."""

    pixels: int = Field(strict=True, ge=1, le=MAX_SIDE, description="How far they are moved.")


class Rotate(_Limited):
    """Test images that are turned around their centre, clockwise and anticlockwise."""

    degrees: float = Field(strict=True, gt=0, le=180, description="How far they are turned.")


class Noise(_Limited):
    """Test images with Gaussian noise on each pixel, the same in every run."""

    deviation: float = Field(strict=True, gt=0, le=255, description="Its standard deviation, of pixels of 0-255.")


class Brightness(_Limited):
    """Test images whose pixels are multiplied: brighter and darker."""

    percent: float = Field(strict=True, gt=0, le=100, description="How much brighter, and how much darker.")


class Behaviour(BaseModel):
    """What a model must do besides being right often: small changes of test images must not change many answers, and
    some images must be right. A model that fails one of these tests is refused, as below a floor."""

    model_config = _MODEL

    images: int = Field(
        default=500,
        strict=True,
        ge=1,
        le=1_000_000,
        description="How many test images are changed, evenly spaced over the split; all if it has fewer.",
    )
    shift: Shift | None = Field(default=None, description="A test with moved images. Not set: none.")
    rotate: Rotate | None = Field(default=None, description="A test with turned images. Not set: none.")
    noise: Noise | None = Field(default=None, description="A test with noise on the images. Not set: none.")
    brightness: Brightness | None = Field(
        default=None, description="A test with brighter and darker images. Not set: none."
    )
    must_be_right: str = Field(
        default="",
        description="Folder of images that the model must get right, relative to the manifest, with a folder for each "
        "class, named like it. Not set: none.",
    )

    @property
    def tests(self) -> dict[TestName, Shift | Rotate | Noise | Brightness]:
        """The tests with changed images that are set, by name."""
        tests: dict[TestName, Shift | Rotate | Noise | Brightness | None] = {
            "shift": self.shift,
            "rotate": self.rotate,
            "noise": self.noise,
            "brightness": self.brightness,
        }
        return {name: test for name, test in tests.items() if test}

    @model_validator(mode="after")
    def _has_a_test(self) -> Behaviour:
        if not self.tests and not self.must_be_right:
            raise ValueError(
                "expected behaviour to have a test: shift, rotate, noise, brightness or must_be_right; found none; "
                "add one, or remove the table"
            )
        return self


class Rows(BaseModel):
    """Number of rows of each split. A split without one may have any number."""

    model_config = _MODEL

    train: RowCount | None = Field(default=None, description="Rows of the training split.")
    test: RowCount | None = Field(default=None, description="Rows of the test split.")


class Archive(BaseModel):
    """One archive. An unknown digest is left out."""

    model_config = _MODEL

    file: FileName | None = Field(default=None, description="File name. Not set: that of MNIST's file.")
    bytes: Bytes | None = Field(default=None, description="Size in bytes.")
    sha256: Sha256 | None = Field(default=None, description="SHA-256; a file with a different one is refused.")
    payload_bytes: Bytes | None = Field(default=None, description="Size in bytes, decompressed.")
    payload_sha256: Sha256 | None = Field(
        default=None,
        description="SHA-256 of the decompressed file, header included; it does not change if a mirror compresses the "
        "file again.",
    )
    mirrors: Addresses = Field(default=(), description="Complete URLs, best first.")
    date: Day | None = Field(
        default=None,
        description="For archives of images: the day that they are of. Windows of days and `idxflow backfill` need it.",
    )

    def spec(self, role: str, number: int, mirrors: tuple[str, ...]) -> ArchiveSpec:
        """Return it with its place, and with its URL on each mirror of the data set."""
        file = self.file or DEFAULT_FILES[role]
        urls = (*self.mirrors, *(f"{base.rstrip('/')}/{file}" for base in mirrors))
        digests = (self.bytes, self.sha256, self.payload_bytes, self.payload_sha256)
        return ArchiveSpec(role, file, *digests, mirrors=urls, number=number, date=self.date)


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, dict | Archive) else value


_Several = Annotated[tuple[Archive, ...], Field(min_length=1, max_length=MAX_ARCHIVES)]
OneOrMore = Annotated[_Several, BeforeValidator(_as_list, json_schema_input_type=Archive | _Several)]


class Archives(BaseModel):
    """The files: one archive for each role, or as many of images as of labels, in the same order."""

    model_config = _MODEL

    train_images: OneOrMore = Field(
        default=(Archive(),), alias="train-images", description="Images of the training split."
    )
    train_labels: OneOrMore = Field(
        default=(Archive(),), alias="train-labels", description="Labels of the training split."
    )
    test_images: OneOrMore = Field(default=(Archive(),), alias="test-images", description="Images of the test split.")
    test_labels: OneOrMore = Field(default=(Archive(),), alias="test-labels", description="Labels of the test split.")

    def of(self, role: str) -> tuple[Archive, ...]:
        """Return the archives of a role."""
        archives: tuple[Archive, ...] = getattr(self, role.replace("-", "_"))
        return archives

    @model_validator(mode="after")
    def _images_have_labels(self) -> Archives:
        for split in SPLITS:
            images, labels = (len(self.of(f"{split}-{kind}")) for kind in ("images", "labels"))
            if images != labels:
                raise ValueError(
                    f"expected as many archives.{split}-labels as archives.{split}-images, in the same order; found "
                    f"{counted(images, 'archive')} of images and {labels:,} of labels; add what is missing"
                )
        return self

    @model_validator(mode="after")
    def _several_have_names(self) -> Archives:
        for role in ROLES:
            archives = self.of(role)
            names = [archive.file for archive in archives]
            twice = next((repr(name) for name, number in Counter(names).items() if name and number > 1), None)
            if twice or (None in names and len(names) > 1):
                found = f"{twice} twice" if twice else "one without a name"
                raise ValueError(
                    f"expected archives.{role}.file to be another name for each of its {len(archives):,} archives; "
                    f"found {found}; correct it"
                )
        return self

    @model_validator(mode="after")
    def _images_have_the_date(self) -> Archives:
        for split in SPLITS:
            if any(archive.date for archive in self.of(f"{split}-labels")):
                raise ValueError(
                    f"expected the date of images in archives.{split}-images; found one in archives.{split}-labels; "
                    "move it there"
                )
        return self


class Window(BaseModel):
    """The newest data only: which archives the training split is made of. The test split is made of all."""

    model_config = _MODEL

    last: int = Field(
        strict=True, ge=1, le=1_000_000, description="How many of the newest archives, or of the newest days."
    )
    unit: Literal["archives", "days"] = Field(
        default="archives",
        description="What is counted: `archives`, in the order of the manifest, or `days`, back from the newest date "
        "of an archive.",
    )


class Zip(BaseModel):
    """The ZIP file that the four archives are published in, as EMNIST's are. Data sets share a download of it."""

    model_config = _MODEL

    file: FileName = Field(description="File name.")
    bytes: Bytes | None = Field(default=None, description="Size in bytes.")
    sha256: Sha256 = Field(description="SHA-256; a file with a different one is refused.")
    folder: FileName | None = Field(
        default=None,
        description="Folder inside it that has the archives. Not set: none.",
        json_schema_extra=_expects("the name of a folder"),
    )
    mirrors: Addresses = Field(default=(), description="Complete URLs, best first.")

    def spec(self) -> ZipSpec:
        """Return it as the steps know it."""
        return ZipSpec(self.file, self.sha256, self.bytes, self.folder or "", self.mirrors)


class Manifest(BaseModel):
    """A data set: its files and sources, the limits of its checks, and the conditions that its models must meet."""

    model_config = _MODEL

    name: str = Field(
        pattern=NAME_SCHEMA,
        description="Name in the store and in commands. A name from the catalog only if it is the same data.",
        json_schema_extra=_expects("a-z, 0-9, - and _, at most 64 characters, starting with a letter or digit"),
    )
    title: str = Field(default="", description="Title for people. Not set: the name.")
    classes: Annotated[tuple[ClassName, ...], AfterValidator(_different)] = Field(
        min_length=2,
        max_length=MAX_CLASSES,
        description="Names of the classes, in the order of their labels.",
        json_schema_extra=_expects(
            f"2 to {MAX_CLASSES} different names, printable texts of at most 200 characters", uniqueItems=True
        ),
    )
    image_shape: tuple[Side, ...] = Field(
        min_length=2,
        max_length=2,
        description="Height and width of the upright images in pixels.",
        json_schema_extra=_expects(f"[height, width], each from 1 to {MAX_SIDE:,}"),
    )
    labels: Annotated[tuple[Label, ...], AfterValidator(_different)] = Field(
        default=(),
        description="The value of each class in the label files, in the order of `classes`. Not set: 0, 1, 2, …",
        json_schema_extra=_expects("a list of different 32-bit integers, one per class", uniqueItems=True),
    )
    label_base: Label | None = Field(
        default=None,
        description="Short for `labels` that count up from this one without a gap: 1 for those of EMNIST's letters. "
        "Not set: 0.",
    )
    label_column: int | None = Field(
        default=None,
        strict=True,
        ge=0,
        le=MAX_LABEL_COLUMNS - 1,
        description="Column with the class, if label files have several, as in QMNIST. Not set: they have one.",
    )
    transpose: bool = Field(
        default=False,
        strict=True,
        description="Whether the archives have rows and columns of each image swapped, as EMNIST's have.",
    )
    ink: Ink | None = Field(
        default=None,
        description="Whether what is drawn is `bright` on a darker ground, or `dark`; a split that contradicts it is "
        "refused. Not set: that is not checked.",
    )
    source: str = Field(
        default="",
        description="Folder of the files, relative to the manifest. `--source` and `IDXFLOW_SOURCE` take precedence.",
    )
    mirrors: Addresses = Field(
        default=(), description="URLs of folders that hold the files under their names, best first."
    )
    embedded: bool = Field(
        default=False,
        strict=True,
        description="Whether idxflow writes the files itself, from a data set that a library contains.",
    )
    audit: bool = Field(
        default=False,
        strict=True,
        description="Whether every run looks for labels that are likely wrong, and for test images that are almost in "
        "the training split, as with `--audit`.",
    )
    licence: str = Field(default="not stated", description="Licence of the data.")
    homepage: str = Field(default="", description="Web page that describes the data.")
    citation: str = Field(default="", description="Reference to cite.")
    rows: Rows = Field(default=Rows(), description="Number of rows of each split.")
    archives: Archives = Field(
        default=Archives(),
        description="The four files, or more: names, sizes, digests. Several archives of one kind are a list, "
        "`[[archives.train-images]]`.",
    )
    window: Window | None = Field(
        default=None, description="The newest data only, for training. Not set: all archives."
    )
    zip_: Zip | None = Field(
        default=None,
        alias="zip",
        description="The ZIP file that the four archives are published in. Not set: each is published by itself.",
    )
    training: TrainingOverrides = Field(
        default=TrainingOverrides(), description="Training parameters that differ from the defaults."
    )
    limits: Limits = Field(default=Limits(), description="Limits of the data checks.")
    floors: Floors = Field(default=Floors(), description="Minimum scores for a model to be used at all.")
    gate: Gate = Field(default=Gate(), description="Conditions under which a model replaces the champion.")
    behaviour: Behaviour | None = Field(
        default=None,
        description="Tests that a model must pass besides the floors, with changed images and with images of yours. "
        "Not set: none.",
    )
    quarantine: Quarantine = Field(
        default=Quarantine(), description="Bad rows that are set aside instead of stopping the run."
    )
    drift: Drift = Field(
        default=Drift(), description="How far new images may differ from what the champion was trained on."
    )

    slices: Slices = Field(
        default=Slices(),
        description="Slices of the test split on which a model must not be bad, or worse than the champion.",
    )

    @model_validator(mode="after")
    def _one_label_per_class(self) -> Manifest:
        if self.labels and len(self.labels) != len(self.classes):
            raise ValueError(
                f"expected labels to be a list of {len(self.classes)} different 32-bit integers, one per class; "
                f"found {len(self.labels)}; correct it"
            )
        return self

    @model_validator(mode="after")
    def _labels_are_written_once(self) -> Manifest:
        if self.label_base is None:
            return self
        if self.labels:
            raise ValueError("expected labels or label_base, which is short for it; found both; remove one of them")
        most = MAX_LABEL - len(self.classes) + 1
        if self.label_base > most:
            raise ValueError(
                f"expected label_base to be at most {most:,}, so that the label of the last class has 32 bits; found "
                f"{self.label_base:,}; correct it"
            )
        return self

    @model_validator(mode="after")
    def _what_is_fetched_has_a_digest(self) -> Manifest:
        for spec in self._specs():
            if (spec.mirrors or self.zip_) and not spec.pinned:
                how = "read out of a ZIP file" if self.zip_ else "fetched over the network"
                file = f"{spec.file} " if len(self.archives.of(spec.role)) > 1 else "it "
                raise ValueError(
                    f"expected archives.{spec.role}.sha256 or archives.{spec.role}.payload_sha256 because {file}is "
                    f"{how}; found neither; add one: `idxflow manifest FOLDER` writes them for files you have"
                )
        return self

    @model_validator(mode="after")
    def _embedded_data_is_four_archives(self) -> Manifest:
        several = next((role for role in ROLES if len(self.archives.of(role)) > 1), None)
        if self.embedded and several:
            raise ValueError(
                f"expected one archive of {several}, because embedded data is written as four; found "
                f"{len(self.archives.of(several)):,}; remove the others, or embedded"
            )
        return self

    @model_validator(mode="after")
    def _slices_can_be(self) -> Manifest:
        columns = [by for by in self.slices.by if COLUMN.fullmatch(by)]
        if columns and self.label_column is None:
            raise ValueError(
                f"expected label_column, because slices.by names {columns[0]} of the label files; found none, so they "
                f"have one column; remove {columns[0]} from slices.by, or declare which column is the class"
            )
        for name in self.slices.floors:
            if not self.slices.may_have(name, self.classes):
                raise ValueError(
                    f"expected slices.floors to name slices that slices.by makes, such as {self._a_slice()}; found "
                    f"{shown(name)}; correct the name, or add what it is by to slices.by"
                )
        return self

    @model_validator(mode="after")
    def _something_is_sliced(self) -> Manifest:
        if not self.slices.by and not self.slices.floors and self.slices != Slices():
            raise ValueError(
                "expected slices.by, because other keys of slices are set and do nothing without it; found none; add "
                'it, such as by = ["class"], or remove the table'
            )
        return self

    def _a_slice(self) -> str:
        by = next(iter(self.slices.by), "class")
        if by == "class":
            return f'"class {self.classes[0]}"'
        return f'"{by} = 3"' if COLUMN.fullmatch(by) else f'"{by} quantile 1 of {self.slices.quantiles}"'

    @model_validator(mode="after")
    def _days_need_dates(self) -> Manifest:
        if self.window and self.window.unit == "days":
            undated = [spec for spec in self._specs() if spec.role == ROLES[0] and spec.date is None]
            if undated:
                raise ValueError(
                    f"expected a date for each archive of {ROLES[0]}, because window counts days; found none for "
                    f'{undated[0].file}; add one, such as date = 2026-11-30, or set unit = "archives"'
                )
        return self

    def dataset(self, path: Path) -> Dataset:
        """Return the data set that the manifest at `path` declares.

        Raises:
            OSError, ValueError, RuntimeError: `source` is not a usable path: it has a NUL, names a user that does not
                exist, or is a loop of links.
        """
        height, width = self.image_shape
        return Dataset(
            name=self.name,
            title=self.title or self.name,
            classes=self.classes,
            image_shape=(height, width),
            archives=self._specs(),
            manifest=path,
            rows={split: rows for split in SPLITS if (rows := getattr(self.rows, split))},
            label_column=self.label_column,
            labels=self._class_labels(),
            transpose=self.transpose,
            ink=self.ink,
            source=(path.parent / Path(self.source).expanduser()).resolve() if self.source else None,
            window=self.window,
            zipped=self.zip_.spec() if self.zip_ else None,
            embedded=self.embedded,
            audit=self.audit,
            licence=self.licence,
            homepage=self.homepage,
            citation=self.citation,
            training=self.training.model_dump(mode="json", exclude_unset=True),
            limits=self.limits,
            floors=self.floors,
            gate=self.gate,
            behaviour=self.behaviour,
            quarantine=self.quarantine,
            drift=self.drift,
            slices=self.slices,
        )

    def _class_labels(self) -> tuple[int, ...]:
        """Return the label of each class, however it is written; empty if they are 0, 1, 2, …, written or not."""
        base, count = self.label_base or 0, len(self.classes)
        labels = self.labels or tuple(range(base, base + count))
        return () if labels == tuple(range(count)) else labels

    def _specs(self) -> tuple[ArchiveSpec, ...]:
        listed = ((role, number, archive) for role in ROLES for number, archive in enumerate(self.archives.of(role)))
        return tuple(archive.spec(role, number, self.mirrors) for role, number, archive in listed)
