"""Tests of a model's behaviour: what changed images do to its answers, and named images that must be right."""

from __future__ import annotations

import dataclasses
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from storage.datasets import catalog
from storage.datasets.catalog import Dataset
from storage.errors import ConfigError, FormatError
from storage.files import digest_of
from storage.formats import behaviour_images, idx
from storage.records import BehaviourTest, Variant, from_json, to_json
from storage.registry import Registry
from storage.store import Store
from tasks.evaluate import evaluate
from tasks.gate.behaviour import behaviour_rules
from tasks.gate.judging import Candidate, judge
from tasks.model.classifier import Classifier
from tasks.probe import asked, probe, probe_into
from tasks.probing import answers, changes, named_images
from tasks.report.comparison import compare
from tests.conftest import TinyFactory, bars, write_tiny
from tests.support import models
from tests.support.memory import peak
from tests.support.runs import carried_out, run_without_prefect
from tests.support.split_in_parts import in_parts

# Each class of `tiny` is a bright bar in a row of its own: moved down by a row it is the next class.
MET = "[behaviour]\nnoise = { deviation = 2, changed = 0.2 }\nshift = { pixels = 1, changed = 1.0 }\n"
FAILED = "[behaviour]\nshift = { pixels = 1, changed = 0.1 }\nimages = 20\n"
NAMED = '[behaviour]\nmust_be_right = "checked"\n'
BARS = bars(120, 30, 3, (9, 7))


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def checked(folder: Path, name: str = "checked") -> Path:
    """Write a test image of each class into the folder of its class, and return the folder of all."""
    for row in range(3):
        save(folder / name / f"bar {row}" / f"row-{row}.png", BARS["test-images"][row])
    return folder / name


class Trained:
    """A model of `tiny`, with all that a step takes."""

    def __init__(self, store: Store, dataset: Dataset) -> None:
        self.store, self.dataset = store, dataset
        self.model = models.trained(store, dataset, epochs=12).record
        self.test = models.split(store, dataset, "test")
        self.evaluation = evaluate.fn(store, dataset, self.model, self.test).record

    def probe(self, manifest: str = ""):
        if manifest:
            path = self.dataset.manifest
            path.write_text(path.read_text().split("[behaviour]")[0] + manifest)
            self.dataset = catalog.read(path)
        return probe.fn(self.store, self.dataset, self.model, self.test, self.evaluation)


@pytest.fixture(scope="module")
def module_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("probe") / "store")
    store.prepare()
    return store


