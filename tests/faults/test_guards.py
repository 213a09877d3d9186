"""Every guard has a test that notices when it is gone: each is switched off in a copy of the source, in turn."""

from __future__ import annotations

import compileall
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from py_compile import PycInvalidationMode

import pytest

from tests.support.commands import idxflow

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("storage", "expectations", "tasks", "flows", "tests", "benchmarks", "pyproject.toml", "prefect.yaml", "docs")


@dataclass(frozen=True)
class Guard:
    """A line that keeps a promise, the same line without it, and the tests that must notice."""

    file: str
    line: str
    without: str
    tests: tuple[str, ...]


GUARDS = {
    "digest of an entry's file": Guard(
        "storage/store.py",
        "if digest != sha256:",
        "if False:",
        ("tests/storage/test_verify.py::test_damage_is_named[a flipped bit]",),
    ),
    "size of an entry's file": Guard(
        "storage/store.py",
        "if actual != size:",
        "if False:",
        ("tests/storage/test_verify.py::test_damage_is_named[a cut file]",),
    ),
    "seal of a JSON file": Guard(
        "storage/files.py",
        "if sealed(values) != data:",
        "if False:",
        ("tests/storage/test_verify.py::test_damage_is_named[an edited version]",),
    ),
    "place of an entry": Guard(
        "storage/store.py",
        "if actual != expected:",
        "if False:",
        ("tests/storage/test_verify.py::test_damage_is_named[an entry in another's place]",),
    ),
    "file that is not listed": Guard(
        "storage/store.py",
        "    if others:",
        "    if False:",
        ("tests/storage/test_verify.py::test_damage_is_named[a file too many]",),
    ),
    "links out of the store": Guard(
        "storage/store.py",
        "                link = path.is_symlink()",
        "                link = False",
        ("tests/storage/test_store.py::test_a_link_in_place_of_a_part_of_the_store_is_refused",),
    ),
    "put if absent": Guard(
        "storage/files.py",
        "os.link(temporary, path)",
        "os.replace(temporary, path)",
        ("tests/storage/test_registry.py::test_what_is_there_is_never_replaced",),
    ),
    "lock of a step": Guard(
        "storage/files.py",
        "fcntl.flock(descriptor, mode | fcntl.LOCK_NB)",
        "pass",
        ("tests/storage/test_registry.py::test_deciding_waits_and_says_so",),
    ),
    "retention stays away from what is in use": Guard(
        "storage/upkeep.py",
        "with store_errors(lock), locked(lock, _give_up):",
        "with store_errors(lock), locked(lock.with_suffix('.other'), _give_up):",
        ("tests/storage/test_retention.py::test_nothing_is_removed_while_a_run_uses_the_data_set",),
    ),
    "retention keeps the champion's line": Guard(
        "storage/retention.py",
        "numbers = {*line(registry.outline()), *([champion.number] if champion else [])}",
        "numbers = set()",
        ("tests/storage/test_retention.py::test_the_champion_its_line_and_the_newest_stay",),
    ),
    "fsync of a file before it gets its name": Guard(
        "storage/files.py",
        "            os.fsync(stream.fileno())\n",
        "",
        ("tests/faults/test_power_loss.py",),
    ),
    "fsync of a folder": Guard(
        "storage/files.py",
        "        os.fsync(descriptor)\n",
        "        pass\n",
        ("tests/faults/test_power_loss.py",),
    ),
    "a decision counts only if nobody has decided meanwhile": Guard(
        "storage/registry.py",
        "if newest > after or not self.ledger.decide(after + 1, run, decision):",
        "if not self.ledger.decide(newest + 1, run, decision):",
        ("tests/storage/test_decisions.py::test_a_decision_judged_after_an_older_one_is_overtaken",),
    ),
    "the number of a decision is taken once": Guard(
        "storage/ledger.py",
        "return sealed.create(self._store.objects, self.decision_key(number), {**values, **own})",
        "return sealed.write(self._store.objects, self.decision_key(number), {**values, **own}) is None",
        ("tests/storage/test_decisions.py::test_a_process_that_is_overtaken_at_any_moment_decides_after_the_other",),
    ),
    "versions are retired before their models are removed": Guard(
        "storage/retention.py",
        "            registry.retire(plan.retired, standing)\n",
        "            pass\n",
        ("tests/storage/test_decisions.py::test_a_rollback_to_a_version_that_is_retired_meanwhile_is_refused",),
    ),
    "CRC of gzip": Guard(
        "storage/formats/idx.py",
        "isal_zlib.decompressobj(wbits=31)",
        "_NoCrc(stream)",
        ("tests/faults/test_bad_archives.py::test_the_reader_refuses_it_in_one_sentence",),
    ),
    "end of the gzip stream": Guard(
        "storage/formats/idx.py",
        "            if self._is_cut():\n                expected",
        "            if self._is_cut():\n                return\n                expected",
        ("tests/faults/test_bad_archives.py::test_the_reader_refuses_it_in_one_sentence",),
    ),
    "nothing after the gzip stream": Guard(
        "storage/formats/idx.py",
        "        if trailing:",
        "        if False:",
        ("tests/faults/test_bad_archives.py::test_the_reader_refuses_it_in_one_sentence",),
    ),
    "no more data than declared": Guard(
        "storage/formats/idx.py",
        "            if self._step(self._inflate, 1):\n",
        "            if self._step(self._inflate, 1) and False:\n",
        ("tests/faults/test_bad_archives.py::test_the_reader_refuses_it_in_one_sentence",),
    ),
    "checksums of Parquet pages": Guard(
        "storage/formats/parquet.py",
        "page_checksum_verification=True",
        "page_checksum_verification=False",
        ("tests/storage/test_parquet.py::test_no_flipped_bit_is_read_in_silence",),
    ),
    "digest of an archive": Guard(
        "tasks/sources/origins.py",
        "    if received.sha256 == spec.sha256:\n        return",
        "    return",
        ("tests/fetch/test_folders.py::test_a_folder_with_another_file_is_refused",),
    ),
    "most bytes of a download": Guard(
        "tasks/sources/partial_file.py",
        "                if size > limit:",
        "                if False:",
        ("tests/fetch/test_patience.py::test_a_body_without_end_is_left_at_most_64_kib_after_its_limit",),
    ),
    "never from https to http": Guard(
        "tasks/sources/download.py",
        'if before.scheme == "https" and after.scheme == "http":',
        "if False:",
        ("tests/fetch/test_tls.py::test_a_redirect_from_https_to_http_is_not_followed",),
    ),
    "link-local addresses": Guard(
        "tasks/sources/download.py",
        'if self._reach(request.url.host) == "forbidden":',
        "if False:",
        ("tests/fetch/test_redirects.py::test_a_forbidden_address_is_never_asked_by_whomever_it_is_given",),
    ),
    "redaction of addresses": Guard(
        "tasks/sources/download.py",
        'return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))',
        "return url",
        ("tests/fetch/test_given.py::test_redacted",),
    ),
    "the suite is not empty": Guard(
        "expectations/run_suites.py",
        "    if not suite.expectations:",
        "    if False:",
        ("tests/expectations/test_run_suites.py::test_an_empty_suite_never_passes",),
    ),
    "all expectations were evaluated": Guard(
        "expectations/run_suites.py",
        "    if sorted(results) != list(range(len(suite.expectations))):",
        "    if False:",
        ("tests/expectations/test_run_suites.py::test_an_expectation_that_is_lost_on_the_way_is_an_error",),
    ),
    "critical checks": Guard(
        "tasks/validate.py",
        'passed=all(c.passed or c.severity != "critical" for c in checks)',
        "passed=True",
        ("tests/faults/test_bad_data.py",),
    ),
    "floors": Guard(
        "tasks/gate/judging.py",
        "broken = [rule for rule in rules if not rule.passed]",
        "broken: list[Rule] = []",
        ("tests/tasks/test_decide.py::test_floors_refuse",),
    ),
    "gate": Guard(
        "tasks/gate/judging.py",
        'outcome: Verdict = "promoted" if all(rule.passed for rule in gate_rules) else "kept"',
        'outcome: Verdict = "promoted"',
        ("tests/tasks/test_decide.py::test_a_worse_model_never_replaces_a_better_one",),
    ),
    "confirmation by a fresh process": Guard(
        "tasks/confirm.py",
        "    if not difference <= TOLERANCE:",
        "    if False:",
        ("tests/tasks/test_confirm.py::test_other_predictions_than_the_trainer_s_are_refused",),
    ),
    "escaping in the report": Guard(
        "tasks/report/rendering.py",
        "        autoescape=True,",
        "        autoescape=False,",
        ("tests/faults/test_hostile_report.py::test_a_manifest_of_markup_gives_a_report_of_texts",),
    ),
}

