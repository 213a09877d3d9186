"""The command line as a user types it: real processes, real Prefect, exit codes and output."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import TinyFactory, bars
from tests.support.commands import Command, idxflow
from tests.support.operated import until
from tests.support.servers import BIN, clean_environment, free_port

Cli = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def cli(server: dict[str, str], tmp_path: Path) -> Cli:
    """Call `idxflow` with a store of its own, from a folder that is not the project's."""

    def call(*arguments: str) -> subprocess.CompletedProcess:
        return idxflow(*arguments, env={**server, "IDXFLOW_STORE": str(tmp_path / "cli-store")}, cwd=tmp_path)

    return call


def outcome(result: subprocess.CompletedProcess) -> dict:
    """Return the one JSON object on standard output; anything else there is an error."""
    return json.loads(result.stdout)


@pytest.mark.flow
def test_run_again_change_and_damage_on_digits(cli: Cli, tmp_path: Path):
    first = cli("run", "digits")
    assert first.returncode == 0, first.stderr
    assert "promoted v1: the first model above the floors" in first.stdout
    for step in ("fetch train-images", "decode train", "validate", "normalize", "train", "evaluate", "publish"):
        assert step in first.stdout
    report = Path(first.stdout.rsplit("report ", 1)[1].strip())
    assert report.is_file()

    again = outcome(cli("run", "digits", "--json"))
    assert again["state"] == "unchanged"
    assert all(step["reused"] for step in again["steps"].values())
    assert again["report"] == str(report)
    assert again["test_accuracy"] >= 0.95

    changed = outcome(cli("run", "digits", "--json", "--set", "learning_rate=0.02"))
    ran = {name for name, step in changed["steps"].items() if not step["reused"]}
    assert {"train", "evaluate", "publish"} <= ran
    assert not {name for name in ran if name.startswith(("fetch", "decode", "validate", "normalize"))}
    assert changed["steps"]["train"]["reason"] == "learning_rate 0.01 → 0.02"

    damaged = next((tmp_path / "cli-store" / "digits" / "2-splits").glob("*/test.parquet"))
    damaged.chmod(0o644)
    damaged.write_bytes(damaged.read_bytes()[:-10])
    mended = cli("run", "digits", "--set", "learning_rate=0.02")
    assert mended.returncode == 0
    assert "damaged: " in mended.stdout
    assert f"unchanged since v{changed['version']}" in mended.stdout


