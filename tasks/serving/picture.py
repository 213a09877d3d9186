"""Read one picture as grey pixels: PNG, JPEG, BMP, TIFF or GIF."""

from __future__ import annotations

import io
import struct
import tokenize
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from storage.errors import FormatError
from storage.files import open_regular

if TYPE_CHECKING:
    from PIL import Image

FORMATS: tuple[str, ...] = ("PNG", "JPEG", "BMP", "TIFF", "GIF")
BEGINNINGS = (b"\x89PNG", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*", b"GIF8")
"""The first bytes of the files."""
MAX_BYTES = 1 << 28
BROKEN = (
    *(OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, struct.error, MemoryError, OverflowError),
    *(TypeError, RecursionError, tokenize.TokenError),
)
"""Exceptions of Pillow and NumPy for damaged files; neither documents a narrower set."""


@dataclass(frozen=True)
class Picture:
    """The grey pixels of a picture, and what was lost on the way to them."""

    pixels: np.ndarray
    """uint8 of shape (height, width), upright."""
    was_colour: bool
    """Its grey values are those of ITU-R 601: 0.299 red, 0.587 green, 0.114 blue."""
    frames: int
    """How many it has; only the first is used."""
    warning: str = ""
    """What Pillow warns of, such as damaged EXIF data; empty if of nothing."""


def read_file(path: Path, name: str = "") -> Picture:
    """Return the picture in a file, by the name that messages give it.

    Raises:
        FormatError: see `read`, or it is larger than any picture.
        OSError: it cannot be read.
    """
    with open_regular(path) as stream:
        data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise FormatError(f"{name or path}: expected at most {MAX_BYTES:,} bytes; it has more; scale it down")
    return read(data, name or str(path))


def read(data: bytes, name: str, formats: tuple[str, ...] = FORMATS, max_pixels: int | None = None) -> Picture:
    """Return the picture in the bytes of a file; nothing in it is executed.

    Args:
        formats: that it can have.
        max_pixels: fewer than Pillow allows, by the size in the header; None: as many as that.

    Raises:
        FormatError: it is damaged, too large, has more than 8 bits per channel, or transparent pixels.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            # Pillow only warns between its limit and twice that.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=formats) as picture:
                _check_size(name, picture, max_pixels)
                _check_depth(data, name, picture)
                frames = getattr(picture, "n_frames", 1)
                pixels, was_colour = _grey(name, picture)
                warning = f"{name}: {' '.join(str(warned[0].message).split())}" if warned else ""
                return Picture(pixels, was_colour, frames, warning)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise FormatError(
            f"{name}: expected at most {Image.MAX_IMAGE_PIXELS:,} pixels; {error}; scale it down"
        ) from error
    except BROKEN as error:
        raise FormatError(
            f"{name}: expected an undamaged {', '.join(formats[:-1])} or {formats[-1]}; {_words(error)}; "
            "copy or save it again"
        ) from error


def _words(error: BaseException) -> str:
    """Return what is wrong, without the object that the bytes were read from."""
    return "it is none of these" if "cannot identify image file" in str(error) else str(error)


def _check_size(name: str, picture: Image.Image, max_pixels: int | None) -> None:
    width, height = picture.size
    if max_pixels is not None and width * height > max_pixels:
        raise FormatError(f"{name}: expected at most {max_pixels:,} pixels; found {height}×{width}; scale it down")


def _check_depth(data: bytes, name: str, picture: Image.Image) -> None:
    """Refuse more than 8 bits per channel: of most such PNG files, Pillow silently takes the upper 8 bits.

    PNG, third edition, 11.2.1: the header has the bit depth at byte 24 of the file.
    """
    depth = data[24] if picture.format == "PNG" else 16 if picture.mode.startswith(("I", "F")) else 8
    if depth > 8:
        raise FormatError(
            f"{name}: expected at most 8 bits per channel; found {depth}; "
            "convert it to 8-bit grey, such as in ImageMagick: magick OLD -colorspace gray -depth 8 NEW"
        )


def _grey(name: str, picture: Image.Image) -> tuple[np.ndarray, bool]:
    """Return the picture in 8-bit grey, rotated upright by its EXIF orientation, and whether it was in colour."""
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(picture)
    if upright.mode in ("L", "1") and not upright.has_transparency_data:
        return np.asarray(upright.convert("L")), False
    if upright.has_transparency_data and np.asarray(upright.convert("RGBA").getchannel("A")).min() < 255:
        raise FormatError(f"{name}: expected an opaque picture; it has transparent pixels; put it on a background")
    colours = upright.convert("RGB")
    red, green, blue = (np.asarray(channel) for channel in colours.split())
    was_colour = not (np.array_equal(red, green) and np.array_equal(green, blue))
    return np.asarray(colours.convert("L")), was_colour
