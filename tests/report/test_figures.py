"""Sheets of images and curves: the right pixels, the same bytes each time, nothing that breaks a page."""

from __future__ import annotations

import base64
import io
import math
import re
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from tasks.report import figures
from tasks.report.figures import Chart, Line

SVG = "{http://www.w3.org/2000/svg}"


def pixels(png: bytes) -> np.ndarray:
    """Return the grey levels of a PNG, 0 black to 255 white."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("L"))


def a_chart(name: str = "loss", epochs: int = 5, **changes: object) -> Chart:
    x = list(range(1, epochs + 1))
    fitted = Line("fitted rows", [1 / n for n in x])
    held_out = Line("held-out rows", [1.2 / n for n in x], held_out=True)
    values = {"lines": [fitted, held_out], "description": "Loss by epoch", "mark": x[-1], "mark_name": "kept"}
    return Chart(name, x, "epoch", **(values | changes))  # type: ignore[arg-type]


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter(f"{SVG}text")]


def test_sheet_shows_each_image_as_ink_on_paper() -> None:
    images = np.zeros((3, 2, 4), np.uint8)
    images[0, 0, 0] = images[1, 1, 3] = 255
    sheet = figures.sheet(images, columns=2)
    shown = pixels(sheet.png)
    assert shown.shape == (4, 8)
    assert (sheet.rows, sheet.columns, sheet.count) == (2, 2, 3)
    assert np.argwhere(shown == 0).tolist() == [[0, 0], [1, 7]]
    assert (shown[2:] == 255).all()


@pytest.mark.parametrize("top", [1, 16, 127, 255])
def test_sheet_stretches_any_range_to_full_ink(top: int) -> None:
    images = np.full((1, 3, 3), 0, np.uint8)
    images[0, 1, 1] = top
    shown = pixels(figures.sheet(images).png)
    assert (shown[1, 1], shown[0, 0]) == (0, 255)


def test_sheet_of_blank_images_is_paper() -> None:
    assert (pixels(figures.sheet(np.zeros((4, 5, 5), np.uint8)).png) == 255).all()


def test_sheet_keeps_sixteen_levels() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    levels = np.unique(pixels(figures.sheet(ramp).png))
    assert levels.tolist() == [n * 17 for n in range(16)]


@pytest.mark.parametrize(
    ("shape", "shown", "scale"),
    [
        ((8, 8), (8, 8), 8),
        ((28, 28), (28, 28), 2),
        ((20, 16), (20, 16), 3),
        ((64, 64), (64, 64), 1),
        ((200, 100), (50, 25), 1),
        ((1, 1), (1, 1), 64),
    ],
)
def test_sheet_sizes(shape: tuple[int, int], shown: tuple[int, int], scale: int) -> None:
    sheet = figures.sheet(np.ones((2, *shape), np.uint8))
    assert (sheet.height, sheet.width) == shown
    assert sheet.scale == scale


def test_the_same_images_give_the_same_bytes() -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    assert figures.sheet(images).png == figures.sheet(images.copy()).png


def test_a_page_of_noise_stays_small() -> None:
    images = np.random.default_rng(0).integers(0, 256, (62, 64, 64), dtype=np.uint8)
    assert len(figures.sheet(images).png) < 140_000


def test_captioned_shows_every_image_and_its_lines() -> None:
    sheet = figures.sheet(np.eye(8, dtype=np.uint8)[None].repeat(3, 0))
    svg = figures.captioned(sheet, [["a", "1"], ["b", "2"], ["c", "3"]], columns=2)
    root = ET.fromstring(svg)
    assert [e.text for e in root.iter(f"{SVG}text")] == ["a", "1", "b", "2", "c", "3"]
    assert [e.get("viewBox") for e in root.iter(f"{SVG}svg")][1:] == ["0 0 8 8", "8 0 8 8", "16 0 8 8"]
    (image,) = root.iter(f"{SVG}image")
    assert base64.b64decode((image.get("href") or "").split(",")[1]) == sheet.png


def test_captioned_escapes_and_cuts() -> None:
    sheet = figures.sheet(np.ones((1, 8, 8), np.uint8))
    svg = figures.captioned(sheet, [['"><script>alert(1)</script>', "x" * 500]], columns=5)
    assert "<script" not in svg
    long = [e.text or "" for e in ET.fromstring(svg).iter(f"{SVG}text")][1]
    assert len(long) < 15
    assert long.endswith("…")


def test_chart_is_one_element_that_follows_the_page() -> None:
    svg = figures.chart(a_chart())
    assert svg.startswith("<svg ")
    assert ET.fromstring(svg).get("role") == "img"
    assert {"fitted rows", "held-out rows", "kept", "epoch"} <= set(texts(svg))
    assert "currentColor" in svg
    assert "var(--training" in svg
    assert "var(--held-out" in svg
    for foreign in ("<?xml", "<!DOCTYPE", "<metadata", "<style", "font-family", "matplotlib", "#0102"):
        assert foreign not in svg


def test_chart_gives_the_same_bytes_each_time() -> None:
    assert figures.chart(a_chart()) == figures.chart(a_chart())


def test_charts_are_the_same_in_any_order_and_in_threads() -> None:
    charts = [a_chart("loss"), a_chart("accuracy", percent=True), a_chart("gradients", logarithmic=True)]
    drawn = [figures.chart(chart) for chart in charts]
    with ThreadPoolExecutor(4) as pool:
        assert [*pool.map(figures.chart, charts[::-1] * 4)] == drawn[::-1] * 4


def test_charts_of_the_same_curves_share_no_identifier() -> None:
    identifiers = [set(re.findall(r'\bid="([^"]+)"', figures.chart(a_chart(name)))) for name in ("loss", "accuracy")]
    assert identifiers[0]
    assert not identifiers[0] & identifiers[1]


def test_every_reference_in_a_chart_has_its_target() -> None:
    svg = figures.chart(a_chart())
    targets = set(re.findall(r'\bid="([^"]+)"', svg))
    references = set(re.findall(r'href="#([^"]+)"', svg)) | set(re.findall(r"url\(#([^)]+)\)", svg))
    assert references
    assert references <= targets


def test_chart_is_not_changed_by_own_settings() -> None:
    import matplotlib as mpl

    usual = figures.chart(a_chart())
    with mpl.rc_context({"lines.linewidth": 9, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert figures.chart(a_chart()) == usual
        assert mpl.rcParams["lines.linewidth"] == 9


@pytest.mark.parametrize("epochs", [1, 2, 13, 400])
def test_chart_of_any_length(epochs: int) -> None:
    assert "kept" in texts(figures.chart(a_chart(epochs=epochs)))


def test_ten_thousand_epochs_stay_small() -> None:
    assert len(figures.chart(a_chart(epochs=10_000))) < 40_000


def test_chart_leaves_gaps_where_there_is_no_value() -> None:
    line = Line("fitted rows", [1.0, None, math.nan, 2.0, math.inf])
    assert "nan" not in figures.chart(a_chart(lines=[line]))


def test_description_is_escaped() -> None:
    svg = figures.chart(a_chart(description='"><script>&'))
    assert "<script" not in svg
    assert ET.fromstring(svg).get("aria-label") == '"><script>&'


@pytest.mark.parametrize(("percent", "expected"), [(True, "0%"), (False, "0")])
def test_numbers_on_the_axis(percent: bool, expected: str) -> None:
    assert expected in texts(figures.chart(a_chart(percent=percent, from_zero=True)))


def test_from_zero_shows_a_small_change_as_small() -> None:
    line = Line("learning rate", [0.001, 0.0009999])
    assert "0" in texts(figures.chart(a_chart(epochs=2, lines=[line], from_zero=True)))
    assert "0" not in texts(figures.chart(a_chart(epochs=2, lines=[line])))


@pytest.mark.parametrize(
    ("values", "expected"), [([0.01], {"0.001", "0.01", "0.1"}), ([None], {"1", "10"}), ([1e-3, 0, 10], {"0.1", "10"})]
)
def test_powers_of_ten_on_a_logarithmic_axis(values: list[float | None], expected: set[str]) -> None:
    chart = a_chart(epochs=len(values), lines=[Line("norm", values)], logarithmic=True)
    assert expected <= set(texts(figures.chart(chart)))


def test_names_with_signs_of_formulas_stay_as_they_are() -> None:
    line = Line("cost in $ or $x^2$", [1, 2])
    assert line.name in texts(figures.chart(a_chart(epochs=2, lines=[line])))


def test_standalone_needs_no_page() -> None:
    svg = figures.standalone(figures.chart(a_chart()))
    root = ET.fromstring(svg)
    assert int(root.get("width") or 0) > 400
    assert "currentColor" not in svg
    assert "var(" not in svg


@pytest.mark.parametrize(("content", "kind"), [(b"\x89PNG", "image/png"), ("<svg/>", "image/svg+xml")])
def test_data_uri_holds_the_content(content: bytes | str, kind: str) -> None:
    start, data = figures.data_uri(content, kind).split(",")
    assert start == f"data:{kind};base64"
    assert base64.b64decode(data) == (content.encode() if isinstance(content, str) else content)
