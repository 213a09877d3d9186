"""The training configuration: validated, frozen, and combined from profile, data set and overrides."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

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
from storage.datasets.json_schema import EXPECTED, TomlSchema, bounds
from storage.datasets.model_errors import checked
from storage.datasets.own_models import source_of
from storage.errors import ConfigError
from storage.words import meant

Profile = Literal["default", "tutorial", "fast", "conv", "best", "tuned"]
Optimizer = Literal["sgd", "adam", "adamw", "rmsprop"]
Schedule = Literal["inverse", "cosine", "exponential"]
Units = Annotated[int, Field(ge=1, le=65536)]
Filters = Annotated[int, Field(ge=1, le=4096)]

_SIZE = r"^ *[0-9]{1,9}(\.[0-9]{1,9})? *([KMGT]i?)?B *$"


def _bytes(size: str) -> int:
    return int(TypeAdapter(ByteSize).validate_python(size))


def _size(value: Any) -> str | None:
    if value is None:
        # Not set in a form; where it has to be set, its type refuses that.
        return None
    if not isinstance(value, str) or not re.match(_SIZE, value) or _bytes(value) < 1:
        raise ValueError(
            f"expected memory to be a size such as 500MB or 2GiB; found {shown(value)}; write it with its unit"
        )
    return value.replace(" ", "")


# The pattern is for the form in the Prefect UI; pydantic's own message would show the pattern to people.
Memory = Annotated[str, BeforeValidator(_size), Field(json_schema_extra={"pattern": _SIZE})]

Function = Annotated[
    str,
    Field(
        max_length=200,
        pattern="^[A-Za-z_][A-Za-z0-9_]*:[A-Za-z_][A-Za-z0-9_]*$",
        json_schema_extra={EXPECTED: "FILE:FUNCTION, such as my_models:build for the function build of my_models.py"},
    ),
]

NETWORK = ("hidden", "activation", "conv", "batch_norm", "dropout", "initialization")
"""The parameters of idxflow's own network, which a model of the user's replaces."""

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
    # The best dense network that `idxflow tune mnist` has found in the space examples/dense.toml, to three digits.
    "best": {
        "hidden": [400, 200],
        "activation": "silu",
        "optimizer": "adamw",
        "learning_rate": 0.00064,
        "weight_decay": 0.00961,
        "schedule": "cosine",
        "batch_size": 32,
        "dropout": 0.0279,
        "label_smoothing": 0.00686,
        "shift": 1.0,
        "rotate": 10.0,
        "epochs": 12,
    },
    # What `idxflow tune` has found for the data set, which the store knows (`storage.studies`).
    "tuned": {},
}

CHOICES: dict[str, dict[str, dict[str, float]]] = {
    "optimizer": {
        # Keras's own defaults, but for the momentum of sgd, which is the published recipe's.
        "sgd": {"momentum": 0.9, "weight_decay": 0.0},
        "adam": {"beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7, "weight_decay": 0.0},
        "adamw": {"beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7, "weight_decay": 0.004},
        "rmsprop": {"rho": 0.9, "momentum": 0.0, "epsilon": 1e-7, "weight_decay": 0.0},
    },
    "schedule": {"inverse": {"decay": 1e-7}, "cosine": {"final_share": 0.0}, "exponential": {"final_share": 0.01}},
}
"""What each choice takes, with its defaults; a parameter of other choices only has no effect, and is refused."""


def taken_by(choice: str, parameter: str) -> tuple[str, ...]:
    """Return which values of `choice`, such as `optimizer`, take `parameter`; empty if it does not depend on it."""
    return tuple(value for value, parameters in CHOICES[choice].items() if parameter in parameters)


def without_effect(parameter: str, values: Mapping[str, Any]) -> str:
    """Return the choice among `values` with which `parameter` has no effect, such as `optimizer`; empty if none is."""
    for choice in CHOICES:
        takers, chosen = taken_by(choice, parameter), values.get(choice)
        if takers and chosen is not None and chosen not in takers:
            return choice
    return ""


def with_other(values: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return complete parameters in which some are replaced.

    Where these choose another optimizer or schedule, what was the default of the one before is left to the new one, and
    what has no effect with it is left out.
    """
    both = {**values, **other}
    changed = [choice for choice in CHOICES if both[choice] != values[choice]]

    def was_usual(name: str) -> bool:
        return any(CHOICES[choice][values[choice]].get(name, ...) == values[name] for choice in changed)

    return {n: v for n, v in both.items() if n in other or not (was_usual(n) or without_effect(n, both))}


