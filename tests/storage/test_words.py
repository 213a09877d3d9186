"""How counts, values and names are written."""

from __future__ import annotations

import pytest

from storage.datasets import catalog
from storage.words import counted, meant, written


@pytest.mark.parametrize(
    ("word", "names", "name"),
    [
        ("mnits", catalog.names(), "mnist"),
        ("MNIST", catalog.names(), "mnist"),
        ("fashion", catalog.names(), "fashion-mnist"),
        ("lable_column", ["label_column", "labels"], "label_column"),
    ],
)
def test_a_mistyped_name_is_answered_with_the_one_that_was_meant(word: str, names: list[str], name: str):
    assert meant(word, names) == f" (did you mean {name}?)"


@pytest.mark.parametrize("word", ["imagenet", "", "x" * 10_000_000, None, 5, ["mnist"]])
def test_what_is_like_no_name_is_answered_with_nothing(word: object):
    assert meant(word, catalog.names()) == ""


def test_values_are_written_as_people_write_them():
    assert [written(value) for value in (None, "tanh", True, 0.5, [50, 50])] == [
        "none",
        "tanh",
        "true",
        "0.5",
        "[50, 50]",
    ]
    assert [counted(1, "class", "classes"), counted(2000, "image")] == ["1 class", "2,000 images"]
