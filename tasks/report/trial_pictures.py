"""The pictures of a study: its trials as lines, drawn as SVG. Numbers in, text out.

Like the charts of `figures`, they take their colours from the page, and the same trials give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from xml.sax.saxutils import escape

from storage.words import brief, shortened

BEST, OTHERS = "var(--held-out, #b4530a)", "var(--training, #1d5fc4)"
MAX_LINES = 400
"""Lines of a picture: the best of more."""
_WIDTH, _HEIGHT = 960, 340
_TOP, _BOTTOM, _SIDE = 34, 30, 70
_LONGEST = 16
"""Characters of a label."""
_LETTER, _BOLD = 7.4, 8.6
"""Width of an average letter of a label, and of a name; wide fonts have them."""
_GAP, _BESIDE = 10, 5
"""Between the texts of two axes, and between an axis and its labels."""
_MOST_LABELS = 15
"""Labels of an axis that do not overlap."""
_SMALLEST = 0.8
"""The least scale at which the labels can be read."""
_MAX_POINTS = 200
_WHOLE = 10_000
"""Characters of a choice; none has more."""


@dataclass(frozen=True)
class Axis:
    """One axis of parallel coordinates: the place of each trial on it, from 0 (bottom) to 1, and what is beside it."""

    name: str
    places: Sequence[float | None]
    """None: the trial has no value."""
    labels: Sequence[tuple[float, str]]
    """Place and text."""


def of_numbers(name: str, values: Sequence[float | None], log: bool = False, text: str = "{:.3g}") -> Axis:
    """Return an axis of numbers, from the lowest to the highest.

    Args:
        values: of each trial, at least one of which has one.
    """
    known = [value for value in values if value is not None]
    low, high = min(known), max(known)

    def place(value: float) -> float:
        if high == low:
            return 0.5
        return math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)

    ends = ((0.0, text.format(low)), (1.0, text.format(high))) if high > low else ((0.5, text.format(low)),)
    return Axis(name, [None if value is None else place(value) for value in values], ends)


def of_choices(name: str, values: Sequence[object], choices: Sequence[object] = ()) -> Axis:
    """Return an axis of choices; a trial with None has no place on it.

    Args:
        values: of each trial.
        choices: from bottom to top; values that are none of these, and those without choices, follow as they occur.
    """
    whole = [None if value is None else brief(value, _WHOLE) for value in values]
    occurring = {text for text in whole if text is not None}
    ordered = (text for text in (brief(choice, _WHOLE) for choice in choices) if text in occurring)
    known = [*dict.fromkeys([*ordered, *(text for text in whole if text is not None)])]
    place = {text: (number / (len(known) - 1) if len(known) > 1 else 0.5) for number, text in enumerate(known)}
    labels = [(place[text], shortened(text, _LONGEST)) for text in known[:: math.ceil(len(known) / _MOST_LABELS) or 1]]
    return Axis(name, [None if text is None else place[text] for text in whole], labels)


def coordinates(axes: Sequence[Axis], description: str) -> str:
    """Return parallel coordinates: a line for each trial through its values, past the axes on which it has none.

    Args:
        axes: with a place for each trial, the best trial first.
        description: what it shows, for readers who cannot see it.
    """
    across, width = _across(axes)
    count = min(len(axes[0].places), MAX_LINES)
    parts = []
    for trial in reversed(range(count)):
        places = ((x, axis.places[trial]) for x, axis in zip(across, axes, strict=True))
        points = [(x, _down(place)) for x, place in places if place is not None]
        parts.append(_line(points, trial, count))
    for x, axis in zip(across, axes, strict=True):
        parts.append(f'<path d="M{x:.1f} {_TOP}V{_HEIGHT - _BOTTOM}" stroke="currentColor" stroke-opacity=".45"/>')
        parts.append(_text(x, _TOP - 16, axis.name, "middle", 'font-weight="600"'))
        parts += [_text(x + _BESIDE, _down(place) + 4, text) for place, text in axis.labels]
    return _svg(parts, description, width)


def curves(lines: Sequence[Sequence[float]], y_name: str, percent: bool, description: str) -> str:
    """Return the score of some trials after each epoch, the best trial first."""
    every = [value for line in lines for value in line]
    low, high, most = min(every), max(every), max(map(len, lines))
    span = (high - low) or 1.0
    text = "{:.1%}" if percent else "{:.3g}"

    def point(epoch: int, value: float) -> tuple[float, float]:
        return _SIDE + (_WIDTH - 2 * _SIDE) * (epoch / max(most - 1, 1)), _down((value - low) / span)

    parts = []
    for place in reversed(range(len(lines))):
        thin = max(1, math.ceil(len(lines[place]) / _MAX_POINTS))
        points = [point(epoch, value) for epoch, value in enumerate(lines[place]) if epoch % thin == 0]
        # A training of one epoch is a point.
        parts.append(
            _line(points if len(points) > 1 else [*points, (points[0][0] + 3, points[0][1])], place, len(lines))
        )
    parts.append(
        f'<path d="M{_SIDE} {_TOP}V{_HEIGHT - _BOTTOM}H{_WIDTH - _SIDE}" fill="none" stroke="currentColor" '
        'stroke-opacity=".45"/>'
    )
    parts += [_text(_SIDE - 6, _down(place) + 4, text.format(low + span * place), "end") for place in (0.0, 0.5, 1.0)]
    parts.append(_text(_SIDE, _TOP - 16, y_name))
    parts.append(_text(_WIDTH - _SIDE, _HEIGHT - 8, f"epoch {most}", "end"))
    return _svg(parts, description)


def _across(axes: Sequence[Axis]) -> tuple[list[float], float]:
    """Return where each axis is, and how wide the picture is: so that no text reaches into that of the next axis."""
    names = [_BOLD * len(axis.name) / 2 for axis in axes]
    right = [
        max(name, _BESIDE + _LETTER * max((len(text) for _, text in axis.labels), default=0))
        for name, axis in zip(names, axes, strict=True)
    ]
    steps = [before + name + _GAP for before, name in zip(right, names[1:], strict=False)]
    start, end = max(_SIDE, names[0]), max(_SIDE, right[-1])
    spare = max(0.0, _WIDTH - start - end - sum(steps)) / max(len(steps), 1)
    across = [start, *(start + total + spare * number for number, total in enumerate(accumulate(steps), 1))]
    return across, across[-1] + end


def _down(place: float) -> float:
    return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - place)


def _line(points: Sequence[tuple[float, float]], rank: int, count: int) -> str:
    """Return a line, the fainter the worse its trial is."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    colour, width = (BEST, 2.4) if not rank else (OTHERS, 1.3)
    opacity = 1 if not rank else 0.75 - 0.6 * rank / count
    return (
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}" '
        f'stroke-opacity="{opacity:.2f}"/>'
    )


def _text(x: float, y: float, text: str, anchor: str = "start", more: str = "") -> str:
    words = escape(text if len(text) <= _LONGEST + 4 else f"{text[: _LONGEST + 3]}…")
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{words}</text>'


def _svg(parts: Sequence[str], description: str, width: float = _WIDTH) -> str:
    """Return a picture as wide as the page, but not so narrow that its labels cannot be read."""
    label = escape(description, {'"': "&quot;"})
    return (
        f'<svg viewBox="0 0 {width:.0f} {_HEIGHT}" role="img" aria-label="{label}" font-size="13" fill="currentColor" '
        f'style="max-width:none;min-width:{_SMALLEST * width:.0f}px">{"".join(parts)}</svg>'
    )
