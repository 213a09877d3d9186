"""What tests share: a store, small data sets, and the real MNIST where it is at hand."""

from __future__ import annotations

import gc
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before Prefect is imported anywhere: nothing of the developer's own Prefect is read or written, and a test that
# calls a task without `.fn` fails at once instead of starting a server behind everyone's back.
os.environ |= {
    "PREFECT_HOME": tempfile.mkdtemp(prefix="idxflow-tests-"),
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
    "DO_NOT_TRACK": "1",
}
# With all libraries imported there are a million objects, which the default would look through again and again.
gc.set_threshold(50_000, 10, 10)
for name in ("PREFECT_API_URL", "PREFECT_PROFILE", "IDXFLOW_STORE", "IDXFLOW_SOURCE"):
    os.environ.pop(name, None)

import numpy as np
import pytest
from _pytest.assertion import rewrite

from storage.datasets import catalog
from storage.datasets.catalog import Dataset
from storage.store import Store
from tests.support import commands, forked_command, refusals
from tests.support.archives import write_archives

if TYPE_CHECKING:
    from tests.support.object_servers import ObjectServer

MNIST_DIR = "IDXFLOW_MNIST_DIR"
NO_SKIP = "IDXFLOW_NO_SKIP"
PACKAGES = r"on Debian, apt-get install ([\w -]+)"
"""How a test that skips for want of programs says where they are."""
PATIENCE_MS = 240_000
BUCKET = pytest.param("bucket", marks=pytest.mark.cloud)
"""The place in object storage that a developer names."""
SERVER = pytest.StashKey[Any]()
USERS = pytest.StashKey[frozenset[Path]]()
"""The shared server, from its start, and the files whose tests use it."""
BROWSER_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]


def pytest_configure(config: pytest.Config) -> None:
    # In the background of a shell or after nohup they are ignored, by all that is started there, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    config.add_cleanup(partial(shutil.rmtree, os.environ["PREFECT_HOME"], ignore_errors=True))
    if "prefect" in sys.modules:
        # A fork (`pytest_xdist_setupnodes`), which has the settings of the process that it was forked from.
        forked_command.read_settings_again()
    if started := commands.listen():
        config.add_cleanup(started.close)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the files that take longest: one at the end would have all processors wait for it.

    These are the largest, and small ones that are marked `long`.

    Those whose tests wait for servers come between those that compute, so that no processor is idle.
    """
    leave_out_real_buckets(config, items)
    flows = {item.path for item in items if item.get_closest_marker("flow")}
    long = {item.path for item in items if item.get_closest_marker("long")}
    files = sorted({item.path for item in items}, key=lambda path: (path not in long, -path.stat().st_size, path))
    waiting, computing = ([path for path in files if (path in flows) is which] for which in (True, False))
    place = {
        path: (number + half) / len(group)
        for group, half in ((waiting, 0), (computing, 0.5))
        for number, path in enumerate(group)
    }
    items.sort(key=lambda item: place[item.path])
    config.stash[USERS] = frozenset(item.path for item in items if "server" in getattr(item, "fixturenames", ()))


def leave_out_real_buckets(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Select what needs a bucket of the developer's only if it is asked for, with `-m cloud`."""
    if "cloud" not in config.option.markexpr:
        needing = [item for item in items if item.get_closest_marker("cloud")]
        items[:] = [item for item in items if item not in needing]
        config.hook.pytest_deselected(items=needing)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Stop the shared server during the tests of files that do not use it: idle, it takes 3 % of a processor."""
    if server := item.config.stash.get(SERVER, None):
        server.send_signal(signal.SIGCONT if item.path in item.config.stash[USERS] else signal.SIGSTOP)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Three for each processor, because tests wait for servers for almost half of their time.

    With five for two processors, an eighth of the time is unused.
    """
    return len(os.sched_getaffinity(0)) * 3


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: list[Any]) -> None:
    """Have the processes that run tests forked from one that has imported what takes each of them ten seconds."""
    for spec in specs:
        spec.python = commands.worker_of_tests()
    # At the first call, all is imported.
    first = partial(commands.idxflow, env=dict(os.environ), program="nothing")
    threading.Thread(target=first, daemon=True).start()
    compile_tests(config)