class _Parameters(BaseModel):
    """The parameters of a training, some of which may not be set."""

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
    model: Function | None = Field(
        default=None,
        description="Your own Keras model, as FILE:FUNCTION such as my_models:build; it replaces the parameters above.",
    )
    optimizer: Optimizer = Field(
        default="sgd", description="How a gradient changes the weights; the rules are those of Keras."
    )
    learning_rate: float = Field(
        default=0.001, gt=0, le=10, description="Step size of the optimizer; the schedule changes it."
    )
    momentum: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="Share of the previous step added to the next one, of sgd (0.9 if not set) and rmsprop (0).",
    )
    beta_1: float | None = Field(
        default=None, ge=0, lt=1, description="How slowly the mean gradient changes, of adam and adamw (0.9)."
    )
    beta_2: float | None = Field(
        default=None, ge=0, lt=1, description="How slowly the mean squared gradient changes, of adam and adamw (0.999)."
    )
    rho: float | None = Field(
        default=None, ge=0, lt=1, description="How slowly the mean squared gradient changes, of rmsprop (0.9)."
    )
    epsilon: float | None = Field(
        default=None, gt=0, le=1, description="Keeps adam, adamw and rmsprop from dividing by zero (1e-7)."
    )
    weight_decay: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Share of each weight removed per step, times the learning rate (0; of adamw 0.004).",
    )
    schedule: Schedule = Field(
        default="inverse",
        description="How the rate falls: by inverse time (decay), along a cosine or exponentially (final_share).",
    )
    decay: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Of the schedule inverse: the rate at step t is learning_rate / (1 + decay·t) (1e-7).",
    )
    final_share: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Share of the learning rate left after all epochs, of cosine (0) and exponential (0.01).",
    )
    warmup_epochs: int = Field(
        default=0,
        ge=0,
        le=10_000,
        description="Epochs in which the rate rises step by step from 0 to learning_rate, before the schedule begins.",
    )
    label_smoothing: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of each label spread over all classes while weights are fitted; reported losses stay plain.",
    )
    shift: float = Field(
        default=0.0,
        ge=0,
        le=1024,
        description="Each epoch shifts each fitted image at random, by at most these pixels.",
    )
    rotate: float = Field(
        default=0.0, ge=0, le=180, description="Each epoch turns each fitted image at random, by at most these degrees."
    )
    zoom: float = Field(
        default=0.0,
        ge=0,
        le=0.9,
        description="Each epoch enlarges or shrinks each fitted image at random, by at most this share.",
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
    def _patience_needs_held_out_rows(self) -> Self:
        if self.patience is not None and self.validation_fraction == 0:
            raise ValueError(
                "expected held-out rows, because patience needs them; found a validation_fraction of 0; raise it"
            )
        return self

    @model_validator(mode="after")
    def _each_has_an_effect(self) -> Self:
        values = self.model_dump(exclude_none=True)
        for name in values:
            if choice := without_effect(name, values):
                *most, last = taken_by(choice, name)
                takers = f"{', '.join(most)} or {last}" if most else last
                raise ValueError(
                    f"expected {name} with the {choice} {takers} only; found it with {values[choice]}, where it has no "
                    f"effect; remove {name}, or choose another {choice}"
                )
        return self

    @model_validator(mode="after")
    def _one_network(self) -> Self:
        usual = {name: field.default for name, field in _Parameters.model_fields.items()}
        for name in NETWORK if self.model else ():
            if getattr(self, name) not in (None, usual[name]):
                raise ValueError(
                    f"expected model without {name}, because the function makes the whole network; found both; remove "
                    f"{name}, or the model (in a run: --set model=null)"
                )
        return self

    @model_validator(mode="after")
    def _the_rate_stays_above_zero(self) -> Self:
        if self.schedule == "exponential" and self.final_share == 0:
            raise ValueError(
                "expected a final_share above 0, because an exponential schedule never reaches 0; found 0; raise it, "
                "or choose the schedule cosine"
            )
        return self

    @model_validator(mode="after")
    def _warming_up_ends(self) -> Self:
        # Neither is set in overrides that leave it to others.
        if self.warmup_epochs and self.epochs is not None and self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"expected fewer warmup_epochs than epochs; found {self.warmup_epochs:,} of {self.epochs:,}; raise "
                "epochs, or lower warmup_epochs"
            )
        return self


