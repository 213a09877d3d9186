"""The comparison of speed: rounds, ratios, goals, the page, and one real measurement."""

from __future__ import annotations

import gzip
import platform
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import (
    adding,
    commands,
    convolutions,
    cores,
    decoding,
    elsewhere,
    goals,
    job,
    memory,
    reading,
    rows,
    serving,
    spending,
    starting,
    suite,
    training,
    trials,
    tuned,
    validating,
    workers,
)  # fmt: skip
from benchmarks.goals import GOALS, judge
from benchmarks.machine import Machine, describe
from benchmarks.measure import Bench, Comparison, Outcome, Results, Row, Variant, compare, ratio, spread
from benchmarks.page import BEGIN, BUSY, END, QUICK, page, table, with_spending
from benchmarks.subjects import FILES
from storage.formats import idx
from tests.conftest import bars

MODULES = {
    "adding": adding, "commands": commands, "convolutions": convolutions, "cores": cores, "decoding": decoding,
    "elsewhere": elsewhere, "job": job,
    "memory": memory, "reading": reading, "rows": rows, "serving": serving,
    "spending": spending, "starting": starting,
    "training": training, "trials": trials, "validating": validating, "workers": workers,
}  # fmt: skip
ROOT = Path(__file__).resolve().parents[2]
MACHINE = Machine("Some CPU", 2, 24.0, "Linux x86_64", "3.11.2", "openblas", (("numpy", "2.4"),), "2026-01-01", 0.1)
TWO = Comparison("two", "Two ways", "The same work.", "none", (Variant("a", "one"), Variant("b", "other")), "a")
JOB_GOAL = next(goal for goal in GOALS if goal.key == "job")


class Clockwork:
    """Stands in for processes: answers with the next of the given seconds of a variant, and notes who was asked."""

    def __init__(self, **seconds: list[float | Outcome]) -> None:
        self.left = seconds
        self.asked: list[tuple[str, int | None]] = []

    def __call__(self, module: str, variant: str, threads: int | None) -> Outcome:
        self.asked.append((variant, threads))
        value = self.left[variant].pop(0)
        return value if isinstance(value, Outcome) else Outcome({variant: value}, "done")


def results(ours: tuple[float, ...], theirs: tuple[float, ...]) -> Results:
    return Results({"job": (Row("idxflow run", "ours", ours), Row("tutorial script", "theirs", theirs))})


def test_ratios_are_taken_within_rounds():
    """Of the medians it would be 2: a round that is slow for all must not count as slow for one."""
    ratios = ratio((1.0, 4.0, 10.0), (1.0, 16.0, 2.0))
    assert ratios
    assert (ratios.median, ratios.low, ratios.high) == (1.0, 0.25, 5.0)


def test_a_round_in_which_one_failed_has_no_ratio():
    ratios = ratio((1.0, None, 3.0), (2.0, 4.0, None))
    assert ratios
    assert (ratios.low, ratios.high) == (0.5, 0.5)
    assert ratio((None,), (1.0,)) is None
    assert spread(()) is None


def test_rounds_go_through_all_variants_in_turn():
    run = Clockwork(a=[1.0, 3.0], b=[2.0, 4.0])
    rows = compare(TWO, 2, run)
    assert [name for name, _ in run.asked] == ["a", "b", "a", "b"]
    assert [(row.name, row.seconds, row.said) for row in rows] == [("a", (1.0, 3.0), "done"), ("b", (2.0, 4.0), "done")]


def test_the_faster_number_of_threads_is_kept():
    comparison = Comparison("one", "", "", "none", (Variant("a", "", (1, 2)),), "a")
    run = Clockwork(a=[2.0, 1.5, 1.6])
    (row,) = compare(comparison, 1, run)
    assert run.asked == [("a", 1), ("a", 2), ("a", 2)]
    assert (row.threads, row.seconds) == (2, (1.6,))


