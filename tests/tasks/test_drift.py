"""The tests of drift: what they find, what they leave to chance, and how they are judged together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from storage.datasets.manifest import Drift
from tasks.drifting import differing, measuring, telling
from tasks.drifting.compare import Answers, Reference, Verdict, compare, reference
from tasks.drifting.sample import Sample, draw
from tests.conftest import bars

CLASSES = 3


def blocks(images: np.ndarray, labels: np.ndarray | None, size: int) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    for start in range(0, len(images), size):
        yield images[start : start + size], None if labels is None else labels[start : start + size]


def sample(images: np.ndarray, labels: np.ndarray | None = None) -> Sample:
    return draw([(images, labels)])


def drawn(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    arrays = bars(rows, 1, CLASSES, (9, 7), seed)
    return arrays["train-images"], arrays["train-labels"].astype(np.int64)


def answers(labels: np.ndarray, seed: int) -> Answers:
    return Answers(labels, np.random.default_rng(seed).beta(9, 1, len(labels)))


@pytest.fixture(scope="module")
def old() -> Reference:
    _, others = drawn(600, 5)
    return reference(sample(*drawn(2000, 1)), CLASSES, answers(others, 6))


def beyond(old: Reference, images: np.ndarray, labels: np.ndarray | None = None) -> set[str]:
    comparison = compare(old, sample(images, labels), None, Drift())
    assert comparison.is_drifted == any(verdict.is_beyond for verdict in comparison.verdicts)
    return {verdict.name for verdict in comparison.verdicts if verdict.is_beyond}


def test_a_sample_has_everything_if_there_is_room():
    images, labels = drawn(500, 2)
    found = draw(blocks(images, labels, 64))
    np.testing.assert_array_equal(found.images, images)
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_array_equal(found.rows, np.arange(500))
    assert found.total == 500


@pytest.mark.parametrize("size", [1, 7, 64, 3000])
def test_a_sample_is_bounded_and_says_which_rows_it_has(size: int):
    images, labels = drawn(3000, 2)
    found = draw(blocks(images, labels, size), most=100)
    assert (len(found), found.total, len(set(found.rows.tolist()))) == (100, 3000, 100)
    np.testing.assert_array_equal(found.images, images[found.rows])
    np.testing.assert_array_equal(found.labels, labels[found.rows])
    again = draw(blocks(images, labels, size), most=100)
    np.testing.assert_array_equal(found.rows, again.rows)


def test_each_row_is_as_likely_to_be_in_a_sample():
    images = np.zeros((4000, 1, 1), np.uint8)
    rows = draw(blocks(images, None, 50), most=1000).rows
    # A quarter of each tenth, but for chance.
    counts = np.bincount(rows // 400, minlength=10)
    assert stats.chisquare(counts).pvalue > 0.01


def test_labels_count_only_if_all_are_known():
    images, labels = drawn(100, 2)
    assert draw([(images[:50], labels[:50]), (images[50:], None)]).labels is None
    assert draw([]).total == 0


def test_shares_that_differ_have_cohens_w():
    old, new = np.array([6000, 6000]), np.array([600, 400])
    found = differing.shares(old, new)
    assert found.p == pytest.approx(stats.chi2_contingency([old, new], correction=False).pvalue)
    # The root of 2 · 0.1² / 0.5, without what chance adds to its square: 1 / 1,000 + 1 / 12,000.
    assert found.effect == pytest.approx((0.04 - 1 / 1000 - 1 / 12_000) ** 0.5)


def test_one_image_of_a_class_that_was_rare_is_no_drift():
    # Of 500 images one has a value that none of 20,000 had: by the counts alone, p would be 10⁻¹⁰.
    found = differing.shares(np.array([20_000, 0]), np.array([499, 1]))
    assert (found.p, found.effect) == (1.0, 0.0)
    assert differing.stability(np.zeros(20_000), np.append(np.zeros(499), 7)).p == 1


def test_a_new_class_that_is_frequent_is_one():
    found = differing.shares(np.array([10_000, 10_000, 0]), np.array([200, 200, 200]))
    assert found.p < 1e-6
    assert found.effect > 0.3


def test_the_stability_index_is_zero_for_the_same_and_large_for_moved_values():
    random = np.random.default_rng(3)
    values = random.normal(size=5000)
    assert differing.stability(values, random.normal(size=500)).effect < 0.05
    assert differing.stability(values, random.normal(1, size=500)).effect > 0.25


def test_measures_without_a_value_compare_as_nothing():
    missing = np.full(10, np.nan)
    assert differing.stability(missing, np.ones(5)) == differing.distributions(np.ones(5), missing)
    assert differing.distributions(missing, missing) == differing.NOTHING


def test_p_of_mean_images_is_even_for_the_same_distribution():
    random = np.random.default_rng(8)
    mixing = random.normal(size=(20, 20)).astype(np.float32)

    def images(rows: int) -> np.ndarray:
        return random.normal(size=(rows, 20)).astype(np.float32) @ mixing

    known = differing.spread(images(4000))
    p = [differing.mean_images(known, images(80)).p for _ in range(300)]
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert differing.mean_images(known, images(80) + 2).effect > 0.3


def test_images_without_any_spread_differ_or_not():
    flat = differing.spread(np.ones((5, 4), np.float32))
    assert differing.mean_images(flat, np.ones((3, 4), np.float32)) == differing.NOTHING
    assert differing.mean_images(flat, np.zeros((3, 4), np.float32)).p == 0


def test_the_area_is_scikit_learns_and_its_variance_that_of_many_samples():
    random = np.random.default_rng(4)
    pairs = [(random.normal(size=60), random.normal(0.7, size=40)) for _ in range(400)]
    found = np.array([telling.delong(*pair) for pair in pairs])
    truth = [roc_auc_score(np.repeat([0, 1], [60, 40]), np.concatenate(pair)) for pair in pairs[:5]]
    np.testing.assert_allclose(found[:5, 0], truth)
    assert found[:, 1].mean() == pytest.approx(found[:, 0].var(), rel=0.2)


def test_the_same_distribution_is_told_apart_no_more_often_than_stated():
    random = np.random.default_rng(7)
    found = [telling.tell(*random.normal(size=(2, 100, 5)).astype(np.float32)) for _ in range(100)]
    p = np.array([told.p for told in found])
    assert (p < 0.05).mean() <= 0.1
    covered = [told.low <= 0.5 <= told.high for told in found]
    assert np.mean(covered) >= 0.9


def test_an_image_is_left_out_of_its_own_mean():
    images, labels = drawn(60, 3)
    means, own = measuring.class_means(images, labels)
    found = measuring.measured(images, means, own).values["distance"]
    rest = np.arange(60) != 0
    without, _ = measuring.class_means(images[rest], labels[rest])
    assert found[0] == pytest.approx(measuring.measured(images[:1], without).values["distance"][0], rel=1e-4)


def test_large_images_are_reduced():
    images = np.arange(2 * 30 * 17, dtype=np.uint32).reshape(2, 30, 17).astype(np.uint8)
    found = measuring.measured(images, np.empty((0, 510), np.float32))
    assert found.reduced.shape == (2, 10 * 9)
    assert np.isnan(found.values["distance"]).all()
    assert found.reduced[0, 0] == pytest.approx(images[0, :3, :2].mean())


def test_the_same_distribution_is_within_the_limits(old: Reference):
    assert not any(beyond(old, *drawn(200, seed)) for seed in range(20, 30))


def test_changes_are_noticed(old: Reference):
    images, labels = drawn(300, 9)
    assert "ink" in beyond(old, 255 - images)
    assert "told apart" in beyond(old, np.roll(images, 2, axis=1))
    assert "labels" in beyond(old, images, np.minimum(labels, 1))
    assert beyond(old, images[labels < 2], labels[labels < 2])


def test_many_rows_do_not_alarm_at_nothing(old: Reference):
    images, labels = drawn(20_000, 11)
    slightly = np.clip(images.astype(np.int16) + 1, 0, 255).astype(np.uint8)
    comparison = compare(old, sample(slightly, labels), None, Drift())
    assert min(verdict.corrected for verdict in comparison.verdicts) < 1e-6
    assert not comparison.is_drifted, comparison.sentence("v1 of tiny")


def test_answers_are_compared_with_those_for_images_that_were_not_trained_on(old: Reference):
    images, labels = drawn(400, 12)
    assert not compare(old, sample(images), answers(labels, 13), Drift()).is_drifted
    unsure = Answers(labels, np.random.default_rng(1).beta(2, 2, len(labels)))
    named = {v.name for v in compare(old, sample(images), unsure, Drift()).verdicts if v.is_beyond}
    assert named == {"confidence"}
    one_sided = Answers(np.zeros(len(labels), np.int64), answers(labels, 13).confidence)
    named = {v.name for v in compare(old, sample(images), one_sided, Drift()).verdicts if v.is_beyond}
    assert named == {"predicted classes"}


def test_the_same_images_give_the_same_answer_with_those_that_differ_most_first(old: Reference):
    images, _ = drawn(300, 14)
    images[[5, 17, 250]] = 255 - images[[5, 17, 250]]
    comparison = compare(old, sample(images), None, Drift())
    assert {place for place, _ in comparison.most[:3]} == {5, 17, 250}
    assert comparison == compare(old, sample(images), None, Drift())
    assert [newness for _, newness in comparison.most] == sorted((n for _, n in comparison.most), reverse=True)


def test_the_sentence_names_what_is_beyond_its_limit(old: Reference):
    images, labels = drawn(300, 9)
    within = compare(old, sample(*drawn(300, 15)), None, Drift()).sentence("v3 of tiny")
    assert within == (
        "within the limits: 300 images like those that v3 of tiny was trained on, with none of 17 tests beyond its "
        "limit"
    )
    drifted = compare(old, sample(images, np.minimum(labels, 1)), None, Drift()).sentence("v3 of tiny")
    assert drifted.startswith(
        "drifted: 300 images unlike those that v3 of tiny was trained on, with 1 of 17 tests beyond its limit: labels "
        "(Cohen's w "
    )


def test_a_size_just_beyond_its_limit_is_not_written_as_the_limit():
    verdict = Verdict("ink", "PSI", 0.2512, 0.25, 0.0, 0.0, None, is_beyond=True)
    assert verdict.words == "ink (PSI 0.251, limit 0.250)"
    assert replace(verdict, effect=14.623).words == "ink (PSI 14.62, limit 0.25)"
