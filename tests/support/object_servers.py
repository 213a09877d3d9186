"""Real servers of object storage for tests, each on a free port of 127.0.0.1, ended with the block.

Of S3, `ministack` is one quick process, for most tests; `ceph` is a distributed store's gateway. `azurite` speaks the
protocol of Azure. `juicefs` answers as if it knew the condition of a write, and ignores it: no store can be there.
`bucket` is none of these, but whatever a developer names.
"""

from __future__ import annotations

import base64
import hmac
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from email.utils import formatdate
from pathlib import Path
from subprocess import Popen
from urllib.parse import parse_qsl
from uuid import uuid4

import httpx
import obstore
import pytest
from obstore.store import S3Store

from tests.support.ceph import gateway
from tests.support.servers import BIN, HTTP, ROOT, START_SECONDS, free_port, running

TEST_STORE = "IDXFLOW_TEST_STORE"
_BUCKET = "box"
_KEY = "idxflow-tests"
_SECRET = "canary-of-the-tests"
_KEYS = {"AWS_ACCESS_KEY_ID": _KEY, "AWS_SECRET_ACCESS_KEY": _SECRET}
_AZURE_SECRET = base64.b64encode(_SECRET.encode()).decode()
_AZURITE = ROOT / "tests" / "azurite" / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"


@dataclass(frozen=True)
class ObjectServer:
    """A place in object storage on this machine."""

    name: str
    """Of the function that starts it."""
    address: str
    """`s3://bucket/prefix?endpoint=http://127.0.0.1:port&region=name`, or `az://container/prefix`."""
    environment: Mapping[str, str]
    """Variables that a process needs to use it: credentials, and for Azure the endpoint."""

    @property
    def config(self) -> dict[str, str]:
        """What `obstore.store.from_url` needs beside the address, in place of the environment."""
        return dict(parse_qsl(self.address.partition("?")[2])) | self.environment

    def fresh(self) -> ObjectServer:
        """Return a place below this one that nobody has used."""
        place, mark, options = self.address.partition("?")
        return replace(self, address=f"{place}/{uuid4().hex}{mark}{options}")


@contextmanager
def ministack(folder: Path) -> Iterator[ObjectServer]:
    """Run MiniStack, an imitation of AWS that keeps all in memory."""
    port = free_port()
    more = {
        **_KEYS,
        "BIND_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "SERVICES": "s3",
        # Another server of its, for all of the network, at a port that cannot be shared.
        "IOT_MTLS_ENABLED": "0",
        # With one it would look for containers of its own, and remove them.
        "DOCKER_HOST": f"unix://{folder}/no-docker",
    }
    with _serving([sys.executable, "-m", "ministack"], port, folder, more):
        yield _with_bucket("ministack", port)


@contextmanager
def ceph(folder: Path) -> Iterator[ObjectServer]:
    """Run Ceph's gateway for S3; its start waits ten seconds, most of them for the first tables to be made."""
    port = free_port()
    with gateway(folder, port, _KEY, _SECRET) as process:
        _wait(port, process, folder / "radosgw.log")
        yield _with_bucket("ceph", port)


@contextmanager
def azurite(folder: Path) -> Iterator[ObjectServer]:
    """Run Azurite, Microsoft's imitation of Azure's storage, which keeps all in memory."""
    if not _AZURITE.exists():
        pytest.skip("needs Azurite: on Debian, apt-get install npm, then npm ci --prefix tests/azurite")
    port = free_port()
    # It would send usage data.
    options = f"--blobPort {port} --inMemoryPersistence --disableTelemetry --silent --skipApiVersionCheck"
    with _serving(
        ["node", str(_AZURITE), *options.split()], port, folder, {"AZURITE_ACCOUNTS": f"{_KEY}:{_AZURE_SECRET}"}
    ):
        _make_container(f"http://127.0.0.1:{port}/{_KEY}")
        variables = {
            "AZURE_STORAGE_ACCOUNT_NAME": _KEY,
            "AZURE_STORAGE_ACCOUNT_KEY": _AZURE_SECRET,
            "AZURE_STORAGE_ENDPOINT": f"http://127.0.0.1:{port}/{_KEY}",
        }
        yield ObjectServer("azurite", f"az://{_BUCKET}", variables)


@contextmanager
def juicefs(folder: Path) -> Iterator[ObjectServer]:
    """Run JuiceFS's gateway for S3, which ignores the condition of a write."""
    port, about = free_port(), f"sqlite3://{folder}/about.db"
    # The bucket has the name of the file system.
    made = f"{BIN}/juicefs format --storage file --bucket {folder}/data/ {about} {_BUCKET}"
    subprocess.run(made.split(), cwd=folder, check=True, capture_output=True, timeout=START_SECONDS)
    command = f"{BIN}/juicefs gateway {about} 127.0.0.1:{port} --no-usage-report --no-banner --cache-dir memory"
    with _serving(command.split(), port, folder, {"MINIO_ROOT_USER": _KEY, "MINIO_ROOT_PASSWORD": _SECRET}):
        yield _in_s3("juicefs", port)


@contextmanager
def bucket(_folder: Path) -> Iterator[ObjectServer]:
    """Yield a place below the address of `IDXFLOW_TEST_STORE`; what is there is removed with the block.

    The credentials are those of the environment.
    """
    address = os.environ.get(TEST_STORE)
    if not address:
        pytest.fail(f"needs the address of a place in object storage: set {TEST_STORE} to it", pytrace=False)
    place = ObjectServer("bucket", address, {}).fresh()
    try:
        yield place
    finally:
        objects = obstore.store.from_url(
            place.address.partition("?")[0], config=place.config, client_options={"allow_http": True}
        )
        for page in objects.list():
            objects.delete([found["path"] for found in page])


@contextmanager
def _serving(command: list[str], port: int, folder: Path, more: Mapping[str, str]) -> Iterator[None]:
    """Run a server until the end of the block, from the time that it answers; its home and its log are in `folder`."""
    log = folder / "log"
    with running(command, {**os.environ, "HOME": str(folder), "TMPDIR": str(folder), **more}, folder, log) as process:
        _wait(port, process, log)
        yield


def _wait(port: int, process: Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            HTTP.get(f"http://127.0.0.1:{port}/")
            return
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError(f"the server did not start: {log.read_text()[-2000:]}")


def _in_s3(name: str, port: int) -> ObjectServer:
    return ObjectServer(name, f"s3://{_BUCKET}?endpoint=http://127.0.0.1:{port}&region=us-east-1", _KEYS)


def _with_bucket(name: str, port: int) -> ObjectServer:
    bucket = S3Store(
        _BUCKET,
        endpoint=f"http://127.0.0.1:{port}",
        region="us-east-1",
        access_key_id=_KEY,
        secret_access_key=_SECRET,
        client_options={"allow_http": True},
    )
    HTTP.put(obstore.sign(bucket, "PUT", "", timedelta(minutes=10))).raise_for_status()
    return _in_s3(name, port)


def _make_container(account: str) -> None:
    # https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    named = "".join(f"{name}:{value}\n" for name, value in headers.items())
    request = "PUT" + "\n" * 12 + f"{named}/{_KEY}/{_KEY}/{_BUCKET}\nrestype:container"
    signature = base64.b64encode(hmac.digest(base64.b64decode(_AZURE_SECRET), request.encode(), "sha256")).decode()
    headers["Authorization"] = f"SharedKey {_KEY}:{signature}"
    url = f"{account}/{_BUCKET}?restype=container"
    HTTP.put(url, headers=headers).raise_for_status()
