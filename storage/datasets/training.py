"""The training configuration: validated, frozen, and combined from profile, data set and overrides."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from storage.datasets.catalog import Dataset, shown
from storage.datasets.json_schema import TomlSchema, bounds
from storage.datasets.model_errors import checked
from storage.errors import ConfigError
from storage.words import meant

Profile = Literal["default", "tutorial", "fast", "conv"]
Units = Annotated[int, Field(ge=1, le=65536)]
Filters = Annotated[int, Field(ge=1, le=4096)]

_SIZE = r"^ *[0-9]{1,9}(\.[0-9]{1,9})? *([KMGT]i?)?B *$"


def _bytes(size: str) -> int:
    return int(TypeAdapter(ByteSize).validate_python(size))


def _size(value: Any) -> str:
    if not isinstance(value, str) or not re.match(_SIZE, value) or _bytes(value) < 1:
        raise ValueError(
            f"expected memory to be a size such as 500MB or 2GiB; found {shown(value)}; write it with its unit"
        )
    return value.replace(" ", "")


# The pattern is for the form in the Prefect UI; pydantic's own message would show the pattern to people.
Memory = Annotated[str, BeforeValidator(_size), Field(json_schema_extra={"pattern": _SIZE})]

PROFILES: dict[Profile, dict[str, Any]] = {
    "default": {},
    # Exactly the published recipe, regardless of the data set's own rates.
    "tutorial": {"held_out": "tail", "normalize_on": "all"},
    # A quick trial: fewer epochs, with a learning rate that suffices.
    "fast": {"epochs": 10, "learning_rate": 0.01},
    # Convolutions, for images of more than a few pixels: more accurate, and many times slower.
    "conv": {
        "conv": [32, 64],
        "hidden": [128],
        "activation": "relu",
        "initialization": "fit",
        "batch_norm": True,
        "dropout": 0.25,
        "learning_rate": 0.05,
        "decay": 0.001,
        "epochs": 6,
    },
}


class TrainingConfig(BaseModel):
    """Architecture, optimizer, schedule and seed of one training."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    hidden: tuple[Units, ...] = Field(
        default=(50, 50),
        max_length=16,
        description="Units of each hidden layer, any number of layers; empty: none, so a linear model without conv.",
    )
    activation: Literal["tanh", "relu", "sigmoid", "elu", "selu", "gelu", "silu"] = Field(
        default="tanh", description="Activation of the convolutions and hidden layers."
    )
    conv: tuple[Filters, ...] = Field(
        default=(),
        max_length=12,
        description="Filters of each 3×3 convolution before the hidden layers; 2×2 max pooling follows each.",
    )
    batch_norm: bool = Field(
        default=False, description="Normalize each convolution and hidden layer over the rows of a step."
    )
    dropout: float = Field(
        default=0.0,
        ge=0,
        le=0.9,
        description="Share of the inputs of each dense layer, pixels excepted, that a step leaves out at random.",
    )
    initialization: Literal["glorot", "he", "lecun", "fit"] = Field(
        default="glorot",
        description="Spread of the initial weights; fit: he for relu, elu, gelu and silu, lecun for selu, else glorot.",
    )
    learning_rate: float = Field(default=0.001, gt=0, le=10, description="Step size of stochastic gradient descent.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Share of the previous step added to the next one.")
    decay: float = Field(
        default=1e-7, ge=0, le=1, description="Inverse-time decay: the rate at step t is learning_rate / (1 + decay·t)."
    )
    weight_decay: float = Field(
        default=0.0, ge=0, le=1, description="Share of each weight removed per step, times the learning rate."
    )
    batch_size: int = Field(
        default=64, ge=1, le=65536, description="Rows per step; the last step of an epoch takes the rest."
    )
    epochs: int = Field(default=50, ge=1, le=10_000, description="Maximum number of passes over the fitted rows.")
    validation_fraction: float = Field(
        default=0.1, ge=0, le=0.9, description="Share of the training rows that is held out to detect overfitting."
    )
    held_out: Literal["stratified", "tail"] = Field(
        default="stratified",
        description="Rows to hold out: a random sample of every class, or the last, as the tutorial does.",
    )
    normalize_on: Literal["fitted", "all"] = Field(
        default="fitted",
        description="Statistics from the fitted rows only, or from held-out rows too, as the tutorial does.",
    )
    patience: int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="Stop after this many epochs without improvement on the held-out rows.",
    )
    min_delta: float = Field(
        default=0.0, ge=0, le=10, description="Smallest drop in the held-out loss that counts as an improvement."
    )
    restore_best: bool = Field(
        default=True, description="With patience: keep the weights of the best epoch instead of the last one."
    )
    memory: Memory = Field(
        default="512MiB",
        description="Memory budget for training pixels, such as 2GiB; more rows come from shards or parts on disk.",
    )
    seed: int = Field(
        default=1,
        ge=0,
        le=2**32 - 1,
        description="Random seed of initial weights, held-out rows, order of rows and dropout.",
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        # Pydantic accepts true as 1.
        values = value if isinstance(value, list | tuple) else (value,)
        annotation = cls.model_fields[str(info.field_name)].annotation
        if bool not in (annotation, *get_args(annotation)) and any(type(v) is bool for v in values):
            raise PydanticCustomError("no_truth", "expected a value other than true and false")
        return value

    @model_validator(mode="after")
    def _patience_needs_held_out_rows(self) -> TrainingConfig:
        if self.patience is not None and self.validation_fraction == 0:
            raise ValueError(
                "expected held-out rows, because patience needs them; found a validation_fraction of 0; raise it"
            )
        return self

    @property
    def memory_bytes(self) -> int:
        """The memory budget in bytes."""
        return _bytes(self.memory)


def _described(name: str, field: FieldInfo) -> str:
    """Return a parameter's description with its bounds: forms check them, but do not show them."""
    limits = bounds(_SCHEMA[name])
    return f"{field.description} {limits.capitalize()}." if limits else str(field.description)


_SCHEMA = TrainingConfig.model_json_schema(schema_generator=TomlSchema)["properties"]

if TYPE_CHECKING:
    TrainingOverrides = TrainingConfig
else:
    # The same fields and bounds, all optional and unset: in a form in the Prefect UI, an untouched field must not
    # override the profile and the data set.
    TrainingOverrides = create_model(
        "TrainingOverrides",
        __base__=TrainingConfig,
        __doc__="Individual training parameters; the profile and the data set supply the others.",
        **{
            name: (
                field.annotation | None,
                FieldInfo.merge_field_infos(field, default=None, description=_described(name, field)),
            )
            for name, field in TrainingConfig.model_fields.items()
        },
    )


def training_config(
    dataset: Dataset, profile: Profile = "default", overrides: Mapping[str, Any] | None = None
) -> TrainingConfig:
    """Combine the profile, the data set's own defaults and the user's overrides; later values win.

    The profile `tutorial` is the published recipe and takes nothing from the data set.

    Raises:
        ConfigError: a value is out of bounds or unknown, or images are too small for so many poolings; the message
            names it, its bounds and what was found.
    """
    if profile not in PROFILES:
        raise ConfigError(
            f"expected a profile of {', '.join(PROFILES)}; found {shown(profile)}{meant(profile, PROFILES)}; "
            "choose one of these, or leave it out"
        )
    own = {} if profile == "tutorial" else dataset.training
    config = checked(TrainingConfig, {**PROFILES[profile], **own, **(overrides or {})}, "training parameters")
    _check_poolings(config, dataset)
    return config


def _check_poolings(config: TrainingConfig, dataset: Dataset) -> None:
    height, width = dataset.image_shape
    if config.conv and min(height, width) >> len(config.conv) == 0:
        raise ConfigError(
            f"{dataset.name}: expected conv to be at most {min(height, width).bit_length() - 1} numbers for images of "
            f"{height} × {width} pixels, because the pooling after each convolution halves both sides; "
            f"found {len(config.conv)}; remove some"
        )


def parse_overrides(texts: Sequence[str]) -> dict[str, Any]:
    """Parse `name=value` texts as given to `--set`; a value that is not JSON is a string.

    Raises:
        ConfigError: a text has no `=`.
    """
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"expected --set NAME=VALUE; found {shown(text)}; write it like --set epochs=5")
        try:
            values[name.strip().replace("-", "_")] = json.loads(value)
        except (ValueError, RecursionError):
            values[name.strip().replace("-", "_")] = value
    return values