def compile_tests(config: pytest.Config) -> None:
    """Compile the test files as pytest does, and keep that: in a new checkout, each process would compile all."""
    if sys.dont_write_bytecode:
        return
    for path in Path(__file__).parent.rglob("test_*.py"):
        compiled = rewrite.get_cache_dir(path) / f"{path.stem}{rewrite.PYC_TAIL}"
        # What does not compile is an error where it is collected.
        with suppress(SyntaxError):
            if not rewrite._read_pyc(path, compiled):
                status, code = rewrite._rewrite_test(path, config)
                compiled.parent.mkdir(exist_ok=True)
                rewrite._write_pyc(config.stash[rewrite.assertstate_key], code, status, compiled)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """With `IDXFLOW_NO_SKIP=1`, as in CI, a skipped test is a failed one."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get(NO_SKIP) == "1":
        report.outcome = "failed"
        report.longrepr = f"skipped, and {NO_SKIP}=1 forbids that: {report.longrepr[2]}"
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say at the end how to have the tests that were skipped for want of a program."""
    reports = terminalreporter.stats.get("skipped", [])
    if line := how_to_skip_none([str(report.longrepr) for report in reports]):
        terminalreporter.section("skipped for want of a program")
        terminalreporter.line(line)


def how_to_skip_none(reasons: list[str]) -> str:
    """Return the command that installs what the reasons for skipping name; nothing where they name no package."""
    packages = {name for reason in reasons for names in re.findall(PACKAGES, reason) for name in names.split()}
    return f"to run these tests too, on Debian: apt-get install {' '.join(sorted(packages))}" if packages else ""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    store.prepare()
    return store


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment that reaches a Prefect server, which many tests share: its start takes longer than their runs."""
    from tests.support.servers import prefect_server

    with prefect_server(tmp_path_factory.mktemp("server")) as (process, environment):
        request.config.stash[SERVER] = process
        yield environment


@pytest.fixture(scope="session")
def object_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], ObjectServer]]:
    """Return a server of object storage by its name (`tests.support.object_servers`), which its first use starts."""
    from tests.support import object_servers as servers

    with ExitStack() as running:

        @cache
        def server(name: str) -> ObjectServer:
            return running.enter_context(getattr(servers, name)(tmp_path_factory.mktemp(name)))

        yield server


@pytest.fixture(scope="module")
def object_storage(object_servers: Callable[[str], ObjectServer]) -> ObjectServer:
    """A place of the module's own in object storage that answers quickly."""
    return object_servers("ministack").fresh()


@pytest.fixture(scope="module", params=["ministack", "ceph", "azurite", BUCKET])
def any_object_storage(request: pytest.FixtureRequest, object_servers: Callable[[str], ObjectServer]) -> ObjectServer:
    """The same on each kind of server that keeps the promises a store needs."""
    return object_servers(request.param).fresh()


@pytest.fixture(scope="module")
def results(server: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of results of flows that are called in this process: they talk to the shared server."""
    from expectations import engine
    from tests.support.servers import used_in_this_process

    # As for runs without Prefect (`tests.support.runs`).
    engine.prepare()
    with used_in_this_process(server, tmp_path_factory.mktemp("results")) as folder:
        yield folder


def browser_program() -> str:
    """Return the path of a browser; the one without windows takes two thirds of the other's processor time."""
    path = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    if not path:
        pytest.skip("needs a browser, chromium: on Debian, apt-get install chromium-headless-shell")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[PatientBrowser]:
    """A headless Chromium that reaches this machine and nothing else."""
    path = browser_program()
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, args=BROWSER_FLAGS, timeout=PATIENCE_MS)
        yield PatientBrowser(browser)
        browser.close()