# An inflater that knows neither CRC nor length: what a careless reader would use.
NO_CRC = """

import zlib


class _NoCrc:
    def __init__(self, stream):
        self._inflate, self._tail = zlib.decompressobj(wbits=-15), b""
        self._skip, self.eof, self.unused_data, self.unconsumed_tail = 10, False, b"", b""

    def decompress(self, data, limit):
        skipped, self._skip = data[: self._skip], max(0, self._skip - len(data))
        out = self._inflate.decompress(data[len(skipped) :], limit)
        self.unconsumed_tail = self._inflate.unconsumed_tail
        self._tail += self._inflate.unused_data
        self.eof = self._inflate.eof and len(self._inflate.unused_data) >= 8
        self.unused_data = self._inflate.unused_data[8:]
        return out
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy")
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
        else:
            shutil.copy(source, folder / part)
    # Told by its content: a line of the same length, changed in the same second, would else be taken for the old one.
    compileall.compile_dir(folder, quiet=1, invalidation_mode=PycInvalidationMode.CHECKED_HASH)
    return folder


class Pytest:
    """Runs tests in the copy, one call at a time, from a process that has imported what is not ours."""

    def __init__(self, folder: Path, temporary: Path) -> None:
        self._folder, self._temporary = folder, temporary
        self.output = ""

    def run(self, *tests: str) -> int:
        """Return the exit code."""
        options = ["-x", "-q", "--numprocesses=0", "-p", "no:cacheprovider", "--no-header", "--tb=line"]
        # In the usual place, pytest would close to other users what the tests beside it have opened for them.
        options.append(f"--basetemp={self._temporary}")
        environment = {key: value for key, value in os.environ.items() if key != "PYTEST_XDIST_WORKER"}
        ended = idxflow(str(self._folder), *options, *tests, env=environment, program="tests of a copy")
        self.output = ended.stdout + ended.stderr
        return ended.returncode


@pytest.fixture(scope="module")
def in_the_copy(copy: Path) -> Iterator[Pytest]:
    # A short path: that of a socket has 107 characters at most (unix(7)).
    with tempfile.TemporaryDirectory() as temporary:
        yield Pytest(copy, Path(temporary, "pytest"))


@pytest.mark.parametrize("name", GUARDS)
def test_a_guard_that_is_gone_is_noticed(copy: Path, in_the_copy: Pytest, name: str):
    guard = GUARDS[name]
    path = copy / guard.file
    source = path.read_text(encoding="utf-8")
    assert source.count(guard.line) == 1, f"{guard.file} has the guard {source.count(guard.line)} times"
    changed = source.replace(guard.line, guard.without)
    try:
        path.write_text(changed + (NO_CRC if "_NoCrc" in guard.without else ""), encoding="utf-8")
        code = in_the_copy.run(*guard.tests)
    finally:
        path.write_text(source, encoding="utf-8")
    # 1: tests failed; anything else, such as 4 for a test that is not there, proves nothing.
    assert code == 1, in_the_copy.output[-2000:]


def test_with_all_guards_the_copy_passes(in_the_copy: Pytest):
    """What fails in the copy fails because of the guard; the other tests are run elsewhere anyway."""
    quick = (
        "tests/storage/test_verify.py",
        "tests/storage/test_store.py",
        "tests/storage/test_registry.py",
        "tests/expectations/test_run_suites.py",
    )
    code = in_the_copy.run(*sorted({t for guard in GUARDS.values() for t in guard.tests if t.startswith(quick)}))
    assert code == 0, in_the_copy.output[-2000:]
