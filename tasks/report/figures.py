"""Draw the pictures of the report: sheets of small images as PNG, curves as SVG. Arrays in, bytes and text out.

The same arrays give the same bytes: no dates, no random identifiers. Curves take the colour of the text around
them (`currentColor`) and of the CSS variables `--training` and `--held-out`, so they follow light and dark.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from xml.sax.saxutils import escape

import numpy as np

if TYPE_CHECKING:
    from matplotlib.backends.backend_svg import RendererSVG
    from matplotlib.font_manager import FontProperties
    from matplotlib.text import Text

    _Points: TypeAlias = Sequence[float] | np.ndarray

MAX_SIDE = 64
"""Maximum side of an image in pixels; larger images are reduced."""
MAX_POINTS = 300
"""Maximum points of a curve; longer curves are thinned out."""
GREYS = 16
"""Grey levels of the sheets: four bits per pixel keep the page small."""

_TARGET_SIDE = 64
_FEW_POINTS = 30
_TEXT, _TRAINING, _HELD_OUT = "#010203", "#010204", "#010205"
_COLOURS = {_TEXT: "currentColor", _TRAINING: "var(--training, #1d5fc4)", _HELD_OUT: "var(--held-out, #b4530a)"}
_SIZE = (4.4, 2.5)
_POINTS = 72
_WIDTH, _HEIGHT = _SIZE[0] * _POINTS, _SIZE[1] * _POINTS
# The same frame for all charts, so that stacked charts line up; in points from the lower left corner.
_LEFT, _RIGHT, _BOTTOM, _TOP = 0.13 * _WIDTH, 0.985 * _WIDTH, 0.2 * _HEIGHT, 0.89 * _HEIGHT
_FONT_SIZE = 9
_MARK: dict[str, Any] = {"color": _TEXT, "alpha": 0.55, "linewidth": 1, "linestyle": (0, (1, 2))}
_SETTINGS = Lock()
"""Held while Matplotlib's settings, which belong to the whole process, are changed."""


@dataclass(frozen=True)
class Sheet:
    """Several images of one size in one PNG, row by row, as ink on paper: the higher a pixel's value, the darker."""

    png: bytes
    count: int
    columns: int
    height: int
    """Height of one image in the PNG, in pixels."""
    width: int

    @property
    def scale(self) -> int:
        """Screen pixels per image pixel, a whole number so that pixels stay squares."""
        return max(1, round(_TARGET_SIDE / max(self.height, self.width)))

    @property
    def rows(self) -> int:
        """Rows of images on the sheet."""
        return math.ceil(self.count / self.columns)

    @property
    def uri(self) -> str:
        """The PNG as a `data:` address."""
        return data_uri(self.png, "image/png")


@dataclass(frozen=True)
class Line:
    """One curve; None stands for a missing value."""

    name: str
    values: Sequence[float | None]
    held_out: bool = False
    """Draw it in the second colour, dashed."""
    intervals: Sequence[tuple[float, float] | None] = ()
    """Lower and upper end for each value, drawn as a bar."""
    points: bool = True
    """Mark the values themselves if they are few."""
    joined: bool = True
    """Join the values by a line; otherwise draw only points."""
    quiet: bool = False
    """Draw it thin and grey, behind the others; without a name, it is not in the legend."""


@dataclass(frozen=True)
class Chart:
    """Curves over the same numbers, such as epochs."""

    name: str
    """Unique on the page: a prefix for the identifiers in the SVG."""
    x: Sequence[float]
    x_name: str
    lines: Sequence[Line]
    description: str
    """Text alternative for readers who cannot see the chart."""
    mark: float | None = None
    """An `x` to mark."""
    mark_name: str = ""
    percent: bool = False
    from_zero: bool = False
    """Have the vertical axis start at 0, so that small changes look small."""
    logarithmic: bool = False
    """Have each power of ten take the same height; values of 0 leave a gap."""


