"""The files of `deploy/`: well-formed, and naming only options that `idxflow up` has."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.commands.cli import app
from flows.commands.up import up
from tests.support.servers import BIN, ROOT

UNIT = (ROOT / "deploy/idxflow.service").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text(encoding="utf-8"))
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text(encoding="utf-8")


def started_by_unit() -> list[str]:
    return shlex.split(re.search(r"^ExecStart=\S+/idxflow (.*)$", UNIT, re.MULTILINE)[1])


def started_by_image() -> list[str]:
    return json.loads(re.search(r"^CMD (.*)$", DOCKERFILE, re.MULTILINE)[1])[1:]


@pytest.mark.parametrize(
    "words", [started_by_unit(), started_by_image(), COMPOSE["services"]["idxflow"]["command"][1:]]
)
def test_idxflow_takes_the_command(words: list[str]):
    function, arguments, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    assert function is up
    options: dict[str, Any] = arguments.arguments
    assert options.get("auth", True) is True
    assert ":" not in str(options.get("database", "")).removeprefix("postgresql+asyncpg://").split("@")[0]


def test_systemd_accepts_the_unit(tmp_path: Path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("needs systemd-analyze: on Debian, apt-get install systemd")
    unit = tmp_path / "idxflow.service"
    # It looks whether the program exists.
    unit.write_text(UNIT.replace("/opt/idxflow/.venv/bin", str(BIN)))
    checked = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_containers_are_confined():
    service = COMPOSE["services"]["idxflow"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert re.search(r"^USER 10001:10001$", DOCKERFILE, re.MULTILINE)
    named = {volume.split(":")[0] for each in COMPOSE["services"].values() for volume in each["volumes"]}
    assert named == set(COMPOSE["volumes"])


def test_no_secret_is_in_the_files():
    example = (ROOT / "deploy/example.env").read_text(encoding="utf-8")
    assert all(line.endswith("=") for line in example.splitlines() if line and not line.startswith("#"))
    assert "deploy/.env" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