WRONG = {
    "no such data set": (["run", "nope"], "expected a data set of the catalog"),
    "unknown option": (["run", "--frobnicate"], "Unknown option"),
    "unknown command": (["frobnicate"], "Unknown command"),
    "epochs 0": (["run", "--set", "epochs=0"], "an integer from 1 to 10,000; found 0"),
    "epochs text": (["run", "--set", "epochs=many"], "expected epochs to be an integer"),
    "nan": (["run", "--set", "learning_rate=NaN"], "found nan"),
    "unknown parameter": (["run", "--set", "epoch=1"], "expected one of hidden"),
    "no value": (["run", "--set", "epochs"], "--set NAME=VALUE"),
    "unknown profile": (["run", "--profile", "better"], "default, tutorial, fast, conv, best"),
    "no such manifest": (["run", "--dataset-file", "none.toml"], "expected a manifest in TOML"),
    "manifest of nothing": (["manifest", "."], "expected a folder of four IDX files"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_usage_ends_at_once_with_2(tmp_path: Path, arguments: list[str], message: str):
    result = idxflow(*arguments, env=clean_environment(tmp_path), cwd=tmp_path)
    assert result.returncode == 2
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_wrong_configuration_is_json_too(tmp_path: Path):
    result = idxflow("run", "nope", "--json", env=clean_environment(tmp_path))
    assert outcome(result)["error"]["kind"] == "ConfigError"
    assert result.returncode == 2


def test_the_catalog_is_listed(tmp_path: Path):
    result = subprocess.run(
        [str(BIN / "idxflow"), "datasets", "--json"], capture_output=True, text=True, env=clean_environment(tmp_path)
    )
    listed = {d["name"]: d for d in outcome(result)}
    assert {"digits", "mnist", "fashion-mnist", "kmnist", "qmnist"} < {*listed}
    assert len([name for name in listed if name.startswith("emnist-")]) == 6
    assert listed["emnist-letters"]["mirrors"] == ["https://biometrics.nist.gov/cs_links/EMNIST/"]


@pytest.mark.flow
def test_refused_data_ends_with_3_and_a_report(cli: Cli, tiny: TinyFactory):
    labels = (np.arange(120) % 3).astype(np.uint8)
    labels[42] = 37
    manifest = str(tiny(arrays={"train-labels": labels}).manifest)
    result = cli("run", "--dataset-file", manifest, "--json")
    run = outcome(result)
    assert result.returncode == 3
    assert (run["state"], run["error"]["kind"]) == ("refused", "ValidationFailed")
    assert "42" in run["error"]["sentence"]
    assert "train" not in run["steps"]
    assert "37" in Path(run["report"]).read_text()
    checked = cli("validate", "--dataset-file", manifest)
    assert checked.returncode == 3


@pytest.mark.flow
def test_a_cut_archive_ends_with_3(cli: Cli, tiny: TinyFactory):
    dataset = tiny()
    path = dataset.source / dataset.archive("test-images").file
    path.write_bytes(path.read_bytes()[:-20])
    result = cli("validate", "--dataset-file", str(dataset.manifest), "--json")
    assert result.returncode == 3
    assert "t10k-images-idx3-ubyte.gz" in outcome(result)["error"]["sentence"]


@pytest.mark.flow
def test_valid_data_ends_with_0_and_trains_nothing(cli: Cli, tiny: TinyFactory):
    result = cli("validate", "--dataset-file", str(tiny().manifest), "--json")
    assert result.returncode == 0
    assert outcome(result)["state"] == "valid"
    assert "train" not in outcome(result)["steps"]


@pytest.mark.flow
def test_no_source_ends_with_4_and_says_what_to_do(cli: Cli, tmp_path: Path, tiny: TinyFactory):
    manifest = tiny().manifest
    manifest.write_text(manifest.read_text().replace("tiny-source", "nowhere"))
    result = cli("run", "--dataset-file", str(manifest), "--source", str(tmp_path / "empty"), "--json")
    run = outcome(result)
    assert result.returncode == 4
    assert run["error"]["kind"] == "SourceUnavailable"
    assert "--source" in run["error"]["sentence"]
    assert "\n" not in run["error"]["sentence"]
    assert Path(run["report"]).is_file()


@pytest.mark.flow
def test_a_model_below_a_floor_ends_with_5_and_is_no_champion(cli: Cli, tiny: TinyFactory):
    shuffled = np.random.default_rng(0).permutation(bars(120, 30, 3, (9, 7))["train-labels"])
    lax = "[limits]\nmax_label_chance = 1\n[floors]\naccuracy = 0.9"
    dataset = tiny(arrays={"train-labels": shuffled}, manifest=lax)
    result = cli("run", "--dataset-file", str(dataset.manifest), "--set", "epochs=1", "--json")
    run = outcome(result)
    assert result.returncode == 5
    assert (run["state"], run["version"], run["champion"]) == ("refused", None, None)
    assert "test accuracy" in run["error"]["sentence"]


@pytest.mark.flow
def test_an_unusable_store_ends_with_1(cli: Cli, tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    result = cli("run", "digits", "--json", "--store", str(tmp_path / "file" / "store"))
    assert result.returncode == 1
    assert outcome(result)["error"]["kind"] == "StoreError"


def test_a_server_that_does_not_answer_is_named(tmp_path: Path):
    environment = clean_environment(tmp_path, PREFECT_API_URL=f"http://127.0.0.1:{free_port()}/api")
    result = idxflow("run", "--store", str(tmp_path / "store"), "--json", env=environment)
    assert result.returncode == 1
    assert outcome(result)["error"]["kind"] == "PrefectFailed"
    assert "up? Start it, or remove PREFECT_API_URL of the environment" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.flow
def test_ctrl_c_is_reported_and_the_next_run_resumes(server: dict[str, str], tmp_path: Path, tiny: TinyFactory):
    environment = {**server, "IDXFLOW_STORE": str(tmp_path / "store")}
    command = ("run", "--dataset-file", str(tiny().manifest), "--set", "learning_rate=0.1", "--set")
    models = tmp_path / "store" / "tiny" / "5-models"
    with Command(*command, "epochs=10000", "--set", "patience=10000", env=environment) as process:
        until(lambda: list(models.glob(".*.partial/history.jsonl")) or process.poll() is not None)
        process.send_signal(signal.SIGINT)
        code, errors = process.wait(240), process.errors
    assert code == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert outcome(idxflow(*command, "epochs=4", "--json", env=environment))["state"] == "promoted"


def test_a_manifest_is_written_for_files_one_has(tmp_path: Path, tiny: TinyFactory):
    dataset = tiny()
    result = subprocess.run(
        [str(BIN / "idxflow"), "manifest", str(dataset.source), "--name", "mine"],
        capture_output=True,
        text=True,
        env=clean_environment(tmp_path),
        check=True,
    )
    from storage.datasets import catalog

    (tmp_path / "mine.toml").write_text(result.stdout)
    written = catalog.read(tmp_path / "mine.toml")
    assert (written.name, written.image_shape, len(written.classes)) == ("mine", (9, 7), 3)
    assert all(archive.pinned for archive in written.archives)
