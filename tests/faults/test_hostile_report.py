"""A manifest full of markup, taken through a whole run: its report is a page of texts, whoever opens it where."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from storage.datasets import catalog
from storage.registry import Registry
from storage.store import Store
from tasks.publish import compose
from tasks.report import rendering
from tests.conftest import write_tiny
from tests.support.pages import check_markdown, check_page
from tests.support.reports import MARKUP, a_dataset, a_run
from tests.support.runs import whole_run


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest whose every free text is markup; what is looked at only by its author is kept as it is."""
    folder = tmp_path_factory.mktemp("hostile")
    dataset = write_tiny(folder, classes=len(MARKUP), train=240, test=80)
    text = dataset.manifest.read_text("utf-8")
    names = ", ".join(json.dumps(name) for name in MARKUP)
    text = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("classes"))
    everything = json.dumps(" ".join(MARKUP))
    more = f'title = {everything}\nlicence = {everything}\nhomepage = "javascript:alert(1)"\ncitation = {everything}\n'
    dataset.manifest.write_text(f"classes = [{names}]\n{more}{text}", encoding="utf-8")
    return catalog.read(dataset.manifest).manifest


def test_a_manifest_of_markup_gives_a_report_of_texts(store: Store, manifest: Path):
    job = whole_run(store, manifest, epochs=2)
    assert job.report
    page = check_page(job.report.html.read_text("utf-8"))
    for text in MARKUP:
        assert " ".join(text.split()) in page.words()
    document = compose(job.registry, job.dataset, job.record)
    text = rendering.markdown(document.values, document.pictures)
    assert check_markdown(text)


@pytest.mark.parametrize("letter", ["&", '"', "<", "|", "é", "👩"])
def test_the_longest_names_there_can_be_keep_the_report_below_its_size(store: Store, tmp_path: Path, letter: str):
    names = tuple(f"{letter * 197}{number:03d}" for number in range(catalog.MAX_CLASSES))
    dataset = dataclasses.replace(a_dataset(tmp_path, len(names)), classes=names, title=letter * 200)
    document = compose(Registry(store, dataset.name), dataset, a_run(store, dataset, rows=(2_560, 2_560)))
    assert len(rendering.html(document.values, document.pictures).encode()) < rendering.MAX_HTML_BYTES
    assert len(rendering.markdown(document.values, document.pictures).encode()) < rendering.MAX_MARKDOWN_BYTES
