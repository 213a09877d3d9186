"""Draw the pictures of the report: sheets of small images as PNG, curves as SVG. Arrays in, bytes and text out.

The same arrays give the same bytes: no dates, no random identifiers. Curves take the colour of the text around
them (`currentColor`) and of the CSS variables `--training` and `--held-out`, so they follow light and dark.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
_MARGINS = {"left": 0.13, "right": 0.985, "bottom": 0.2, "top": 0.89}


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
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context():
        # Ignore the user's settings, so that the same curves look the same everywhere; the hash salt makes
        # identifiers reproducible; `none` keeps text as text.
        mpl.rcdefaults()
        mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": drawing.name, "text.color": _TEXT})
        figure = Figure(figsize=_SIZE)
        # The same margins for all charts, so that stacked charts line up.
        axes = figure.subplots(gridspec_kw=_MARGINS)
        _draw(axes, drawing)
        _dress(axes, drawing)
        buffer = io.BytesIO()
        unsigned = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=unsigned)
    return _embeddable(buffer.getvalue().decode(), drawing)


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


def _draw(axes: Axes, drawing: Chart) -> None:
    places = _thinned(drawing)
    few = len(places) <= _FEW_POINTS
    for line in drawing.lines:
        if line.quiet:
            values = [_drawable(line.values[p], drawing) for p in places]
            axes.plot(
                [drawing.x[p] for p in places], values, color=_TEXT, alpha=0.4, linewidth=1, label=line.name or "_"
            )
            continue
        colour = _HELD_OUT if line.held_out else _TRAINING
        dashes = (0, (5, 2)) if line.held_out else "-"
        axes.plot(
            [drawing.x[p] for p in places],
            [_drawable(line.values[p], drawing) for p in places],
            color=colour,
            linestyle=dashes if line.joined else "none",
            linewidth=1.7,
            marker=("o" if few and line.points else "") if line.joined else "D",
            markersize=3.5 if line.joined else 6,
            markerfacecolor=colour if line.joined else "none",
            label=line.name,
        )
        intervals = [(drawing.x[p], line.intervals[p]) for p in places] if line.intervals else []
        bars = [(x, *interval) for x, interval in intervals if interval is not None]
        if bars:
            axes.vlines(*zip(*bars, strict=True), color=colour, alpha=0.45, linewidth=1.2)
    if drawing.mark is not None and drawing.mark in drawing.x:
        dots = (0, (1, 2))
        axes.axvline(drawing.mark, color=_TEXT, alpha=0.55, linewidth=1, linestyle=dots, label=drawing.mark_name)


def _dress(axes: Axes, drawing: Chart) -> None:
    """Remove everything that is not data, and label the rest."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set(color=_TEXT, alpha=0.4)
    axes.tick_params(length=0, labelcolor=_TEXT, labelsize=9)
    axes.grid(axis="y", color=_TEXT, alpha=0.14, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel(drawing.x_name, color=_TEXT, fontsize=9)
    if drawing.from_zero:
        # All durations may be 0.
        axes.set_ylim(0, axes.dataLim.y1 * 1.15 or 1)
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    _scale(axes, drawing)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(_percent if drawing.percent else _number))
    labels = sum(bool(line.name) for line in drawing.lines) + (drawing.mark is not None)
    if labels > 1:
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=labels,
            frameon=False,
            fontsize=9,
            borderaxespad=0,
            handlelength=1.6,
            columnspacing=1.2,
        )


def _scale(axes: Axes, drawing: Chart) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    if not drawing.logarithmic:
        axes.yaxis.set_major_locator(MaxNLocator(5))
        return
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(10, (1.0, 2.0, 5.0) if high < 100 * low else (1.0,), numticks=6))
    axes.yaxis.set_minor_locator(NullLocator())


def _percent(value: float, _: int | None) -> str:
    return f"{value * 100:.4g}%"


def _number(value: float, _: int | None) -> str:
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