def sheet(images: np.ndarray, columns: int = 10, max_side: int = MAX_SIDE) -> Sheet:
    """Put `images` (uint8, shape (n, height, width), n >= 1, any value range) on one sheet.

    Grey levels are stretched from 0 to the highest value of all images; images with a side of more than `max_side`
    pixels are reduced by an integer factor.
    """
    from PIL import Image

    small = _reduced(images, max_side)
    count, height, width = small.shape
    columns = min(columns, count)
    paper = np.full((math.ceil(count / columns) * height, columns * width), GREYS - 1, np.uint8)
    top = max(int(small.max()), 1)
    ink = (small.astype(np.uint16) * (GREYS - 1) + top // 2) // top
    for index in range(count):
        y, x = divmod(index, columns)
        paper[y * height : (y + 1) * height, x * width : (x + 1) * width] = GREYS - 1 - ink[index]
    picture = Image.fromarray(paper).convert("P")
    picture.putpalette([level * 255 // (GREYS - 1) for level in range(GREYS) for _ in range(3)])
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True, bits=4)
    return Sheet(buffer.getvalue(), count, columns, height, width)


def captioned(pictures: Sheet, captions: Sequence[Sequence[str]], columns: int) -> str:
    """Return a complete SVG of a sheet's images with the lines of text of `captions` under each.

    For places that show pictures but no HTML. Long lines are cut; markup in them is escaped.
    """
    width, height = pictures.width * pictures.scale, pictures.height * pictures.scale
    cell, line = max(width, 72) + 12, 15
    pitch = height + line * max((len(lines) for lines in captions), default=0) + 14
    columns = min(columns, pictures.count)
    parts = []
    for index, lines in enumerate(captions):
        row, column = divmod(index, columns)
        x, y = column * cell, row * pitch + 6
        parts.append(_sprite(pictures, index, (x + (cell - width) // 2, y)))
        parts += [
            f'<text x="{x + cell // 2}" y="{y + height + line * (n + 1) - 2}">{escape(_cut(text, cell))}</text>'
            for n, text in enumerate(lines)
        ]
    size = columns * cell, math.ceil(pictures.count / columns) * pitch
    sheet_size = f'width="{pictures.columns * pictures.width}" height="{pictures.rows * pictures.height}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]}" height="{size[1]}" '
        f'viewBox="0 0 {size[0]} {size[1]}" font-family="system-ui, sans-serif" font-size="12" text-anchor="middle" '
        f'fill="#1f2328"><defs><image id="sheet" {sheet_size} style="image-rendering:pixelated" '
        f'href="{pictures.uri}"/></defs><rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>'
    )


def chart(drawing: Chart) -> str:
    """Return `drawing` as an `<svg>` element to be put into HTML, 317 x 180 points and scalable.

    Values that are None or not finite leave a gap. Text stays text, in the font of the page.
    """
    return charts([drawing])[drawing.name]


def charts(drawings: Iterable[Chart]) -> dict[str, str]:
    """Return each of `drawings` as `chart` does, by its name."""
    import matplotlib as mpl

    with _SETTINGS, mpl.rc_context():
        # Ignore the user's settings, so that the same curves look the same everywhere; `none` keeps text as text.
        mpl.rcdefaults()
        mpl.rcParams["svg.fonttype"] = "none"
        return {drawing.name: _drawn(drawing) for drawing in drawings}


def standalone(svg: str) -> str:
    """Turn the SVG of `chart` into a standalone file: dark text on white, with a size."""
    width, height = (round(inches * _POINTS * 1.5) for inches in _SIZE)
    sized = svg.replace(
        "<svg ",
        f'<svg width="{width}" height="{height}" style="background:#fff" font-family="system-ui, sans-serif" ',
        1,
    )
    return re.sub(r"var\(--[a-z-]+, (#\w+)\)", r"\1", sized).replace("currentColor", "#1f2328")


def data_uri(content: bytes | str, kind: str = "image/svg+xml") -> str:
    """Return `content` as a `data:` address of the given media type."""
    data = content.encode() if isinstance(content, str) else content
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _reduced(images: np.ndarray, max_side: int) -> np.ndarray:
    factor = math.ceil(max(images.shape[1:]) / max_side)
    if factor == 1:
        return images
    from PIL import Image

    return np.stack([np.asarray(Image.fromarray(image).reduce(factor)) for image in images])


def _sprite(pictures: Sheet, index: int, place: tuple[int, int]) -> str:
    row, column = divmod(index, pictures.columns)
    width, height = pictures.width, pictures.height
    return (
        f'<svg x="{place[0]}" y="{place[1]}" width="{width * pictures.scale}" height="{height * pictures.scale}" '
        f'viewBox="{column * width} {row * height} {width} {height}"><use href="#sheet"/></svg>'
    )


def _cut(text: str, width: int) -> str:
    fits = width // 7
    return text if len(text) <= fits else text[: fits - 1] + "…"


def _thinned(drawing: Chart) -> list[int]:
    """Return the positions to draw: at most about `MAX_POINTS`, the last and the marked one among them."""
    count = len(drawing.x)
    chosen = set(np.linspace(0, count - 1, min(count, MAX_POINTS)).round().astype(int).tolist())
    if drawing.mark is not None and drawing.mark in drawing.x:
        chosen.add(list(drawing.x).index(drawing.mark))
    return sorted(chosen)


def _drawable(value: float | None, drawing: Chart) -> float:
    if value is None or not math.isfinite(value) or (drawing.logarithmic and value <= 0):
        return math.nan
    return value


@dataclass(frozen=True)
class _Scale:
    """Where values are along one side of the frame."""

    low: float
    """The value at the start, or its logarithm to base 10."""
    high: float
    start: float
    """Points from the corner of the chart."""
    end: float
    logarithmic: bool = False

    def points(self, values: Sequence[float]) -> np.ndarray:
        """Return the distances of `values` from the corner of the chart, in points (float64)."""
        numbers = np.asarray(values, np.float64)
        numbers = np.log10(numbers) if self.logarithmic else numbers
        return self.start + (numbers - self.low) * (self.end - self.start) / (self.high - self.low)

    def within(self, values: Iterable[float]) -> list[float]:
        """Return those of `values` that are not outside the frame."""
        chosen = list(values)
        points = self.points(chosen)
        return [value for value, at in zip(chosen, points, strict=True) if self.start - 0.5 <= at <= self.end + 0.5]


def _drawn(drawing: Chart) -> str:
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import RendererSVG

    # Makes identifiers reproducible.
    mpl.rcParams["svg.hashsalt"] = drawing.name
    buffer = io.StringIO()
    unsigned = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    paper = RendererSVG(_WIDTH, _HEIGHT, buffer, metadata=unsigned)
    _draw(paper, drawing)
    paper.finalize()
    return _embeddable(buffer.getvalue(), drawing)


def _draw(paper: RendererSVG, drawing: Chart) -> None:
    """Draw a chart with Matplotlib's lines, text and choice of ticks, each put in its place here.

    A `Figure` with `Axes` looks the same and takes several times as long: it makes objects for all that a
    chart could have, and measures each text, which the page sets in a font of its own.
    """
    places = _thinned(drawing)
    few = len(places) <= _FEW_POINTS
    values = [[_drawable(line.values[p], drawing) for p in places] for line in drawing.lines]
    intervals = [[line.intervals[p] for p in places] if line.intervals else [] for line in drawing.lines]
    ends = [end for line in intervals for interval in line if interval is not None for end in interval]
    y = _vertical(drawing, [*(value for line in values for value in line), *ends])
    x = _Scale(*_limits([drawing.x[p] for p in places]), _LEFT, _RIGHT)
    _draw_axes(paper, drawing, x, y)
    across = x.points([drawing.x[p] for p in places])
    for line, line_values, line_intervals in zip(drawing.lines, values, intervals, strict=True):
        _add_line(paper, across, y.points(line_values), **_style(line, few))
        bars = [(at, interval) for at, interval in zip(across, line_intervals, strict=False) if interval is not None]
        if bars:
            style = {"color": _style(line, few)["color"], "alpha": 0.45, "linewidth": 1.2}
            _add_bars(paper, [(at, at) for at, _ in bars], [y.points(ends) for _, ends in bars], **style)
    if drawing.mark is not None and drawing.mark in drawing.x:
        _add_line(paper, x.points([drawing.mark] * 2), (_BOTTOM, _TOP), **_MARK)
    _add_line(paper, (_LEFT, _RIGHT), (_BOTTOM, _BOTTOM), color=_TEXT, alpha=0.4, linewidth=0.8)
    _draw_legend(paper, drawing, few)


def _vertical(drawing: Chart, values: Sequence[float]) -> _Scale:
    if drawing.logarithmic:
        powers = {math.log10(value) for value in values if value > 0}
        if len(powers) == 1:
            powers = {power + room for power in powers for room in (-1, 1)}
        return _Scale(*_limits([*powers]), _BOTTOM, _TOP, logarithmic=True)
    low, high = _limits(values)
    if drawing.from_zero:
        finite = [value for value in values if math.isfinite(value)]
        # All durations may be 0.
        low, high = min([0, *finite]), max([0, *finite]) * 1.15 or 1
    return _Scale(low, high, _BOTTOM, _TOP)


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of an axis: those of the finite `values`, with some room around them."""
    from matplotlib.ticker import MaxNLocator

    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return 0, 1
    low, high = MaxNLocator().nonsingular(min(finite), max(finite))
    margin = 0.05 * (high - low)
    return low - margin, high + margin


def _draw_axes(paper: RendererSVG, drawing: Chart, x: _Scale, y: _Scale) -> None:
    from matplotlib.ticker import MaxNLocator

    locator = MaxNLocator(7, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10])
    for value in x.within(locator.tick_values(x.low, x.high)):
        _add_text(paper, (x.points([value])[0], _BOTTOM - 10.3), f"{value:,.0f}", "center")
    _add_text(paper, ((_LEFT + _RIGHT) / 2, _BOTTOM - 23.3), drawing.x_name, "center")
    ticks = y.within(_ticks(y))
    written = _percent if drawing.percent else _number
    for value, at in zip(ticks, y.points(ticks), strict=True):
        _add_text(paper, (_LEFT - 3.5, at - 3.4), written(value), "right")
    if ticks:
        heights = [(at, at) for at in y.points(ticks)]
        _add_bars(paper, [(_LEFT, _RIGHT)] * len(ticks), heights, color=_TEXT, alpha=0.14, linewidth=0.7)


def _ticks(y: _Scale) -> Sequence[float]:
    from matplotlib.ticker import LogLocator, MaxNLocator

    if not y.logarithmic:
        return MaxNLocator(5).tick_values(y.low, y.high)
    parts = (1.0, 2.0, 5.0) if y.high - y.low < 2 else (1.0,)
    return LogLocator(10, parts, numticks=6).tick_values(10**y.low, 10**y.high)


def _style(line: Line, few: bool) -> dict[str, Any]:
    if line.quiet:
        return {"color": _TEXT, "alpha": 0.4, "linewidth": 1}
    colour = _HELD_OUT if line.held_out else _TRAINING
    if not line.joined:
        return {"color": colour, "linestyle": "none", "marker": "D", "markersize": 6, "markerfacecolor": "none"}
    marker = "o" if few and line.points else ""
    dashes = (0, (5, 2)) if line.held_out else "-"
    return {"color": colour, "linestyle": dashes, "linewidth": 1.7, "marker": marker, "markersize": 3.5}


def _draw_legend(paper: RendererSVG, drawing: Chart, few: bool) -> None:
    """Name the curves above the frame, if there are several."""
    entries = [(line.name, _style(line, few)) for line in drawing.lines if line.name]
    if drawing.mark is not None:
        entries.append((drawing.mark_name, _MARK))
    if len(entries) < 2:
        return
    x = _LEFT + 3.6
    for name, style in entries:
        _add_line(paper, (x, x + 7.2, x + 14.4), [_TOP + 8.9] * 3, **style, markevery=[1])
        _add_text(paper, (x + 21.6, _TOP + 5.8), name, "left")
        x += 21.6 + _width(name) + 10.8


def _add_line(paper: RendererSVG, x: _Points, y: _Points, **style: Any) -> None:
    from matplotlib.lines import Line2D

    Line2D(x, y, **style).draw(paper)


def _add_bars(paper: RendererSVG, x: Sequence[_Points], y: Sequence[_Points], **style: Any) -> None:
    """Add separate lines, each from its first to its second point, as one object with gaps."""
    gaps = np.full((len(x), 1), np.nan)
    ends = (np.hstack([np.asarray(values, np.float64), gaps]).ravel() for values in (x, y))
    _add_line(paper, *ends, solid_capstyle="butt", **style)


def _add_text(
    paper: RendererSVG, place: tuple[float, float], text: str, align: Literal["left", "center", "right"]
) -> None:
    """Add one line of text on the baseline at `place`."""
    anchor = _anchor()
    anchor.set(position=place, horizontalalignment=align)
    pen = paper.new_gc()
    pen.set_foreground(_TEXT)
    paper.draw_text(pen, place[0], _HEIGHT - place[1], text, _font(), angle=0.0, mtext=anchor)


@cache
def _font() -> FontProperties:
    from matplotlib.font_manager import FontProperties

    return FontProperties(size=_FONT_SIZE)


@cache
def _anchor() -> Text:
    """Return what carries the place of a text; of the chart that is being drawn, there is one at a time."""
    from matplotlib.text import Text

    return Text()


@lru_cache(256)
def _width(text: str) -> float:
    """Return the width of `text` in the font that Matplotlib brings along, in points."""
    from matplotlib.textpath import text_to_path

    width, _, _ = text_to_path.get_text_width_height_descent(text, _font(), ismath=False)
    return float(width)


def _percent(value: float) -> str:
    return f"{value * 100:.4g}%"


def _number(value: float) -> str:
    return re.sub(r"e([+-])0?", r"e\1", f"{value:.4g}").replace("e+", "e")


def _rounded(coordinates: str) -> str:
    return re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number.group()):.1f}", coordinates)


def _embeddable(svg: str, drawing: Chart) -> str:
    """Reduce an SVG file to its element, with identifiers and styles that cannot clash with others on the page."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r"\s*<defs>\s*</defs>", "", body)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{drawing.name}-", body)
    body = re.sub(r"font-family: [^;\"]*; ?", "", body)
    body = re.sub(r' transform="rotate\(-0 [^"]*"', "", body)
    body = re.sub(r' (?:d|x|y)="[^"]*"', lambda match: _rounded(match.group()), body)
    for colour, replacement in _COLOURS.items():
        body = body.replace(colour, replacement)
    view = f"0 0 {_SIZE[0] * _POINTS:g} {_SIZE[1] * _POINTS:g}"
    description = escape(drawing.description, {'"': "&quot;"})
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{view}" '
        f'role="img" aria-label="{description}">'
    )
    return re.sub(r"\s*\n\s*", "\n", re.sub(r"<svg[^>]*>", lambda _: opening, body, count=1)).strip()
