"""What can be named as workers, and what is refused before anything is started."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import socket
import ssl
import threading
from pathlib import Path

import dask.config
import pytest

from storage.errors import ConfigError, WorkersFailed
from storage.workers import reach
from storage.workers.address import (
    CERTIFICATES,
    INSECURE_VARIABLE,
    PATIENCE_VARIABLE,
    WORKERS_VARIABLE,
    Cluster,
    are_elsewhere,
    parse,
    patience,
)
from storage.workers.here import Here
from storage.workers.opening import workers_for
from tests.support import working
from tests.support.clusters import certificates
from tests.support.working import Item


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (WORKERS_VARIABLE, INSECURE_VARIABLE, PATIENCE_VARIABLE, *CERTIFICATES.values()):
        monkeypatch.delenv(name, raising=False)


def name_certificates(monkeypatch: pytest.MonkeyPatch, folder: Path) -> dict[str, str]:
    """Make certificates, and have the environment name them; return their paths."""
    made = certificates(folder)
    files = {name: str(getattr(made, name)) for name in CERTIFICATES}
    for name, variable in CERTIFICATES.items():
        monkeypatch.setenv(variable, files[name])
    return files


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("4", 4),
        ("1024", 1024),
        ("tls://scheduler:8786", Cluster("tls://scheduler:8786")),
        ("tls://10.0.0.7:8786", Cluster("tls://10.0.0.7:8786")),
        ("tls://[fe80::1]:8786", Cluster("tls://[fe80::1]:8786")),
        ("tcp://127.0.0.1:8786", Cluster("tcp://127.0.0.1:8786")),
        ("tcp://localhost:8786", Cluster("tcp://localhost:8786")),
        ("tcp://[::1]:8786", Cluster("tcp://[::1]:8786")),
    ],
)
def test_a_number_or_an_address_is_meant(text: str, meant: int | Cluster) -> None:
    assert parse(text) == meant


@pytest.mark.remedies("storage.workers.address:parse")
@pytest.mark.parametrize(
    "text",
    [
        *("0", "-1", "1025", "4.0", "four", "scheduler:8786", "ray://head:10001", "tls://a b:1", "1\n"),
        *("tls://scheduler", "tls://scheduler:", "tls://:8786", "tls://", "tls://scheduler:0", "tls://scheduler:65536"),
        *("tls://scheduler:99999", "tls://...:8786", "tls://-s:8786", "tls://10.0.0.256:8786", "tls://[::zz]:8786"),
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected a number of processes .* such as tls://scheduler:8786; found "):
        parse(text.replace("\n", "\nx"))
    assert parse("tls://scheduler:8786")


def test_an_address_with_a_password_is_not_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("tls://me:canary@scheduler:8786")
    assert "canary" not in str(caught.value)


@pytest.mark.remedies("storage.workers.address:parse:2")
def test_another_machine_without_certificates_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("tcp://10.0.0.7:8786", "tcp://scheduler:8786", "tcp://127.0.0.1.example:8786"):
        with pytest.raises(ConfigError, match=r"begins with tls://.*; found tcp://\S+; set up TLS .*--insecure-w"):
            parse(address)
    assert parse("tcp://scheduler:8786", insecure=True) == Cluster("tcp://scheduler:8786")
    monkeypatch.setenv(INSECURE_VARIABLE, "1")
    assert parse("tcp://scheduler:8786") == Cluster("tcp://scheduler:8786")


@pytest.mark.remedies("storage.workers.address:_certificates", "storage.workers.address:_certificates:2")
def test_all_certificates_are_named_or_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(CERTIFICATES["ca"], str(tmp_path / "ca.pem"))
    with pytest.raises(ConfigError, match=r"IDXFLOW_WORKERS_CA: expected a file in PEM format .*; found none; correct"):
        parse("tls://scheduler:8786")
    (tmp_path / "ca.pem").touch()
    with pytest.raises(ConfigError, match="IDXFLOW_WORKERS_CERT: expected the path .*; found none; set IDXFLOW_WORK"):
        parse("tls://scheduler:8786")
    # Without TLS nobody reads them.
    assert parse("4") == 4
    files = name_certificates(monkeypatch, tmp_path / "good")
    assert parse("tls://scheduler:8786") == Cluster("tls://scheduler:8786", **files)


@pytest.mark.remedies("storage.workers.address:_certificates:3")
def test_files_that_are_no_certificates_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, variable in CERTIFICATES.items():
        (tmp_path / f"{name}.pem").write_text("canary")
        monkeypatch.setenv(variable, str(tmp_path / f"{name}.pem"))
    with pytest.raises(ConfigError, match=r"in PEM format; found .*; correct them") as caught:
        parse("tls://127.0.0.1:9")
    assert "canary" not in str(caught.value)
    name_certificates(monkeypatch, tmp_path / "good")
    assert parse("tls://127.0.0.1:9")


@pytest.mark.remedies("storage.workers.dask_cluster:_security")
def test_a_protected_cluster_needs_certificates_before_anything_is_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="expected certificates for tls://127.0.0.1:9; found none; set IDXFLOW_WO"):
        workers_for("tls://127.0.0.1:9")
    gone = dict.fromkeys(("distributed.comm.tls.ca-file", "distributed.comm.tls.client.cert"), str(tmp_path / "gone"))
    with (
        dask.config.set(gone),
        pytest.raises(ConfigError, match="found those of Dask's configuration, which cannot be used: .*; set IDXFLOW_"),
    ):
        workers_for("tls://127.0.0.1:9")
    name_certificates(monkeypatch, tmp_path / "good")
    # Now there are some, and nobody to show them to.
    workers = workers_for("tls://127.0.0.1:9")
    with pytest.raises(WorkersFailed, match="cannot be reached"):
        list(workers.each(working.square, [Item(0), Item(1)], "squares"))
    workers.close()


@pytest.mark.remedies("storage.workers.address:patience")
def test_the_patience_is_a_number_of_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert patience() == 60
    monkeypatch.setenv(PATIENCE_VARIABLE, "soon")
    with pytest.raises(
        ConfigError, match="IDXFLOW_WORKERS_PATIENCE: expected a number of seconds such as 60; found 's"
    ):
        workers_for("4")
    monkeypatch.setenv(PATIENCE_VARIABLE, "600")
    assert patience() == 600


@pytest.mark.remedies("storage.workers.opening:workers_for")
def test_without_the_extra_a_run_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"found none; install the extra `workers` .*or leave the option out"):
        workers_for("4")
    assert isinstance(workers_for(), Here)


def test_the_option_comes_before_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKERS_VARIABLE, "3")
    assert (workers_for().count, workers_for("2").count) == (3, 2)


@pytest.mark.parametrize(("named", "elsewhere"), [(None, False), ("4", False), ("tls://scheduler:8786", True)])
def test_only_a_cluster_is_elsewhere(monkeypatch: pytest.MonkeyPatch, named: str | None, elsewhere: bool) -> None:
    assert are_elsewhere(named) == elsewhere
    monkeypatch.setenv(WORKERS_VARIABLE, "tcp://127.0.0.1:1")
    assert are_elsewhere(named) == (elsewhere or named is None)


def test_a_connection_that_only_tried_an_address_is_closed_although_the_other_end_says_nothing(tmp_path: Path) -> None:
    made, ended = certificates(tmp_path / "made"), threading.Event()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.cert, made.key)

    def greet_only(listener: socket.socket) -> None:
        with context.wrap_socket(listener.accept()[0], server_side=True):
            ended.wait()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        other_end = threading.Thread(target=greet_only, args=(listener,))
        other_end.start()
        loop = asyncio.new_event_loop()
        try:
            assert loop.run_until_complete(reach.spoken(f"tls://127.0.0.1:{listener.getsockname()[1]}")) == "tls"
        finally:
            loop.close()
            ended.set()
            other_end.join()
    # A connection that is left open would warn here, which is an error.
    gc.collect()
