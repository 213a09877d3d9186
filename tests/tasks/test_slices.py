"""Slices of the test split: floors, a paired test for each, and where their rows come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows import pipeline
from flows.run import Job
from storage.datasets import catalog
from storage.datasets.catalog import Dataset
from storage.datasets.manifest import MEASURES, Slices
from storage.errors import ConfigError, DamagedEntry
from storage.formats import arrays, members, split_rows
from storage.ledger import Ledger
from storage.records import Archive, Decision, Evaluation, FolderEntry, SliceScore, TrainedModel
from storage.registry import Registry
from storage.store import Store
from tasks.decide import decide
from tasks.decode import decode
from tasks.fetch import fetch
from tasks.gate import criteria, holm, slices
from tasks.gate.evidence import gather
from tasks.gate.judging import Candidate, Evidence, Incumbent, judge
from tasks.gate.known import check_slices
from tasks.quarantine import quarantine
from tasks.scoring.scores import by_class
from tasks.slicing import columns, cuts, label_columns, measures
from tasks.slicing.columns import Column
from tests.conftest import TinyFactory, bars
from tests.support.listed_archives import write_listed
from tests.support.memory import peak
from tests.support.runs import Unconfirmed, run_without_prefect

ROWS = 240
LABELS = np.arange(ROWS) % 3
GROUP = np.arange(ROWS) // 60 * 10
"""Four values; each has all classes."""
WRITER = np.random.default_rng(2).permutation(ROWS)
COLUMNS = np.stack([LABELS, GROUP, WRITER], axis=1).astype(np.int32)
TRAIN_COLUMNS = np.stack([np.arange(120) % 3, np.zeros(120), np.arange(120)], axis=1).astype(np.int32)
LOW = "[floors]\naccuracy = 0.0\nclass_recall = 0.0\n[gate]\nmax_class_loss = 1\n"
OF_COLUMNS = {"train-labels": TRAIN_COLUMNS, "test-labels": COLUMNS}


class World:
    """A data set whose archives are fetched and decoded, and models that get chosen test rows wrong."""

    def __init__(self, store: Store, dataset: Dataset) -> None:
        self.store, self.dataset = store, dataset
        fetched = {spec.role: fetch.fn(store, dataset, spec, None).record for spec in dataset.archives[::-1]}
        self.labels: Archive = fetched["test-labels"]
        self.train, self.test = (
            decode.fn(store, dataset, name, fetched[f"{name}-images"], fetched[f"{name}-labels"]).record
            for name in ("train", "test")
        )
        self.folder = store.root / "made"
        self.folder.mkdir()

    def set_aside(self) -> World:
        bad = quarantine.fn(self.store, self.dataset, self.train, self.test).record
        self.train, self.test = bad.rest(self.train), bad.rest(self.test)
        return self

    def having(self, **settings: Any) -> World:
        self.dataset = dataclasses.replace(self.dataset, slices=dataclasses.replace(self.dataset.slices, **settings))
        return self

    def score(self, name: str, wrong: Sequence[int] = ()) -> Evaluation:
        """Return the score of a model that is wrong about the rows `wrong`, with its answers on disk."""
        parts, first = [], 0
        for number, part in enumerate(split_rows.parts(self.test)):
            labels = split_rows.labels(part)
            predicted = labels.copy()
            predicted[[row - first for row in wrong if first <= row < first + part.rows]] += 1
            predicted %= len(self.dataset.classes)
            parts.append(self._scored(f"{name}-{number}", labels, predicted))
            first += part.rows
        if not self.test.parts:
            return parts[0]
        folder = self.folder / f"e-{name}"
        folder.mkdir(exist_ok=True)
        members.write(folder, parts)
        # In the same folder of the store as what it lists.
        return dataclasses.replace(
            self._scored("all", split_rows.labels(self.test), split_rows.labels(self.test)),
            entry=FolderEntry(folder),
            parts=len(parts),
        )

    def _scored(self, name: str, labels: np.ndarray, predicted: np.ndarray) -> Evaluation:
        folder, rows, right = self.folder / f"e-{name}", len(labels), int((labels == predicted).sum())
        folder.mkdir(exist_ok=True)
        scores = by_class(self.dataset.classes, labels, predicted)
        known = (FolderEntry(folder), "w", self.test.digest, rows, right, right / rows, 0, 1, 0.1)
        evaluation = Evaluation(*known, *scores, ())
        evaluation.file.unlink(missing_ok=True)
        arrays.write(evaluation.file, {"predicted": predicted, "probability": np.zeros((rows, 3), np.float32)})
        return evaluation

    def candidate(self, name: str, wrong: Sequence[int] = ()) -> Candidate:
        model = TrainedModel(FolderEntry(self.folder / f"m-{name}"), f"weights-{name}", 10, 90, 10, 5, 5, 0.1, 0.95)
        score = self.score(name, wrong)
        return Candidate(model, score, self.train, self.test, f"run-{name}", test_labels=self.labels)

    def incumbent(self, name: str, wrong: Sequence[int]) -> Incumbent | None:
        version = self.registry.champion()
        candidate = self.candidate(name, wrong)
        return Incumbent(version, candidate.model, score=candidate.evaluation) if version else None

    def settle(self, name: str, wrong: Sequence[int], champion: Sequence[int] = ()) -> Decision:
        """Decide about a candidate; the champion, if there is one, is called `1` and is wrong about `champion`."""
        rival, after = self.incumbent("1", champion), self.registry.standing().number
        done = decide.fn(self.registry, self.dataset, self.candidate(name, wrong), rival, after)
        assert done
        return done.record

    def slices(self, wrong: Sequence[int] = (), champion: Sequence[int] | None = None) -> dict[str, SliceScore]:
        """Return the scores on each slice that has rows, by name."""
        rival = None
        if champion is not None:
            self.settle("1", champion)
            rival = self.incumbent("1", champion)
        found = gather(self.dataset, self.candidate("2", wrong), rival).slices
        assert found is not None
        return {score.name: score for score in found}

    @property
    def registry(self) -> Registry:
        return Registry(self.store, self.dataset.name)

    @property
    def ledger(self) -> list[dict[str, Any]]:
        return Ledger(self.store, self.dataset.name).read("decisions")


@pytest.fixture
def world(store: Store, tiny: TinyFactory) -> Callable[..., World]:
    """Make a world: `world(by=("class",), …)` has these settings of `[slices]`."""

    def made(**settings: Any) -> World:
        dataset = tiny(test=ROWS, manifest=f"label_column = 0\n{LOW}", arrays=OF_COLUMNS)
        return World(store, dataset).having(**settings)

    return made


def rule_of(decision: Decision, start: str) -> Any:
    (found,) = (rule for rule in decision.rules if rule.name.startswith(start))
    return found


# --- the correction, and the rules ----------------------------------------------------------------------------------


def test_holm_corrects_each_for_those_that_are_no_smaller():
    np.testing.assert_allclose(holm.corrected(np.array([0.02, 0.01, 0.5])), [0.04, 0.03, 0.5])
    np.testing.assert_allclose(holm.corrected(np.array([0.4, 0.6])), [0.8, 0.8])
    assert holm.corrected(np.empty(0)).tolist() == []


def test_holm_of_a_published_example():
    """Fifteen end points of a trial: Y. Benjamini, Y. Hochberg 1995, J. R. Statist. Soc. B 57, 289-300, section 4.1.

    A control of the rate at which any is falsely rejected, at 0.05, rejects the first three.
    """
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344]
    p += [0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0]
    corrected = holm.corrected(np.array(p[::-1]))[::-1]
    expected = [0.0015, 0.0056, 0.0247, 0.114, 0.2211, 0.278, 0.278, 0.278, 0.3213, *[1.0] * 6]
    np.testing.assert_allclose(corrected, expected)
    assert (corrected <= 0.05).sum() == 3


def score(name: str, right: int, rows: int = 40, floor: float = 0.0, judged: bool = True, **more: Any) -> SliceScore:
    compared = {"champion_right": None, "only_candidate": None, "only_champion": None, "p": None, "corrected": None}
    return SliceScore(name, "class", 0, 0, rows, right, **(compared | more), floor=floor, judged=judged)


@pytest.fixture
def declared(tiny: TinyFactory) -> Callable[..., Dataset]:
    return lambda **settings: dataclasses.replace(tiny(), slices=Slices(by=("class",), **settings))


def test_the_floor_of_the_slice_that_is_furthest_below_it_is_named(declared: Callable[..., Dataset]):
    scores = [
        score("class bar 0", 38, floor=0.9),
        score("class bar 1", 30, floor=0.8),
        score("class bar 2", 31, floor=0.8),
    ]
    dataset = declared(accuracy=0.8)
    (rule,) = slices.floor_rules(dataset, scores)
    assert dataclasses.astuple(rule) == (
        "accuracy on the slice class bar 1",
        "at least 80.00%",
        "75.00% (30 of 40); 1 more slice is below the floor",
        False,
    )
    (rule,) = slices.floor_rules(dataset, scores[:1])
    assert (rule.name, rule.observed, rule.passed) == ("accuracy on the slice class bar 0", "95.00% (38 of 40)", True)


def test_without_floors_there_is_no_rule_about_them(declared: Callable[..., Dataset]):
    assert slices.floor_rules(declared(), [score("class bar 0", 0)]) == ()


def test_a_small_slice_is_not_judged_but_its_own_floor_needs_rows(declared: Callable[..., Dataset]):
    small = score("class bar 0", 0, rows=3, floor=0.9, judged=False)
    assert slices.floor_rules(declared(accuracy=0.9), [small]) == ()
    named = declared(floors={"class bar 0": 0.9, "class bar 1": 0.5})
    (rule,) = slices.floor_rules(named, [small, score("class bar 1", 40, floor=0.5)])
    assert (rule.observed, rule.passed) == ("unknown: it has 3 test rows, and 30 are needed", False)
    (rule,) = slices.floor_rules(named, [small])
    assert rule.observed.endswith("30 are needed; 1 more slice is below the floor")
    (rule,) = slices.floor_rules(declared(floors={"class bar 1": 0.5}), [small])
    assert (rule.name, rule.observed) == ("accuracy on the slice class bar 1", "unknown: it has no test rows")


def test_the_worst_slice_after_correction_decides():
    lost = {"champion_right": 40, "only_candidate": 0, "only_champion": 6, "p": 0.016}
    scores = [
        score("class bar 0", 34, corrected=0.048, **lost),
        score("class bar 1", 40, **(lost | {"only_champion": 0, "p": 1.0}), corrected=1.0),
        score("class bar 2", 2, judged=False),
    ]
    rule = slices.worse_rule(Slices(), scores, "v6")
    assert rule
    assert dataclasses.astuple(rule) == (
        "no slice is worse than champion v6 on the same rows",
        "corrected p above 0.05 on each of 2 slices (McNemar's exact test, one-sided; Holm)",
        "class bar 0: only the candidate 0 right, only the champion 6, corrected p 0.048",
        False,
    )
    rule = slices.worse_rule(Slices(alpha=0.04), scores, "v6")
    assert rule
    assert rule.passed
    assert slices.worse_rule(Slices(), scores[2:], "v6") is None


@pytest.mark.parametrize(("lost", "outcome"), [(range(180, 189), "kept"), (range(0), "promoted")])
def test_better_as_a_whole_and_worse_on_a_slice_keeps_the_champion(
    world: Callable[..., World], lost: range, outcome: str
):
    """The candidate gains the 60 rows of one group, and loses 9 of another, or none."""
    settled, rescued = world(by=("class", "column 1")), range(60)
    settled.settle("1", rescued)
    decision = settled.settle("2", lost, champion=rescued)
    assert decision.outcome == outcome
    rule = rule_of(decision, "no slice is worse than champion v1")
    assert rule.passed == (outcome == "promoted")
    assert rule.limit.startswith("corrected p above 0.05 on each of 7 slices")
    if lost:
        assert rule.observed == "column 1 = 30: only the candidate 0 right, only the champion 9, corrected p 0.014"
        assert decision.sentence.endswith(f"; worse than the champion on a slice, {rule.observed}")
        assert rule_of(decision, "better than champion v1").passed
    by_name = {score.name: score for score in decision.slices}
    group = by_name["column 1 = 30"]
    assert (group.rows, group.right, group.champion_right) == (60, 60 - len(lost), 60)
    assert (group.only_candidate, group.only_champion) == (0, len(lost))
    assert group.p == (pytest.approx(2**-9) if lost else 1)
    assert sum(score.rows for score in decision.slices if score.by == "column 1") == ROWS


@pytest.mark.parametrize("wrong", [range(0), range(60, 72), range(60, 73)])
def test_a_slice_below_its_floor_refuses_also_the_first_model(world: Callable[..., World], wrong: range):
    decision = world(by=("column 1",), accuracy=0.5, floors={"column 1 = 10": 0.8}).settle("1", wrong)
    assert decision.outcome == ("refused" if len(wrong) > 12 else "promoted")
    rule = rule_of(decision, "accuracy on the slice")
    assert rule.passed == (len(wrong) <= 12)
    if not rule.passed:
        assert decision.sentence.startswith(
            "refused: accuracy on the slice column 1 = 10 is 78.33% (47 of 60), expected at least 80.00%; there is no"
        )
    first = decision.slices[0]
    compared = (first.champion_right, first.only_candidate, first.only_champion, first.p, first.corrected)
    assert compared == (None,) * 5


def test_a_floor_of_a_value_that_no_test_row_has_is_not_met(world: Callable[..., World]):
    decision = world(by=("column 1",), floors={"column 1 = 7": 0.1}).settle("1", [])
    assert decision.outcome == "refused"
    assert "accuracy on the slice column 1 = 7 is unknown: it has no test rows" in decision.sentence


def test_a_slice_with_few_rows_is_shown_and_not_judged(world: Callable[..., World]):
    shown = world(by=("class", "column 1"), min_rows=61).settle("1", range(60)).slices
    assert [(score.judged, score.rows) for score in shown] == [(True, 80)] * 3 + [(False, 60)] * 4


# --- where the rows are ---------------------------------------------------------------------------------------------


def test_each_row_is_in_the_slice_of_its_class_measure_and_column(world: Callable[..., World]):
    wrong, lost = [*range(0, ROWS, 7)], [*range(0, ROWS, 5)]
    sliced = world(by=("class", *MEASURES, "column 1", "column 2"), quantiles=3)
    found = sliced.slices(wrong, champion=lost)
    images = np.concatenate([block for block, _ in split_rows.blocks(sliced.test)])
    right, theirs = ~np.isin(np.arange(ROWS), wrong), ~np.isin(np.arange(ROWS), lost)
    numbers = {name: measures.MEASURES[name](images) for name in MEASURES} | {"column 2": WRITER}
    expected = {f"class bar {n}": (n == LABELS) for n in range(3)} | {f"column 1 = {n}": (n == GROUP) for n in GROUP}
    for by, values in numbers.items():
        place = np.searchsorted(np.quantile(values, [1 / 3, 2 / 3]), values)
        expected |= {f"{by} quantile {n + 1} of 3": place == n for n in range(3)}
    assert found.keys() == expected.keys()
    for name, rows in expected.items():
        one = found[name]
        counts = (rows.sum(), right[rows].sum(), theirs[rows].sum())
        assert (one.rows, one.right, one.champion_right) == counts, name
        assert one.only_candidate == (right & ~theirs)[rows].sum()
        assert one.only_champion == (theirs & ~right)[rows].sum()
        if one.by in numbers:
            assert (one.lowest, one.highest) == (numbers[one.by][rows].min(), numbers[one.by][rows].max())
        assert one.p == pytest.approx(criteria.exact_p(one.only_champion, one.only_candidate))


def test_a_column_of_many_values_is_divided_by_quantile():
    values = np.arange(cuts.MOST_VALUES + 1.0) - 5
    few, many = (cuts.by_value("column 1", Column([numbers], np.float64), 2) for numbers in (values[1:], values))
    assert few
    assert many
    assert few.names[:2] == ("column 1 = -4", "column 1 = -3")
    assert many.names == ("column 1 quantile 1 of 2", "column 1 quantile 2 of 2")
    assert few.places(np.array([-4.0, -5.0, 59.0])).tolist() == [0, -1, 63]
    assert many.places(np.array([-5.0, 27.0, 28.0, np.nan])).tolist() == [0, 0, 1, -1]


def test_rows_that_are_set_aside_are_in_no_slice(store: Store, tiny: TinyFactory):
    values = bars(120, ROWS, 3, (9, 7))
    values["test-images"][[3, 100, 239]] = 0
    manifest = f'label_column = 0\n{LOW}[quarantine]\nchecks = ["blank"]\nmax_share = 0.5\n'
    made = World(store, tiny(test=ROWS, manifest=manifest, arrays=values | OF_COLUMNS)).set_aside()
    assert made.test.set_aside == 3
    found = made.having(by=("column 1", "column 2")).slices([59])
    kept = np.delete(GROUP, [3, 100, 239])
    assert {name: one.rows for name, one in found.items() if one.by == "column 1"} == {
        f"column 1 = {group}": (kept == group).sum() for group in np.unique(GROUP)
    }
    # Row 59 of what is left is row 60 of the archive, the first of its group.
    assert (found["column 1 = 0"].right, found["column 1 = 10"].right) == (59, 58)
    read = label_columns.read(made.dataset, made.labels, made.test, 2)
    np.testing.assert_array_equal(read.between(0, read.rows), np.delete(WRITER, [3, 100, 239]))


@pytest.mark.parametrize("aside", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_several_archives_in_parts_have_the_slices_of_one(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool, aside: bool
):
    values = bars(120, ROWS, 3, (9, 7)) | {"train-labels": TRAIN_COLUMNS, "test-labels": COLUMNS}
    values["test-images"][[*range(5), *range(100, 150), 239]] = 0
    tables = f'{LOW}[quarantine]\nchecks = ["blank"]\nmax_share = 0.5\n'
    wrong, champion, found = [*range(0, 180, 7)], [*range(0, 180, 5)], []
    by = ("class", "ink", "column 1", "column 2")
    for number, (sizes, rows) in enumerate((((ROWS,), 1 << 20), ((100, 50, 90), 40))):
        folder, place = tmp_path / str(number), Store(tmp_path / f"store-{number}")
        folder.mkdir()
        place.prepare()
        monkeypatch.setattr(split_rows, "PART_ROWS", rows)
        manifest = write_listed(folder, values, (120,), packed, "label_column = 0\n", sizes).manifest
        manifest.write_text(manifest.read_text(encoding="utf-8") + tables, encoding="utf-8")
        made = World(place, catalog.read(manifest))
        made = (made.set_aside() if aside else made).having(by=by, quantiles=3)
        assert made.test.parts == (0 if not number else 6 if aside else 8)
        found.append(made.slices(wrong, champion))
    assert found[0] == found[1]


# --- again ----------------------------------------------------------------------------------------------------------


def test_what_is_known_of_the_slices_is_not_read_again(world: Callable[..., World]):
    sliced = world(by=("class", "ink", "column 1"), accuracy=0.1)
    first = sliced.settle("1", [4])
    kept = sliced.settle("2", [5], champion=[4])
    assert (first.outcome, kept.outcome) == ("promoted", "kept")
    candidates = [sliced.candidate("1", [4]), sliced.candidate("2", [5])]
    rival, after = sliced.incumbent("1", [4]), sliced.registry.standing().number
    for file in (sliced.test.file, sliced.labels.file, *(candidate.evaluation.file for candidate in candidates)):
        file.unlink()
    check_slices(sliced.registry, sliced.dataset, sliced.labels, sliced.test)
    again = [decide.fn(sliced.registry, sliced.dataset, candidate, rival, after).record for candidate in candidates]
    assert [decision.outcome for decision in again] == ["unchanged", "unchanged"]
    assert again[1].slices == kept.slices
    assert again[1].rules == kept.rules
    itself = again[0].slices
    assert [(one.name, one.right) for one in itself] == [(one.name, one.right) for one in first.slices]
    assert {(one.champion_right == one.right, one.only_champion, one.p, one.corrected) for one in itself} == {
        (True, 0, 1.0, 1.0)
    }
    assert len(sliced.ledger) == 2


def test_changed_slices_judge_again(world: Callable[..., World]):
    sliced, rescued = world(by=("column 1",)), [*range(60)]
    sliced.settle("1", rescued)
    for _ in range(2):
        decision = sliced.settle("2", range(180, 189), champion=rescued)
    assert (decision.outcome, len(sliced.ledger)) == ("unchanged", 2)
    sliced.having(alpha=0.001)
    assert sliced.settle("2", range(180, 189), champion=rescued).outcome == "promoted"


def test_slices_that_are_switched_off_judge_again(world: Callable[..., World]):
    sliced, rescued = world(by=("column 1",)), [*range(60)]
    sliced.settle("1", rescued)
    assert sliced.settle("2", range(180, 189), champion=rescued).outcome == "kept"
    sliced.having(by=())
    decision = sliced.settle("2", range(180, 189), champion=rescued)
    assert (decision.outcome, decision.slices, decision.slicing) == ("promoted", (), {})


def test_the_champion_itself_is_unchanged_under_other_slices(world: Callable[..., World]):
    sliced = world(by=("class",))
    sliced.settle("1", [3])
    sliced.having(floors={"class bar 0": 1.0})
    again = sliced.settle("1", [3], champion=[3])
    assert (again.outcome, again.slices) == ("unchanged", ())
    assert not any(rule.name.startswith("accuracy on the slice") for rule in again.rules)


def test_the_index_of_decisions_has_no_slices(world: Callable[..., World]):
    sliced = world(by=("class", "ink"))
    sliced.settle("1", [3])
    assert not {"slices", "slicing"} & sliced.registry.decisions()[0].keys()


def test_a_run_refuses_a_model_below_a_floor_of_a_slice_and_needs_columns_before_it_trains(
    store: Store, tiny: TinyFactory
):
    labels = {"train-labels": TRAIN_COLUMNS, "test-labels": COLUMNS[:30]}

    def unconfirmed(job: Job, _: pipeline.Caller) -> None:
        pipeline.to_decision(job, Unconfirmed())

    def run(slices: str) -> dict[str, Any]:
        manifest = tiny(manifest=f"label_column = 0\n{LOW}[slices]\n{slices}\n", arrays=labels).manifest
        return run_without_prefect(store, dataset_file=str(manifest), to=unconfirmed)

    missing = run('by = ["column 3"]')
    assert (missing["state"], missing["error"]["exit_code"]) == ("failed", 2)
    assert "train" not in missing["steps"]
    refused = run('by = ["column 1"]\n[slices.floors]\n"column 1 = 7" = 0.5')
    assert (refused["state"], refused["error"]["exit_code"], refused["version"]) == ("refused", 5, None)
    assert "accuracy on the slice column 1 = 7 is unknown: it has no test rows" in refused["sentence"]
    promoted = run('by = ["column 1"]\n[slices.floors]\n"column 1 = 0" = 0.5')
    assert promoted["state"] == "promoted"
    assert promoted["steps"]["train"]["reused"]


def test_the_memory_of_slices_does_not_grow_with_the_test_rows(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(columns, "ROWS", 4000)
    taken = []
    for parts in (3, 9):
        rows = parts * 5000
        values = bars(30, rows, 3, (3, 2)) | {"train-labels": TRAIN_COLUMNS[:30]}
        values["test-labels"] = np.stack([np.arange(rows) % 3, np.arange(rows)], axis=1).astype(np.int32)
        folder, place = tmp_path / str(parts), Store(tmp_path / f"store-{parts}")
        folder.mkdir()
        place.prepare()
        monkeypatch.setattr(split_rows, "PART_ROWS", 5000)
        sliced = World(place, write_listed(folder, values, (30,), True, "label_column = 0\n", (rows,)))
        sliced.having(by=("class", "ink", "column 1"))
        candidate = sliced.candidate("1", range(0, rows, 7))
        assert sliced.test.parts == parts
        gather(sliced.dataset, candidate, None)
        taken.append(peak(partial(gather, sliced.dataset, candidate, None)))
    assert taken[1] - taken[0] < 60_000


# --- what is wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.remedies("tasks.slicing.label_columns:_check_column")
def test_a_column_that_is_not_there_is_said_before_a_training(world: Callable[..., World]):
    sliced = world(by=("column 3",))
    with pytest.raises(ConfigError, match=r"expected column 3 in .*; found 3, counted from 0; correct by") as error:
        check_slices(sliced.registry, sliced.dataset, sliced.labels, sliced.test)
    assert str(sliced.dataset.manifest) in str(error.value)
    with pytest.raises(ConfigError, match="expected column 3"):
        sliced.settle("1", [])
    sliced.having(by=("column 2",))
    check_slices(sliced.registry, sliced.dataset, sliced.labels, sliced.test)
    assert sliced.settle("1", []).outcome == "promoted"


@pytest.mark.remedies("tasks.slicing.label_columns:_differs")
@pytest.mark.parametrize(("rows", "how"), [(239, "1 more"), (241, "1 fewer")])
def test_archives_with_other_rows_than_were_decoded_are_damaged(world: Callable[..., World], rows: int, how: str):
    sliced = world(by=("column 1",))
    whole = sliced.test
    sliced.test = dataclasses.replace(whole, rows=rows)
    with pytest.raises(DamagedEntry, match=f"expected {rows} rows, as decoded; found {how}; remove .*, then run again"):
        label_columns.read(sliced.dataset, sliced.labels, sliced.test, 1)
    assert label_columns.read(sliced.dataset, sliced.labels, whole, 1).rows == ROWS


def test_measures_of_the_manifest_are_those_that_are_measured():
    assert tuple(measures.MEASURES) == MEASURES


def test_no_slices_are_judged_that_nobody_has_counted(world: Callable[..., World]):
    sliced = world(by=("class",), accuracy=1.0)
    judgement = judge(sliced.dataset, sliced.candidate("1", [3]), None, Evidence())
    assert judgement.outcome == "promoted"
