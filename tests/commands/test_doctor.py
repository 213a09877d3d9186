"""What `idxflow doctor` advises is done, and it finds that no more.

What it says of a server: tests/service/test_operated.py, tests/service/test_lost_database.py.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import zoneinfo
from pathlib import Path
from unittest.mock import patch

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import diagnosis
from flows.commands.cli import run_command
from flows.diagnosis import Diagnosis
from storage.errors import StoreError
from storage.objects.cache import Cache
from storage.objects.opening import opened as open_store_objects
from storage.store import Store
from tasks.sources import proxies
from tests.support.cloud_stores import Cloud
from tests.support.memory_objects import Operation, nothing
from tests.support.servers import free_port
from tests.support.stores import DATASET, add, retrain

TENSORFLOW = "from unittest.mock import MagicMock\n__version__, config = '2.21', MagicMock()"
"""A library that can be imported and configured."""


def advised(finding: Diagnosis, advice: str) -> None:
    assert finding.verdict != "ok"
    assert advice in finding.remedy, finding


@pytest.mark.remedies("flows.diagnosis:_versions")
def test_a_package_of_another_version(tmp_path: Path):
    (tmp_path / "numpy-1.0.dist-info").mkdir()
    (tmp_path / "numpy-1.0.dist-info" / "METADATA").write_text("Name: numpy\nVersion: 1.0\n")
    with pytest.MonkeyPatch.context() as other:
        other.syspath_prepend(tmp_path)
        finding = diagnosis._versions()
    assert "numpy 1.0 is not " in finding.found
    advised(finding, "make clean && make run")
    # An environment without what does not belong there.
    assert diagnosis._versions().verdict == "ok"


@pytest.mark.remedies("flows.diagnosis:_tensorflow:2")
def test_a_tensorflow_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    module = tmp_path / "tensorflow.py"
    module.write_text("raise ImportError('needs a processor with AVX')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    finding = diagnosis._tensorflow()
    assert "needs a processor with AVX" in finding.found
    advised(finding, "fetching and validating work without it")
    module.write_text(TENSORFLOW)
    assert diagnosis._tensorflow().verdict == "ok"


@pytest.mark.remedies("flows.diagnosis:_tensorflow")
def test_a_machine_on_which_tensorflow_gets_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    module = tmp_path / "tensorflow.py"
    module.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.MonkeyPatch.context() as soon:
        soon.setattr(diagnosis, "_IMPORT_SECONDS", 1)
        advised(diagnosis._tensorflow(), "free memory or CPU time")
    module.write_text(TENSORFLOW)
    assert diagnosis._tensorflow().verdict == "ok"


@pytest.mark.remedies("flows.diagnosis:_disk")
def test_a_disk_that_is_nearly_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    full, other = Store(tmp_path / "full"), Store(tmp_path / "other")
    for store in (full, other):
        store.prepare()
    usage = shutil.disk_usage(tmp_path)
    free_bytes = {full.root: 1_000, other.root: 1 << 40}
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=free_bytes[place]))
    advised(diagnosis._disk(full), "or another store with --store")
    assert diagnosis._disk(other).verdict == "ok"


@pytest.mark.remedies("flows.diagnosis:_object_storage")
def test_object_storage_that_refuses(tmp_path: Path):
    cloud = Cloud(tmp_path)

    def refuse(operation: Operation) -> None:
        raise StoreError("expected to list memory://bucket/store; access denied; correct the permissions there")

    cloud.objects.before = refuse
    finding = diagnosis._object_storage(cloud.machine())
    assert finding.found == "expected to list memory://bucket/store; access denied"
    advised(finding, "correct the permissions there")
    cloud.objects.before = nothing
    finding = diagnosis._object_storage(cloud.machine())
    assert finding.verdict == "ok"
    assert finding.found.startswith("memory://bucket/store can be written, and creates an object only if there is none")


@pytest.mark.remedies("flows.diagnosis:_cache", "flows.diagnosis:_cache:2")
def test_a_cache_that_cannot_be_written_or_is_larger_than_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    closed, open_to_me = Cache(tmp_path / "closed", 5_000), Cache(tmp_path / "open", 5_000)
    for cache in (closed, open_to_me):
        cache.folder.mkdir()
    with pytest.MonkeyPatch.context() as of_another_user:
        of_another_user.setattr(os, "access", lambda path, mode: path != closed.folder)
        advised(diagnosis._cache(closed), "or set IDXFLOW_CACHE to another")
        assert diagnosis._cache(open_to_me).verdict == "ok"
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=1_000))
    advised(diagnosis._cache(open_to_me), "or set IDXFLOW_CACHE_SIZE to less")
    assert diagnosis._cache(Cache(open_to_me.folder, 900)).verdict == "ok"


@pytest.mark.remedies("flows.diagnosis:diagnose_without_store")
def test_a_machine_without_the_library_for_object_storage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(diagnosis, "_tensorflow", lambda: Diagnosis("ok", "TensorFlow", "can be imported"))
    with pytest.MonkeyPatch.context() as without:
        without.setattr(importlib.util, "find_spec", lambda name: None)
        assert run_command(["doctor", "--json", "--store", "s3://bucket/store"]) == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    (finding,) = (finding for finding in findings if finding["verdict"] == "problem")
    assert finding["what"] == "object storage"
    assert "pip install 'idxflow[cloud]'" in finding["remedy"]
    assert open_store_objects("s3://bucket/store").address == "s3://bucket/store"


@pytest.mark.remedies("flows.diagnosis:_whole")
def test_a_store_that_may_not_be_written(store: Store):
    retrain(store, 1)
    with pytest.MonkeyPatch.context() as of_another_user:
        # Root may write everywhere, so that this is what the system says.
        of_another_user.setattr(os, "access", lambda path, mode: path != store.root)
        advised(diagnosis._whole(store), "chown it to the user that runs the worker")
    assert diagnosis._whole(store).verdict == "ok"


@pytest.mark.remedies("flows.diagnosis:_whole:2")
def test_a_store_that_is_damaged(store: Store, capsys: pytest.CaptureFixture):
    retrain(store, 1)
    file = add(store, "train", 1)[1] / "data.bin"
    file.chmod(0o644)
    file.write_bytes(b"")
    finding = diagnosis._whole(store)
    advised(finding, store.command("verify"))
    assert run_command(finding.remedy.split()[1:]) == 1
    # It names what is damaged; a run makes that again.
    assert str(file.parent) in capsys.readouterr().out
    retrain(store, 1)
    assert diagnosis._whole(store).verdict == "ok"


@pytest.mark.remedies("flows.diagnosis:_whole:3")
def test_a_store_with_what_dead_runs_left(store: Store):
    retrain(store, 1)
    (store.dataset(DATASET) / "5-models" / ".abc.partial").mkdir()
    finding = diagnosis._whole(store)
    assert run_command(finding.remedy.split()[1:]) == 0
    assert diagnosis._whole(store).verdict == "ok"


@pytest.mark.remedies("flows.diagnosis:_clock")
def test_a_ledger_that_cannot_be_listed(store: Store, tmp_path: Path):
    retrain(store, 1)
    runs = store.dataset(DATASET) / "ledger" / "runs"
    runs.rename(tmp_path / "backup")
    runs.touch()
    advised(diagnosis._clock(store), "move it away, because a folder belongs there")
    runs.unlink()
    (tmp_path / "backup").rename(runs)
    assert diagnosis._clock(store).verdict == "ok"


@pytest.mark.remedies("flows.diagnosis:_zones")
def test_a_machine_without_time_zones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(diagnosis, "ROOT", tmp_path)
    (tmp_path / "prefect.yaml").write_text("deployments: [{schedules: [{cron: '0 0 * * *', timezone: Europe/Vienna}]}]")
    zoneinfo.ZoneInfo.clear_cache()
    zoneinfo.reset_tzpath(to=[])
    try:
        with pytest.MonkeyPatch.context() as without:
            without.setitem(sys.modules, "tzdata", None)
            advised(diagnosis._zones(), "apt-get install tzdata")
    finally:
        zoneinfo.reset_tzpath()
    assert diagnosis._zones().verdict == "ok"


@pytest.mark.remedies("flows.diagnosis:_proxies")
def test_a_proxy_that_cannot_be_used():
    with patch.dict(os.environ, {"ALL_PROXY": "socks5://127.0.0.1:9"}):
        proxies.keep_direct(*proxies.LOOPBACK)
        advised(diagnosis._proxies(), "or unset it")
    assert diagnosis._proxies().verdict == "ok"


@pytest.mark.remedies("flows.diagnosis:_settings", "flows.diagnosis:_server")
def test_settings_that_name_no_server(store: Store, monkeypatch: pytest.MonkeyPatch):
    with temporary_settings({PREFECT_API_URL: "ftp://127.0.0.1/api"}):
        (finding,) = diagnosis._server(store)
        advised(finding, "correct it there")
    nowhere = f"http://127.0.0.1:{free_port()}/api"
    monkeypatch.setenv("PREFECT_API_URL", nowhere)
    with temporary_settings({PREFECT_API_URL: nowhere}):
        settings, finding = diagnosis._server(store)
        assert settings.verdict == "ok"
        advised(finding, "or remove that setting")
        assert finding.verdict == "problem"
    # Then it keeps nobody from anything.
    monkeypatch.delenv("PREFECT_API_URL")
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        assert "problem" not in [finding.verdict for finding in diagnosis._server(store)]