class PatientBrowser:
    """A browser whose pages wait for what is to come as long as a busy machine may take."""

    def __init__(self, browser: Any) -> None:
        self._browser = browser
        self.browser_type = browser.browser_type

    def new_context(self, **options: Any) -> Any:
        context = self._browser.new_context(**options)
        context.set_default_timeout(PATIENCE_MS)
        return context

    def new_page(self, **options: Any) -> Any:
        return self.new_context(**options).new_page()


@pytest.fixture(autouse=True)
def restored_environment() -> Iterator[None]:
    """Undo what a test, or a command it calls in this process, has set: it would reach all that is started later."""
    before = dict(os.environ)
    yield
    if os.environ != before:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(autouse=True)
def places_of_remedies(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Have a test meet all refusals whose remedies it is marked to show."""
    marks = list(request.node.iter_markers("remedies"))
    if not marks:
        yield
        return
    notes = tmp_path_factory.mktemp("refusals") / "notes"
    with refusals.noting(notes):
        yield
    missed = {place for mark in marks for place in mark.args} - refusals.met(notes)
    assert not missed, f"the test does not come to these refusals: {missed}"


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    """The folder of the four real MNIST archives."""
    folder = os.environ.get(MNIST_DIR)
    if not folder:
        pytest.skip(f"needs the four MNIST archives: set {MNIST_DIR} to their folder")
    return Path(folder)


TinyFactory = Callable[..., Dataset]


@pytest.fixture
def tiny(tmp_path: Path) -> TinyFactory:
    """Make a small learnable data set: `tiny(train=120, test=30, …)` writes four archives and a manifest.

    Each class is a bright bar at its own height, with noise, so that a small model learns it at once. Arrays
    can be replaced: `tiny(arrays={"test-labels": …})`. More manifest lines: `tiny(manifest="[limits]\\n…")`.
    """

    return partial(write_tiny, tmp_path)


def write_tiny(
    folder: Path,
    train: int = 120,
    test: int = 30,
    classes: int = 3,
    shape: tuple[int, int] = (9, 7),
    arrays: dict[str, np.ndarray] | None = None,
    manifest: str = "",
    name: str = "tiny",
) -> Dataset:
    """Write the archives and the manifest of `tiny` into `folder`."""
    source = write_archives(folder / f"{name}-source", bars(train, test, classes, shape) | (arrays or {}))
    path = folder / f"{name}.toml"
    names = ", ".join(f'"bar {n}"' for n in range(classes))
    path.write_text(
        f'name = "{name}"\nclasses = [{names}]\nimage_shape = [{shape[0]}, {shape[1]}]\n'
        f'source = "{source.name}"\n{manifest}',
        encoding="utf-8",
    )
    return catalog.read(path)


def repeated() -> dict[str, np.ndarray]:
    """Return arrays like those of `tiny`, by role; the training image of row 0 occurs again in row 3."""
    arrays = bars(120, 30, 3, (9, 7))
    arrays["train-images"][3] = arrays["train-images"][0]
    return arrays


def bars(train: int, test: int, classes: int, shape: tuple[int, int], seed: int = 0) -> dict[str, np.ndarray]:
    """Return arrays by role: each image a bar whose row is its class (classes <= height), plus noise."""
    random = np.random.default_rng(seed)

    def split(rows: int) -> tuple[np.ndarray, np.ndarray]:
        labels = (np.arange(rows) % classes).astype(np.uint8)
        images = random.integers(0, 60, (rows, *shape), dtype=np.uint8)
        images[:, 0, 0] = 0
        images[np.arange(rows), labels] = random.integers(200, 256, (rows, shape[1]), dtype=np.uint8)
        return images, labels

    train_images, train_labels = split(train)
    test_images, test_labels = split(test)
    return {
        "train-images": train_images,
        "train-labels": train_labels,
        "test-images": test_images,
        "test-labels": test_labels,
    }