def test_what_is_not_installed_is_asked_once_and_said():
    run = Clockwork(a=[1.0, 1.0], b=[Outcome(missing="torch")])
    rows = compare(TWO, 2, run)
    assert rows[1].missing == "torch"
    text = page(Results({"two": rows}), [TWO], MACHINE, "c")
    assert "| b | other | not installed: torch |" in text


def test_a_failure_costs_its_round_and_names_no_file_of_this_machine():
    run = Clockwork(a=[1.0, 1.0], b=[Outcome(failed="OSError: /home/someone/x"), 2.0])
    rows = compare(TWO, 2, run)
    assert rows[1].seconds == (None, 2.0)
    text = page(Results({"two": rows}), [TWO], MACHINE, "c")
    assert "failed in some rounds" in text
    assert "/home" not in text


def test_a_goal_that_is_met_is_reported_without_a_reason(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(goals.WHY, "job", "Prefect takes its time.")
    text = page(results((2.1, 2.2), (10.0, 10.0)), [suite.JOB], MACHINE, "python -m benchmarks")
    assert "| whole job / tutorial script | ≤ 0.22 | 0.215 (0.210–0.220) | met | tutorial script |" in text
    assert "Prefect takes its time." not in text


def test_a_goal_that_is_missed_says_by_how_much_and_why(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(goals.WHY, "job", "Prefect takes its time.")
    text = page(results((4.4, 4.4), (10.0, 10.0)), [suite.JOB], MACHINE, "python -m benchmarks")
    assert "| 0.440 (0.440–0.440) | missed by 100% | tutorial script | Prefect takes its time. |" in text


def test_a_goal_is_judged_against_the_fastest_of_its_rivals():
    goal = next(goal for goal in GOALS if goal.key == "jax")
    rows = (Row("idxflow", "", (1.0,)), Row("jax, lax.scan", "", (4.0,)), Row("jax, a call per step", "", (2.0,)))
    judged = judge(goal, Results({"training": rows}))
    assert judged.found
    assert (judged.against, judged.found.median, judged.met) == ("jax, a call per step", 0.5, True)


def test_a_goal_whose_rival_is_missing_is_not_called_met():
    judged = judge(JOB_GOAL, Results({"job": (Row("idxflow run", "", (1.0,)),)}))
    assert (judged.met, judged.found) == (None, None)
    text = page(Results({"job": (Row("idxflow run", "", (1.0,)),)}), [suite.JOB], MACHINE, "c")
    assert "not measured" in text


def test_a_goal_without_a_rival_has_a_unit():
    text = page(Results({"memory": (Row(memory.ROWS[0], "", (0.95,)),)}), [suite.MEMORY], MACHINE, "c")
    assert "| first run of MNIST | ≤ 1 GB | 0.950 GB (0.950–0.950) | met |" in text
    assert "|  | GB | ratio to first run of MNIST |" in text


def test_columns_have_a_line_for_each_part_of_all_commands():
    rows = tuple(Row(spending.row("steps", name), "", (number,)) for number, name in enumerate(spending.COMMANDS))
    text = page(Results({"spending": rows}), [suite.SPENDING], MACHINE, "c")
    assert f"| seconds | {' | '.join(spending.COMMANDS)} |" in text
    assert "| steps | 0.00 | 1.00 | 2.00 | 3.00 |" in text


def test_the_page_says_what_it_was_made_with():
    text = page(results((1.0,), (1.0,)), [suite.JOB], MACHINE, "python -m benchmarks --quick", quick=True)
    for words in ("Some CPU, 2 cores, 24 GiB", "Python 3.11.2", "numpy 2.4", "`python -m benchmarks --quick`", QUICK):
        assert words in text
    assert BUSY not in text


def test_shortened_work_is_not_judged():
    text = page(results((7.0,), (10.0,)), [suite.JOB], MACHINE, "c", quick=True)
    assert "| 0.700 (0.700–0.700) | not judged | tutorial script |" in text
    assert "missed" not in text


def test_columns_without_content_are_left_out():
    assert table(("a", "b", "c"), [("1", "", "x|y")]).splitlines() == ["| a | c |", "| --- | --- |", "| 1 | x&#124;y |"]


def test_the_description_of_the_machine_names_neither_host_nor_folder():
    text = repr(describe())
    assert str(Path.home()) not in text
    assert str(ROOT) not in text
    assert platform.node() not in re.findall(r"[\w.-]+", text)


@pytest.mark.parametrize("comparison", suite.COMPARISONS.values(), ids=lambda c: c.name)
def test_every_variant_of_the_suite_can_be_asked_for(comparison: Comparison):
    assert {variant.name for variant in comparison.variants} <= set(MODULES[comparison.module].VARIANTS)
    measured = [row for variant in comparison.variants for row in variant.measures]
    assert len(measured) == len(set(measured))
    assert comparison.base in measured


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: goal.key)
def test_every_goal_is_about_rows_that_are_measured(goal: goals.Goal):
    variants = suite.COMPARISONS[goal.comparison].variants
    assert {goal.row, *goal.against} <= {row for variant in variants for row in variant.measures}


def test_reasons_belong_to_goals():
    assert set(goals.WHY) <= {goal.key for goal in GOALS}


def test_the_documentation_names_every_comparison():
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert set(suite.COMPARISONS) <= set(re.findall(r"`([a-z]+)`", text))


def test_the_documentation_gets_the_table_of_where_the_seconds_go_and_nothing_else_changes():
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")

    def written(into: str, seconds: float) -> str:
        rows = tuple(Row(name, "", seconds=(seconds,)) for name in spending.rows())
        return with_spending(into, suite.SPENDING, Results({"spending": rows}), MACHINE)

    once = written(text, 1.25)
    assert "| starting Python | 1.25 | 1.25 | 1.25 | 1.25 |" in once
    assert "on 2026-01-01 (Some CPU, 2 cores)" in once
    assert written(written(text, 9.75), 1.25) == once
    start, end = text.index("<!-- make bench"), text.rindex("-->")
    assert once.startswith(text[:start])
    assert once.endswith(text[end:])


def archives(folder: Path) -> Path:
    arrays = bars(60, 20, 10, (28, 28))
    for role, name in FILES.items():
        (folder / name).write_bytes(gzip.compress(idx.encode(arrays[role]), mtime=0))
    return folder


def test_a_variant_is_measured_in_a_process_of_its_own(tmp_path: Path):
    bench = Bench(archives(tmp_path), tmp_path, quick=True)
    outcome = bench.run("decoding", "gzip + frombuffer", 1)
    assert not outcome.failed
    assert 0 < outcome.seconds["gzip + frombuffer"] < 60
    assert outcome.said == "the same arrays"


def test_a_variant_that_ends_badly_is_an_outcome_too(tmp_path: Path):
    outcome = Bench(tmp_path, tmp_path, quick=True).run("decoding", "gzip + frombuffer", 1)
    assert "FileNotFoundError" in outcome.failed


def test_settings_of_the_shell_do_not_reach_what_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    environment = Bench(tmp_path, tmp_path).environment(2)
    assert "PREFECT_API_URL" not in environment
    assert environment["OMP_NUM_THREADS"] == environment["OPENBLAS_NUM_THREADS"] == "2"
    assert "OMP_NUM_THREADS" not in Bench(tmp_path, tmp_path).environment(None)


def test_a_wrong_decoder_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("IDXFLOW_MNIST_DIR", str(archives(tmp_path)))
    images, labels = decoding.both(idx.read)
    with pytest.raises(ValueError, match="other arrays"):
        decoding.arrays("wrong", lambda: (255 - images, labels))


def test_a_network_with_another_loss_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BENCHMARK_WORK", str(tmp_path))
    (tmp_path / "loss-of-conv.json").write_text("0.95")
    assert convolutions.check("close", 0.9505) == "loss of the first ten steps 0.9505"
    for loss in (0.94, 0.96, float("nan")):
        with pytest.raises(ValueError, match=r"other: expected a mean loss of 0\.9500"):
            convolutions.check("other", loss)


def test_the_network_by_hand_descends_its_gradient():
    """The mean loss falls by the rate times the squared gradient, which the first step leaves in the velocity."""
    random = np.random.default_rng(0)
    rows, labels = random.normal(size=(64, 784)).astype(np.float32), random.integers(0, 10, 64)
    network, rate = training.ByHand(), 1e-3
    before, _ = network.step(rows, labels, rate)
    squared = sum(float(((velocity / rate) ** 2).sum()) for velocity in network.velocity)
    first = network.velocity[0].copy()
    after, _ = network.step(rows, labels, 0.0)
    assert np.allclose(network.velocity[0], 0.9 * first)
    assert (before - after) / 64 == pytest.approx(rate * squared, rel=0.05)


def test_what_tuning_is_worth_is_a_table_with_the_gain_of_each_seed():
    before = {"held_out": [0.97, 0.98], "test": [0.95, 0.96]}
    after = {"held_out": [0.98, 0.99], "test": [0.97, 0.955]}
    assert "\n".join(tuned.summary("digits", {"default": before, "tuned": after})).splitlines() == [
        "| data | held out, before | held out, tuned | test, before | test, tuned | gain on test by seed, in points |",
        "| --- | --- | --- | --- | --- | --- |",
        "| digits | 97.50% ± 0.71 | 98.50% ± 0.71 | 95.50% ± 0.71 | 96.25% ± 1.06 | +2.00 −0.50 |",
        "",
        "mean gain, held out: +1.00 points",
        "mean gain, test: +0.75 points",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "training,cooking"], "there is no 'cooking'"),
        (["--rounds", "0"], "whole number above 0"),
    ],
)
def test_wrong_arguments_are_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        command.main(words)
    assert message in capsys.readouterr().err