@pytest.fixture(scope="module")
def trained(module_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(module_store, write_tiny(tmp_path_factory.mktemp("tiny")))


def test_the_answers_to_changed_images_are_counted(trained: Trained):
    done = trained.probe(MET)
    shift, noise = done.record.tests
    assert done.record.images == 30
    assert (shift.name, shift.amount, shift.limit) == ("shift", 1, 1.0)
    assert [variant.name for variant in shift.variants] == ["left", "right", "up", "down"]
    by_name = {variant.name: variant for variant in shift.variants}
    classifier = Classifier(trained.model)
    images = BARS["test-images"]
    before = classifier.logits(images).argmax(axis=1)
    down = changes.shifted(images, 1, 0, background=0)
    # Of the darkest and the brightest pixel of `tiny`, 0 is nearer to what is along the edge.
    differs = classifier.logits(down).argmax(axis=1) != before
    assert by_name["down"].changed == differs.sum() >= 20
    assert by_name["left"].changed == by_name["right"].changed == 0
    assert shift.worst.share == shift.worst.changed / 30
    assert shift.worst.low < shift.worst.share < shift.worst.high or shift.worst.share == 1
    assert sum(one.answers for one in shift.classes) == 4 * 30
    assert shift.examples[0].variant == shift.worst.name
    assert (noise.passed, noise.worst.changed) == (True, 0)
    assert f"of 30 answers, shift changes {shift.worst.share:.2%}, noise 0.00%" in done.step.summary
    shown = behaviour_images.read(done.record)
    assert len(shown.before) == len(shown.after) == len(shift.examples) == answers.MOST_EXAMPLES
    assert np.array_equal(shown.before[0], images[shift.examples[0].row])
    assert shown.named.shape == (0, 9, 7)
    assert from_json(type(done.record), to_json(done.record), done.record.entry) == done.record


def test_it_is_made_again_if_what_is_asked_changes_and_only_then(trained: Trained):
    first, again = trained.probe(MET), trained.probe()
    assert again.step.reused
    assert again.record == first.record
    other = trained.probe(MET.replace("0.2", "0.3"))
    assert not other.step.reused
    assert other.record.asked != first.record.asked
    fewer = trained.probe(FAILED)
    assert (fewer.record.images, fewer.record.tests[0].limit) == (20, 0.1)


def test_named_images_are_read_like_those_that_are_predicted(trained: Trained):
    folder = checked(trained.dataset.manifest.parent)
    (folder / "bar 0" / ".hidden").write_text("no image")
    first = trained.probe(NAMED)
    assert [(image.file, image.label, image.predicted) for image in first.record.named] == [
        (f"checked/bar {row}/row-{row}.png", row, row) for row in range(3)
    ]
    assert all(1 / 3 < image.probability <= 1 for image in first.record.named)
    assert first.step.summary == "3 of 3 named images right"
    assert trained.probe().step.reused
    # In colour, and of another class than its folder says.
    save(folder / "bar 0" / "odd.png", np.stack([BARS["test-images"][1]] * 3, axis=2))
    second = trained.probe()
    assert not second.step.reused
    (wrong,) = second.record.wrong
    assert (wrong.file, wrong.label, wrong.predicted) == ("checked/bar 0/odd.png", 0, 1)
    assert np.array_equal(behaviour_images.read(second.record).named, BARS["test-images"][1:2])
    (rule,) = behaviour_rules(second.record, trained.dataset.classes)
    assert (rule.name, rule.limit, rule.observed, rule.passed) == (
        "number of named images that are right",
        "all 4",
        "3 (checked/bar 0/odd.png: bar 1 instead of bar 0)",
        False,
    )
    (folder / "bar 0" / "odd.png").unlink()
    assert trained.probe().record == first.record


@pytest.mark.remedies("tasks.probe:probe_into")
def test_a_named_image_that_changes_meanwhile_is_not_stored_as_the_earlier_one(trained: Trained, tmp_path: Path):
    folder = checked(trained.dataset.manifest.parent)
    trained.probe(NAMED)
    before = digest_of(asked(trained.dataset))
    save(folder / "bar 0" / "row-0.png", BARS["test-images"][3])
    with pytest.raises(ConfigError, match="found others than at its start; run again"):
        probe_into(tmp_path, trained.dataset, trained.model, trained.test, before)
    assert trained.probe().record.asked == digest_of(asked(trained.dataset)) != before


def test_the_limit_holds_for_each_way_of_changing(trained: Trained):
    half = Variant("left", 5, 0.05, 0.02, 0.11)
    test = BehaviourTest("shift", 1, 0.05, (half, dataclasses.replace(half, name="up")), (), ())
    record = dataclasses.replace(trained.probe(MET).record, tests=(test,), images=100)
    (rule,) = behaviour_rules(record, ())
    assert (rule.name, rule.limit, rule.passed) == (
        "share of answers changed by a shift of 1 pixel",
        "at most 5.00%",
        True,
    )
    assert rule.observed == "5.00% (5 of 100, left)"
    worse = dataclasses.replace(test, variants=(half, Variant("up", 6, 0.06, 0.03, 0.12)))
    (rule,) = behaviour_rules(dataclasses.replace(record, tests=(worse,)), ())
    assert (rule.observed, rule.passed) == ("6.00% (6 of 100, up)", False)
    assert behaviour_rules(None, ()) == ()


def test_a_model_that_fails_is_refused_with_or_without_a_champion(trained: Trained):
    record = trained.probe(FAILED).record
    candidate = Candidate(trained.model, trained.evaluation, trained.test, trained.test, behaviour=record)
    judgement = judge(trained.dataset, candidate, None)
    assert judgement.outcome == "refused"
    assert judgement.reason.startswith("share of answers changed by a shift of 1 pixel is ")
    assert judgement.reason.endswith(", expected at most 10.00%")
    assert judge(trained.dataset, dataclasses.replace(candidate, behaviour=None), None).outcome == "promoted"


def test_a_split_in_parts_gives_the_same(store: Store, trained: Trained):
    whole = trained.probe(MET).record
    labels = BARS["test-labels"]
    parts = in_parts(store, trained.dataset, "test", BARS["test-images"], labels, [11, 4, 15])
    evaluation = evaluate.fn(store, trained.dataset, trained.model, parts).record
    done = probe.fn(store, trained.dataset, trained.model, parts, evaluation)
    assert (done.record.tests, done.record.images) == (whole.tests, whole.images)
    assert np.array_equal(behaviour_images.read(done.record).after, behaviour_images.read(whole).after)


def test_the_rows_are_spaced_over_the_split():
    assert answers.spaced(10, 500) == list(range(10))
    numbers = answers.spaced(10_000, 500)
    assert (len(numbers), numbers[0], numbers[-1]) == (500, 0, 9_999)
    assert set(np.diff(numbers)) <= {20, 21}


@pytest.mark.remedies(
    "tasks.probing.named_images:_unusable",
    "tasks.probing.named_images:_files",
    "tasks.probing.named_images:_folders",
    "tasks.probing.named_images:_folders:2",
    "tasks.probing.named_images:_only_image",
    "tasks.probing.named_images:_files:2",
)
def test_named_images_that_cannot_be_used_are_refused_in_one_sentence(
    tiny: TinyFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    dataset, folder = tiny(manifest=NAMED), tmp_path / "checked"

    def refused(kind: type[Exception]) -> str:
        with pytest.raises(kind) as caught:
            named_images.check(dataset)
        return str(caught.value)

    (tmp_path / "chekced").mkdir()
    assert f"found nothing at {folder} (did you mean chekced?); correct the path, or the folder" in refused(ConfigError)
    folder.mkdir()
    assert refused(ConfigError).endswith(f"found none; put some there, such as in {folder / 'bar 0'}")
    save(folder / "row-0.png", BARS["test-images"][0])
    assert refused(ConfigError).endswith("found a file beside these; move it into one")
    (folder / "Bar 0").mkdir()
    (folder / "row-0.png").rename(folder / "Bar 0" / "row-0.png")
    assert refused(ConfigError).endswith("found 'Bar 0' (did you mean bar 0?); rename it")
    (folder / "Bar 0").rename(folder / "bar 0")
    np.save(folder / "bar 0" / "two.npy", BARS["test-images"][:2])
    assert refused(FormatError).endswith("found more; save each in a file of its own")
    (folder / "bar 0" / "two.npy").unlink()
    save(folder / "bar 1" / "row-1.png", np.stack([BARS["test-images"][1], *[BARS["test-images"][0]] * 2], axis=2))
    monkeypatch.setattr(named_images, "MOST_FILES", 1)
    assert refused(ConfigError).endswith("found 2 files; keep those that matter most")
    monkeypatch.undo()
    named_images.check(dataset)
    assert "is a colour image; its grey values are used" in caplog.text


def test_what_is_no_image_of_the_data_set_is_refused(tiny: TinyFactory, tmp_path: Path):
    dataset, odd = tiny(manifest=NAMED), tmp_path / "checked" / "bar 1" / "odd.png"
    save(odd, np.zeros((9, 8), np.uint8))
    with pytest.raises(FormatError, match=r"of 9×7 pixels .*; found 9×8; an image program scales them"):
        named_images.check(dataset)
    odd.write_bytes(b"\x89PNG and no more")
    with pytest.raises(FormatError, match=r"odd\.png: expected an undamaged PNG"):
        named_images.check(dataset)
    odd.unlink()
    odd.mkdir()
    with pytest.raises(ConfigError, match=r"odd\.png; found a folder; correct the path"):
        named_images.check(dataset)


def test_folders_of_classes_are_found_however_their_names_are_spelled(tiny: TinyFactory, tmp_path: Path):
    manifest = tiny(manifest=NAMED).manifest
    manifest.write_text(manifest.read_text().replace('"bar 0", "bar 1"', '".notdef", "caf\u00e9"'), encoding="utf-8")
    for place in (".notdef/a", "cafe\u0301/b", "bar 2/c", "bar 2/.hidden", ".git/d"):
        save(tmp_path / "checked" / f"{place}.png", BARS["test-images"][0])
    found = named_images.read(catalog.read(manifest))
    assert [(image.file[-5:], image.label) for image in found] == [("a.png", 0), ("b.png", 1), ("c.png", 2)]


def test_what_a_record_calls_an_image_can_be_printed(tiny: TinyFactory, tmp_path: Path):
    dataset, picture = tiny(manifest=NAMED), tmp_path / "checked" / "bar 0" / "one.png"
    save(picture, BARS["test-images"][0])
    os.rename(picture, os.fsencode(picture.parent) + b"/a\n\x1b[31m\xff\xe2\x80\xae.png")
    (found,) = named_images.read(dataset)
    assert found.file == r"checked/bar 0/a\n\x1b[31m\udcff\u202e.png"


def test_a_file_of_many_images_is_not_read_to_its_end(tiny: TinyFactory, tmp_path: Path):
    dataset, many = tiny(manifest=NAMED), tmp_path / "checked" / "bar 0" / "many"
    many.parent.mkdir(parents=True)
    many.write_bytes(idx.encode(np.repeat(BARS["test-images"][:1], 100_000, axis=0)))

    def refused() -> None:
        with pytest.raises(FormatError, match="found more"):
            named_images.check(dataset)

    assert peak(refused) < many.stat().st_size / 2


def test_a_run_refuses_and_what_is_asked_now_counts_for_a_model_that_was_kept(
    store: Store, tiny: TinyFactory, tmp_path: Path
):
    unpublished = partial(carried_out, published=False)
    manifest = tiny(manifest=FAILED).manifest
    first = run_without_prefect(store, dataset_file=str(manifest))
    assert (first["state"], first["version"], first["champion"], first["error"]["exit_code"]) == (
        *("refused", None, None),
        5,
    )
    assert list(first["steps"])[-3:] == ["probe", "decide", "publish"]
    usual = manifest.read_text().split("[behaviour]")[0]
    manifest.write_text(usual)
    assert "probe" not in {step.step for step in unpublished(store, manifest, epochs=4).steps}
    kept = unpublished(store, manifest, epochs=4, seed=5)
    assert (kept.decision.outcome, kept.decision.asked) == ("kept", "")
    manifest.write_text(usual + MET)
    again = unpublished(store, manifest, epochs=4, seed=5)
    assert (again.decision.outcome, bool(again.decision.asked)) == ("kept", True)
    assert len(again.decision.rules) == len(kept.decision.rules) + 2
    assert unpublished(store, manifest, epochs=4, seed=5).decision.outcome == "unchanged"
    manifest.write_text(usual + FAILED)
    failed = unpublished(store, manifest, epochs=4, seed=5)
    assert (failed.decision.outcome, failed.decision.champion) == ("refused", 1)
    assert compare(store, again, kept)["behaviour"] is None
    difference = compare(store, again, failed)
    shares = [record.behaviour.tests[0].worst.share for record in (again, failed)]
    name = "answers changed by a shift of 1 pixel"
    expected = [{"name": name, "a": shares[0], "b": shares[1]}] if shares[0] != shares[1] else []
    assert difference["behaviour"] == expected
    changed = {(each["part"], each["name"]) for each in difference["differences"]}
    assert changed == {("contract", f"behaviour {name}") for name in ("images", "noise", "shift")}
    manifest.write_text(usual)
    assert unpublished(store, manifest, epochs=4, seed=5).decision.outcome == "kept"
    assert Registry(store, "tiny").champion().number == 1


def test_the_champion_stays_and_the_report_says_how_it_behaves(store: Store, tiny: TinyFactory):
    manifest = tiny().manifest
    usual = manifest.read_text()
    assert run_without_prefect(store, dataset_file=str(manifest))["state"] == "promoted"
    manifest.write_text(usual + FAILED)
    asked, again = (run_without_prefect(store, dataset_file=str(manifest)) for _ in range(2))
    assert (asked["state"], again["state"]) == ("unchanged", "unchanged")
    assert ("publish" in asked["steps"], "publish" in again["steps"]) == (True, False)
    assert '<section id="behaviour"' in Path(asked["report"]).read_text()
    assert again["report"] == asked["report"]


def test_what_is_wrong_with_the_folder_is_said_before_anything_is_fetched(
    store: Store, tiny: TinyFactory, tmp_path: Path
):
    manifest = tiny(manifest=NAMED).manifest
    missing = run_without_prefect(store, dataset_file=str(manifest), epochs=5)
    assert (missing["error"]["exit_code"], list(missing["steps"])) == (2, ["publish"])
    checked(tmp_path)
    (tmp_path / "checked" / "bar 0" / "row-0.png").write_bytes(b"no picture")
    unreadable = run_without_prefect(store, dataset_file=str(manifest), epochs=5)
    assert (unreadable["error"]["exit_code"], list(unreadable["steps"])) == (3, ["publish"])
