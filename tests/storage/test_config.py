"""The training configuration: profile, data set and overrides become one checked value, or one sentence."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from storage.datasets import catalog
from storage.datasets.training import (
    PROFILES,
    TrainingConfig,
    TrainingOverrides,
    parse_overrides,
    training_config,
    without_effect,
)
from storage.errors import ConfigError
from tasks.model.network import ACTIVATIONS
from tests.conftest import TinyFactory

MNIST, DIGITS = catalog.find("mnist"), catalog.find("digits")


def test_the_defaults_are_the_tutorial_s_network_and_rates():
    config = training_config(MNIST)
    assert (config.hidden, config.activation, config.batch_size, config.epochs) == ((50, 50), "tanh", 64, 50)
    assert (config.learning_rate, config.momentum, config.decay, config.weight_decay) == (0.001, 0.9, 1e-7, 0)
    assert (config.validation_fraction, config.held_out, config.normalize_on) == (0.1, "stratified", "fitted")
    assert config.patience is None
    assert training_config(MNIST, "tutorial") == config.model_copy(update={"held_out": "tail", "normalize_on": "all"})


ADAM = {"beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7, "momentum": None, "rho": None}


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, {"momentum": 0.9, "weight_decay": 0, "beta_1": None, "decay": 1e-7, "final_share": None}),
        ({"momentum": None}, {"momentum": 0.9}),
        ({"optimizer": "adam"}, {**ADAM, "weight_decay": 0}),
        ({"optimizer": "adamw"}, {**ADAM, "weight_decay": 0.004}),
        ({"optimizer": "adamw", "weight_decay": 0}, {"weight_decay": 0}),
        ({"optimizer": "rmsprop"}, {"rho": 0.9, "momentum": 0, "epsilon": 1e-7, "weight_decay": 0}),
        ({"schedule": "cosine"}, {"final_share": 0, "decay": None}),
        ({"schedule": "exponential"}, {"final_share": 0.01, "decay": None}),
    ],
    ids=str,
)
def test_what_is_not_set_is_the_default_of_the_optimizer_and_the_schedule(parameters: dict, expected: dict):
    config = TrainingConfig(**parameters)
    assert {name: getattr(config, name) for name in expected} == expected


def test_another_optimizer_leaves_out_what_the_data_set_says_for_its_own(tiny: TinyFactory):
    dataset = tiny(manifest='[training]\nmomentum = 0.8\nweight_decay = 0.01\nschedule = "cosine"\nfinal_share = 0.1')
    config = training_config(dataset, "default", {"optimizer": "adam", "schedule": "inverse"})
    assert (config.momentum, config.weight_decay, config.decay, config.final_share) == (None, 0.01, 1e-7, None)
    assert training_config(dataset).momentum == 0.8
    with pytest.raises(ConfigError, match="expected momentum with the optimizer sgd or rmsprop only"):
        tiny(manifest='[training]\noptimizer = "adam"\nmomentum = 0.8')


def test_a_profile_with_another_optimizer_leaves_out_what_the_data_set_says_for_the_usual_one(tiny: TinyFactory):
    config = training_config(tiny(manifest="[training]\nmomentum = 0.8\ndecay = 0.1\nweight_decay = 0.01"), "best")
    assert (config.optimizer, config.schedule) == ("adamw", "cosine")
    assert (config.momentum, config.decay, config.weight_decay) == (None, None, 0.01)


def test_a_data_set_with_another_schedule_leaves_out_what_the_profile_says_for_its_own(tiny: TinyFactory):
    config = training_config(tiny(manifest='[training]\nschedule = "exponential"'), "conv")
    assert (config.decay, config.final_share) == (None, 0.01)


def test_what_has_no_effect_with_any_choice_is_said_for_each():
    assert without_effect("momentum", {"optimizer": "adam"}) == "optimizer"
    assert without_effect("final_share", {"optimizer": "adam", "schedule": "inverse"}) == "schedule"
    assert not any(without_effect(name, {"optimizer": "sgd"}) for name in ("momentum", "epochs", "decay"))


@pytest.mark.parametrize(
    ("profile", "overrides", "expected"),
    [
        ("default", {}, {"learning_rate": 0.01, "batch_size": 16, "epochs": 50}),
        ("fast", {}, {"learning_rate": 0.01, "batch_size": 16, "epochs": 10}),
        ("tutorial", {}, {"learning_rate": 0.001, "batch_size": 64, "normalize_on": "all"}),
        ("default", {"batch_size": 8}, {"learning_rate": 0.01, "batch_size": 8}),
        ("tutorial", {"epochs": 2, "hidden": []}, {"epochs": 2, "hidden": (), "normalize_on": "all"}),
    ],
)
def test_the_data_set_overrides_the_profile_and_the_user_both(profile, overrides: dict, expected: dict):
    config = training_config(DIGITS, profile, overrides)
    assert {name: getattr(config, name) for name in expected} == expected


def test_a_wrong_parameter_of_a_manifest_names_the_manifest(tiny: TinyFactory):
    with pytest.raises(ConfigError, match=r"tiny\.toml: expected training\.epochs to be an integer"):
        tiny(manifest="[training]\nepochs = -1")


@pytest.mark.parametrize(
    ("texts", "values"),
    [
        ([], {}),
        (["epochs=5", "hidden=[64, 32]"], {"epochs": 5, "hidden": [64, 32]}),
        (["activation=relu"], {"activation": "relu"}),
        (["batch-size = 8"], {"batch_size": 8}),
        (["restore_best=false", "patience=null"], {"restore_best": False, "patience": None}),
        (["epochs=1", "epochs=2"], {"epochs": 2}),
        (["activation=a=b"], {"activation": "a=b"}),
    ],
)
def test_overrides_are_read_as_json_or_text(texts: list[str], values: dict):
    assert parse_overrides(texts) == values


def test_a_configuration_does_not_change_and_comes_back_from_json():
    config = TrainingConfig(hidden=(3,), patience=2)
    with pytest.raises(ValidationError):
        config.epochs = 1  # type: ignore[misc]
    assert TrainingConfig(**config.model_dump(mode="json")) == config


def test_overrides_that_are_not_set_override_nothing():
    assert TrainingOverrides().model_dump(exclude_none=True) == {}
    assert set(TrainingOverrides.model_fields) == set(TrainingConfig.model_fields)
    for wrong in (
        {"epochs": 0},
        {"epochs": True},
        {"patience": 2, "validation_fraction": 0},
        {"optimizer": "adam", "rho": 0.9},
    ):
        with pytest.raises(ValidationError):
            TrainingOverrides(**wrong)
    assert TrainingOverrides(restore_best=True).restore_best
    unset = TrainingOverrides(optimizer="sgd", momentum=None).model_dump(exclude_none=True)
    assert unset == {"optimizer": "sgd"}
    # As Prefect's form sends it if one field was filled in.
    left_alone = dict.fromkeys(TrainingOverrides.model_fields)
    assert TrainingOverrides(**left_alone | {"epochs": 2}).model_dump(exclude_none=True) == {"epochs": 2}
    assert TrainingOverrides(momentum=0.5, warmup_epochs=70).momentum == 0.5


def test_profiles_and_activations_are_ones_that_can_be_trained():
    assert all(TrainingConfig(**parameters) for parameters in PROFILES.values())
    for activation in ACTIVATIONS:
        assert TrainingConfig(activation=activation).activation == activation