def test_missing_archives_are_named(tmp_path: Path):
    with pytest.raises(SystemExit, match="train-images-idx3-ubyte.gz"):
        command.main(["--mnist", str(tmp_path)])


def test_help_names_every_comparison(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        command.main(["--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in suite.COMPARISONS)


def test_a_part_is_printed_and_the_committed_page_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    results = tmp_path / "results.md"
    monkeypatch.setattr(command, "PAGE", results)
    monkeypatch.setattr(Bench, "run", lambda self, module, variant, threads: Outcome({variant: 0.25}))
    assert command.main(["--mnist", str(archives(tmp_path)), "--only", "starting", "--rounds", "1"]) == 0
    printed = capsys.readouterr().out
    assert "| `idxflow --help` | ≤ 0.25 s | 0.250 s (0.250–0.250) | met |" in printed
    assert "`python -m benchmarks --only starting --rounds 1`" in printed
    assert str(tmp_path) not in printed
    assert not results.exists()


def test_the_whole_is_written_where_it_is_kept_and_with_out_only_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    results, document, elsewhere = tmp_path / "results.md", tmp_path / "benchmarks.md", tmp_path / "elsewhere.md"
    monkeypatch.setattr(command, "PAGE", results)
    monkeypatch.setattr(command, "DOCUMENT", document)
    monkeypatch.setattr(Bench, "run", lambda self, module, variant, threads: Outcome({variant: 0.25}))
    document.write_text("before\n" + BEGIN + "\n" + END + "\nafter\n")
    asked = ["--mnist", str(archives(tmp_path)), "--rounds", "1"]
    command.main([*asked, "--out", str(elsewhere)])
    assert elsewhere.read_text().startswith("# Results")
    assert not results.exists()
    assert "Median seconds" not in document.read_text()
    command.main(asked)
    assert results.read_text().startswith("# Results")
    assert "Median seconds" in document.read_text()
