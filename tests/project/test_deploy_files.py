"""The files of `deploy/`: well-formed, and naming only options that `idxflow up` has.

No engine for containers runs in the tests. The steps of the Dockerfile are carried out in a new folder, except the
installation of what the lock has.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from distributed import Client
from distributed.security import Security
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from flows.commands.cli import app
from flows.commands.up import up
from tests.support.certificates import authority
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


def ignored(patterns: list[str], folder: Path) -> Callable[[str, list[str]], set[str]]:
    """Return what `shutil.copytree` leaves out, by patterns of the few kinds that .dockerignore has here."""
    assert patterns[0] == "*"
    kept = {pattern[1:] for pattern in patterns if pattern.startswith("!")}
    everywhere = {pattern.removeprefix("**/") for pattern in patterns[1:] if not pattern.startswith("!")}
    assert not re.search(r"[*?/]", "".join(kept | everywhere))

    def leave_out(where: str, names: list[str]) -> set[str]:
        return {name for name in names if name in everywhere or (Path(where) == folder and name not in kept)}

    return leave_out


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `COPY . .` puts into the image."""
    lines = (ROOT / "deploy/Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    folder = tmp_path_factory.mktemp("image") / "idxflow"
    shutil.copytree(ROOT, folder, ignore=ignored([line for line in lines if not line.startswith("#")], ROOT))
    return folder


def steps() -> list[str]:
    """The commands of the Dockerfile, each as one line."""
    return re.findall(r"^RUN (.*)$", DOCKERFILE.replace("\\\n", ""), re.MULTILINE)


def test_only_what_is_needed_gets_into_the_image(image: Path):
    assert {path.name for path in image.iterdir()} >= {"flows", "prefect.yaml", "idxflow_start.py", "requirements.lock"}
    assert not {"tests", "deploy", "store", ".git", "shared", ".venv"} & {path.name for path in image.iterdir()}
    for words in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE):
        assert all((image / word).exists() for word in words.split())


def test_what_the_image_installs_is_what_idxflow_and_its_extras_need_by_the_lock(image: Path):
    (step,) = (step for step in steps() if "tomllib" in step)
    listed = step.replace(".venv/bin/python", shlex.quote(sys.executable)).partition(" > /tmp/wanted.txt")[0]
    printed = subprocess.run(["sh", "-c", listed], cwd=image, capture_output=True, text=True, check=True).stdout
    project = tomllib.loads((image / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    assert printed.splitlines() == [*project["dependencies"], *extras]
    locked = set(
        re.findall(r"^([a-z0-9-]+)==", (image / "requirements.lock").read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert {canonicalize_name(Requirement(line).name) for line in printed.splitlines()} <= locked


def test_the_command_finds_all_its_files_in_the_image(image: Path, tmp_path: Path):
    code = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import flows.retrain, flows.service.supervisor, flows.service.application
from idxflow_start import main
print(flows.retrain.__file__)
main()
"""
    words = [sys.executable, "-I", "-c", code, str(image), "datasets", "--json"]
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path), "IDXFLOW_STORE": str(tmp_path / "store")}
    printed = subprocess.run(words, cwd=image, env=environment, capture_output=True, text=True, check=True).stdout
    module, _, listed = printed.partition("\n")
    assert module == str(image / "flows/retrain.py")
    assert {one["name"] for one in json.loads(listed)} >= {"digits", "mnist"}


def test_the_database_counts_as_started_once_it_listens():
    for service in COMPOSE["services"].values():
        assert service["healthcheck"]["test"][0] == "CMD"
    assert "--host" in COMPOSE["services"]["database"]["healthcheck"]["test"]


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """A folder with what the workers and the scheduler show each other."""
    throw_away = authority(tmp_path / "certificates")
    throw_away.server()
    throw_away.file.rename(throw_away.folder / "ca.pem")
    for name in ("workers.pem", "workers-key.pem"):
        # It has certificate and key.
        shutil.copyfile(throw_away.folder / "server.pem", throw_away.folder / name)
    return throw_away.folder


SBATCH = """#!/bin/sh
# As Slurm does: the file is gone soon.
cp "$1" "$SLURM_TEST/job.sh"
setsid sh "$SLURM_TEST/job.sh" >"$SLURM_TEST/job.log" 2>&1 &
echo "Submitted batch job $!"
"""
SCANCEL = """#!/bin/sh
echo "$1" >"$SLURM_TEST/cancelled"
# It may have ended by itself, as its scheduler has.
kill -TERM -- "-$1" || true
"""


def test_slurm_starts_workers_and_ends_them(certificates: Path, tmp_path: Path):
    """Slurm's commands are simulated: a job is a process of this machine."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "SLURM_TEST": str(tmp_path)}
    words = [sys.executable, str(ROOT / "examples/slurm_cluster.py"), str(certificates), "--port", "0"]
    more = ("--jobs", "1", "--cores", "1", "--memory", "1 GiB", "--partition", "batch")
    with subprocess.Popen([*words, *more], env=environment, stdout=subprocess.PIPE, text=True) as cluster:
        try:
            address = cluster.stdout.readline().strip().removeprefix("export IDXFLOW_WORKERS=")
            assert address.startswith("tls://")
            key = str(certificates / "workers.pem")
            security = Security(
                tls_ca_file=str(certificates / "ca.pem"),
                tls_client_cert=key,
                tls_client_key=key,
                require_encryption=True,
            )
            with Client(address, security=security) as client:
                client.wait_for_workers(1, timeout=240)
                assert client.submit(divmod, 17, 5).result(timeout=240) == (3, 2)
        finally:
            cluster.send_signal(signal.SIGINT)
            cluster.wait(240)
    assert (tmp_path / "cancelled").exists()
    job = (tmp_path / "job.sh").read_text()
    assert "#SBATCH -p batch" in job
    assert f"{sys.executable} -m distributed.cli.dask_worker {address} " in job
    assert f"--tls-ca-file {certificates / 'ca.pem'}" in job


def test_no_secret_is_in_the_files():
    example = (ROOT / "deploy/example.env").read_text(encoding="utf-8")
    assert all(line.endswith("=") for line in example.splitlines() if line and not line.startswith("#"))
    assert "deploy/.env" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
