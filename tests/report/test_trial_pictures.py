"""The pictures of a study: what stands at an axis is readable, also with all parameters of the default space."""

from __future__ import annotations

import itertools
import random
from xml.etree import ElementTree

from tasks.report.trial_pictures import Axis, coordinates, of_choices, of_numbers
from tasks.tuning.space import DEFAULT

_HIGH = 14
"""Height of a line of text."""


def boxes(svg: str) -> list[tuple[str, float, float, float]]:
    """Return each text of a picture, from where to where it reaches, and its height."""
    found = []
    for text in ElementTree.fromstring(svg).iter("text"):
        words = text.text or ""
        width = len(words) * (8.4 if text.get("font-weight") else 7.2)
        x = float(text.get("x", 0)) - (width / 2 if text.get("text-anchor") == "middle" else 0)
        found.append((words, x, x + width, float(text.get("y", 0))))
    return found


def assert_apart(svg: str) -> None:
    width = float(ElementTree.fromstring(svg).get("viewBox", "").split()[2])
    texts = boxes(svg)
    for (a, a_left, a_right, a_y), (b, b_left, b_right, b_y) in itertools.combinations(texts, 2):
        assert abs(a_y - b_y) >= _HIGH or a_right < b_left or b_right < a_left, f"{a} reaches into {b}"
    assert all(left >= 0 and right <= width for _, left, right, _ in texts), texts


def test_the_names_and_labels_of_ten_axes_do_not_overlap():
    draw = random.Random(1)
    axes: list[Axis] = [of_numbers("loss", [draw.uniform(0.0612345, 2) for _ in range(20)])]
    for name, table in DEFAULT.items():
        if "choices" in table:
            axes.append(of_choices(name, draw.choices(table["choices"], k=20), table["choices"]))
        else:
            axes.append(of_numbers(name, [draw.uniform(0.000123456, 0.3) for _ in range(20)], log=True))
    assert len(axes) == 10
    assert_apart(coordinates(axes, "ten axes"))
    assert_apart(coordinates([axes[0], *axes[1:] * 2][:13], "thirteen axes"))
    assert_apart(coordinates(axes[:2], "two axes"))


def test_choices_stand_in_the_order_of_the_space_whatever_was_tried_first():
    axis = of_choices("batch_size", [256, 16, None, 64], [16, 32, 64, 256])
    assert axis.labels == [(0.0, "16"), (0.5, "64"), (1.0, "256")]
    assert axis.places == [1.0, 0.0, None, 0.5]
    # The configuration before the search may have another one.
    assert [text for _, text in of_choices("batch_size", [50, 16], [16, 32]).labels] == ["16", "50"]


def test_choices_that_begin_alike_have_a_place_each_and_many_have_few_labels():
    long = [[64, 64, 64, 64, last] for last in range(40)]
    axis = of_choices("hidden", long, long)
    assert len(set(axis.places)) == 40
    assert_apart(coordinates([of_numbers("loss", range(40)), axis], "forty choices"))
