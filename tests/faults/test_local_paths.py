"""An address where something is to be written is refused in every way in: nothing is made in a folder named `https:`.

Only a store can be at an address, and only of object storage.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from flows.collect import collect
from flows.commands.cli import run_command
from flows.commands.destination import destination
from flows.run import Request, prepare
from storage.errors import ConfigError
from storage.opening import open_store
from storage.store import Store
from tasks.serving.predict import load_champion

ADDRESSES = ["https://host/x", "sftp://key:secret@host/x", "file:///srv/store", "minio://bucket", "hdfs:/x"]
CALLS: dict[str, list[str]] = {
    "run": ["run", "--json"],
    "validate": ["validate"],
    "predict": ["predict", "digits", "x.png"],
    "export": ["export", "digits"],
    "figures": ["figures", "digits"],
    "report": ["report", "digits"],
    "runs": ["runs", "list", "digits"],
    "registry": ["registry", "history", "digits"],
    "promote": ["promote", "digits", "1", "--force", "--reason", "x"],
    "rollback": ["rollback", "digits", "--reason", "x"],
    "status": ["status"],
    "doctor": ["doctor"],
    "verify": ["verify"],
    "gc": ["gc"],
    "watch": ["watch", ".", "--dataset", "mnist", "--once"],
    "up": ["up"],
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "x.png").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(code: int, stderr_text: str, folder: Path) -> None:
    assert code == 2, stderr_text
    assert "to be a path of this machine; found an address" in stderr_text
    assert "secret" not in stderr_text
    assert [path.name for path in folder.iterdir()] == ["x.png"]


@pytest.mark.parametrize("by", ["flag", "variable"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_an_address_as_the_store_is_refused_by_every_command(
    folder: Path, monkeypatch, capsys, call: list[str], by: str
):
    if by == "variable":
        monkeypatch.setenv("IDXFLOW_STORE", ADDRESSES[1])
    code = run_command([*call, *(["--store", ADDRESSES[1]] if by == "flag" else [])])
    refused(code, capsys.readouterr().err, folder)


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize(
    "call",
    [open_store, lambda store: prepare(Request(store=store), "a test"), lambda store: load_champion("digits", store)],
    ids=["the store", "a run", "Python"],
)
def test_any_address_is_refused_also_as_a_parameter_of_a_deployment(folder: Path, address: str, call: Callable):
    with pytest.raises(ConfigError) as caught:
        call(address)
    refused(caught.value.exit_code, str(caught.value), folder)


def test_the_scheduled_removal_refuses_it_too(folder: Path):
    with pytest.raises(ConfigError) as caught:
        collect.fn(store=ADDRESSES[0])
    refused(caught.value.exit_code, str(caught.value), folder)


@pytest.mark.parametrize(
    "call",
    [
        ["predict", "digits", "x.png", "--out", "s3://bucket/x.parquet"],
        ["export", "digits", "--out", "s3://bucket/x"],
    ],
    ids=lambda call: call[0],
)
def test_an_address_to_write_to_is_refused(folder: Path, monkeypatch, capsys, tmp_path_factory, call: list[str]):
    monkeypatch.setenv("IDXFLOW_STORE", str(tmp_path_factory.mktemp("store")))
    refused(run_command(call), capsys.readouterr().err, folder)


def test_an_address_for_a_picture_or_a_report_is_refused(folder: Path):
    with pytest.raises(ConfigError) as caught:
        destination("--out", Path("s3://bucket/x.png"), (".png",), Store(folder / "store"), force=False)
    refused(caught.value.exit_code, str(caught.value), folder)


def test_a_path_with_a_colon_is_a_path(folder: Path):
    for name in ("a:b", "C:/x", "store 12:30", "./s3:/x"):
        assert open_store(name).root == folder / name


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("~no-such-user/x.md", "expected a path that begins with ~ to name a user with a home folder; found none"),
        ("circle.md", "found links that lead in a circle at "),
    ],
)
def test_a_path_that_cannot_be_followed_is_wrong_usage(
    folder: Path, path: str, found: str, capsys: pytest.CaptureFixture[str]
):
    (folder / "circle.md").symlink_to("circle.md")
    assert run_command(["share", "card", "digits", "--out", path, "--store", "store"]) == 2
    assert found in capsys.readouterr().err