class TrainingConfig(_Parameters):
    """Architecture, optimizer, schedule and seed of one training."""

    model_config = ConfigDict(validate_default=True)

    @field_validator(*{name for values in CHOICES.values() for own in values.values() for name in own})
    @classmethod
    def _default_of_the_choice(cls, value: float | None, info: ValidationInfo) -> float | None:
        """Replace None by the default of the optimizer or the schedule; what they do not take stays None."""
        if value is not None:
            return value
        chosen = (values.get(info.data.get(choice, ""), {}) for choice, values in CHOICES.items())
        return next((own[name] for own in chosen if (name := str(info.field_name)) in own), None)

    def numbers(self, *names: str) -> tuple[float, ...]:
        """Return parameters that the optimizer or the schedule takes: these are set."""
        return tuple(getattr(self, name) for name in names)

    def deciding(self) -> dict[str, Any]:
        """Return what decides the weights, as JSON values: all but the memory budget, and `model` only if it is set."""
        return self.model_dump(mode="json", exclude={"memory"} if self.model else {"memory", "model"})

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
        __base__=_Parameters,
        __doc__="Individual training parameters; the profile and the data set supply the others.",
        **{
            name: (
                field.annotation | None,
                FieldInfo.merge_field_infos(field, default=None, description=_described(name, field)),
            )
            for name, field in _Parameters.model_fields.items()
        },
    )


def training_config(
    dataset: Dataset, profile: Profile = "default", overrides: Mapping[str, Any] | None = None
) -> TrainingConfig:
    """Combine the profile, the data set's own defaults and the user's overrides; later values win.

    The profile `tutorial` is the published recipe and takes nothing from the data set. What an optimizer or a schedule
    does not take is left out if another of the three has chosen that: values of profile and data set where the user
    chooses, of the profile where the data set does, and of the data set where the profile does.

    Raises:
        ConfigError: a value is out of bounds or unknown, images are too small for so many poolings, or the source of
            the user's own model cannot be used; the message names it, its bounds and what was found.
    """
    if profile not in PROFILES:
        raise ConfigError(
            f"expected a profile of {', '.join(PROFILES)}; found {shown(profile)}{meant(profile, PROFILES)}; "
            "choose one of these, or leave it out"
        )
    config = checked(TrainingConfig, combined(profile, dataset.training, overrides or {}), "training parameters")
    check_poolings(config, dataset)
    if config.model:
        source_of(config.model, dataset.manifest)
    return config


def combined(profile: Profile, own: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of `training_config`, not checked yet: see there.

    Args:
        own: what the data set says.
    """
    recipe, own = PROFILES[profile], {} if profile == "tutorial" else own
    chosen = {name: value for name, value in recipe.items() if name not in own}
    usual = {**_with_effect(recipe, own), **_with_effect(own, chosen)}
    return _with_effect(usual, overrides) | dict(overrides)


def _with_effect(values: Mapping[str, Any], choices: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if not without_effect(name, choices)}


def check_poolings(config: TrainingConfig, dataset: Dataset) -> None:
    """Check that the images are large enough for all poolings.

    Raises:
        ConfigError: they are not.
    """
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
