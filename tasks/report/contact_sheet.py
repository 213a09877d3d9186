"""Draw standalone pictures, as PNG or SVG: images side by side, each with lines of text below it."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from tasks.report import figures
from tasks.report.figures import Sheet

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

Kind = Literal["png", "svg"]

_SIDE, _FONT, _LINE, _GAP = 112, 15, 19, 18
"""Sizes in pixels: approximate side of an image, font, line of text, gap between two images."""
_INK = 0x1F
_LONGEST = 60


def columns_for(count: int) -> int:
    """Return how many images to put side by side: five for ten images, otherwise as many as make a wide picture."""
    return min(count, max(5, math.ceil(math.sqrt(2.5 * count))))


def draw(images: np.ndarray, captions: Sequence[Sequence[str]], kind: Kind) -> bytes:
    """Return a picture of `images` (uint8, shape (n, height, width), n >= 1) as ink on white paper.

    Args:
        images: in the order of the picture, row by row.
        captions: lines of text for each image, with any characters; long lines are cut.
        kind: PNG, for any use; SVG, which keeps text as text.
    """
    columns = columns_for(len(images))
    shown = [[_plain(line) for line in lines] for lines in captions]
    sheet = figures.sheet(images, columns)
    return figures.captioned(sheet, shown, columns).encode() if kind == "svg" else _png(sheet, shown)


def _plain(text: str) -> str:
    """Remove characters that XML cannot hold or that would disturb the picture."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text[:_LONGEST])


def _png(sheet: Sheet, captions: Sequence[Sequence[str]]) -> bytes:
    # The font bundled with Matplotlib: the same on every machine, with Latin, Greek, Cyrillic and more.
    import matplotlib as mpl
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(Path(mpl.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), _FONT)
    scale = max(1, round(_SIDE / max(sheet.height, sheet.width)))
    width, height = sheet.width * scale, sheet.height * scale
    cell = max(width, _SIDE) + _GAP
    pitch = height + _LINE * max(map(len, captions), default=0) + _GAP
    small = Image.open(io.BytesIO(sheet.png)).convert("L")
    paper = Image.new("L", (cell * sheet.columns, pitch * sheet.rows + _GAP // 2), 255)
    pen = ImageDraw.Draw(paper)
    for index, lines in enumerate(captions):
        row, column = divmod(index, sheet.columns)
        left, top = column * cell, row * pitch + _GAP // 2
        paper.paste(_sprite(small, sheet, (row, column), scale), (left + (cell - width) // 2, top))
        for number, line in enumerate(lines):
            place = (left + cell / 2, top + height + _LINE * (number + 1) - 2)
            pen.text(place, _cut(line, cell - 8, font), _INK, font, anchor="ms")
    buffer = io.BytesIO()
    paper.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _sprite(small: Image, sheet: Sheet, place: tuple[int, int], scale: int) -> Image:
    top, left = place[0] * sheet.height, place[1] * sheet.width
    image = small.crop((left, top, left + sheet.width, top + sheet.height))
    return image.resize((sheet.width * scale, sheet.height * scale), resample=0)


def _cut(text: str, width: int, font: FreeTypeFont) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
