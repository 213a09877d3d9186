"""The images in the body of a request: a PNG or JPEG, an array of NumPy, or JSON. Nothing in it is executed."""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flows.web.limits import RequestLimits
from flows.web.refusals import Refused
from flows.web.served import JSON_TYPE, NPY_TYPES, PICTURE_TYPES
from storage.errors import FormatError
from tasks.serving import image_files, picture
from tasks.serving.image_files import ImageOptions

_NAME = "the body"
_FORMS = (
    '{"images": [IMAGE, …]}, {"image": IMAGE} or [IMAGE, …], each IMAGE an array of rows of pixels, or a PNG or JPEG '
    "in base64"
)
_MAX_ID = 200
"""Characters of an id."""


@dataclass(frozen=True)
class Asked:
    """The images that a request asks about."""

    images: np.ndarray
    """uint8 of shape (n, height, width), as the model takes them."""
    ids: tuple[str, ...] | None = None
    """What the client calls them, one for each; None if it does not."""


Say = Callable[[str], None]


def read(media_type: str, body: bytes, options: ImageOptions, limits: RequestLimits, say: Say) -> Asked:
    """Return the images of a request.

    Args:
        media_type: one of `site.MEDIA_TYPES`.
        options: what the model takes, and how they may be changed to that.
        say: called with a remark if an image was changed, or may not be what the model knows.

    Raises:
        Refused: 400 if they cannot be read or used, 413 if they are too many or too large, 415 if the type is unknown.
    """
    try:
        if media_type in PICTURE_TYPES:
            return Asked(image_files.prepared(_NAME, _picture(_NAME, body, limits, say), options, say))
        if media_type in NPY_TYPES:
            return Asked(image_files.prepared(_NAME, _limited(_npy(body), limits), options, say))
        if media_type == JSON_TYPE:
            return _json(body, options, limits, say)
    except FormatError as error:
        raise Refused(400, str(error)) from error
    types = ", ".join((JSON_TYPE, *PICTURE_TYPES, *NPY_TYPES))
    raise Refused(415, f"expected a body of type {types}; found {media_type[:100]!r}; name it in Content-Type")


def _picture(name: str, data: bytes, limits: RequestLimits, say: Say) -> np.ndarray:
    found = picture.read(data, name, ("PNG", "JPEG"), limits.pixels)
    if found.was_colour:
        say(image_files.colour_remark(name))
    if found.warning:
        say(f"{found.warning} (it can be read)")
    return found.pixels


def _npy(body: bytes) -> np.ndarray:
    """Return the array in a .npy file. The header is compared with the bytes before any memory is allocated."""
    stream = io.BytesIO(body)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, by_columns, dtype = read_header(stream)
        follow = len(body) - stream.tell()
        if dtype.hasobject or dtype.itemsize * math.prod(shape) != follow:
            raise ValueError(f"its header says {dtype} of shape {shape}, and {follow:,} bytes follow")
        array = np.frombuffer(body, dtype, offset=stream.tell())
        return array.reshape(shape, order="F" if by_columns else "C")
    except picture.BROKEN as error:
        raise Refused(
            400,
            f"{_NAME}: expected an undamaged .npy file without Python objects; {error}; "
            "write it again, in NumPy with np.save of an array of uint8",
        ) from error


def _json(body: bytes, options: ImageOptions, limits: RequestLimits, say: Say) -> Asked:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"{_NAME}: expected JSON; {error}; correct it, or the Content-Type") from error
    given, ids = _given(value)
    if isinstance(given, list) and _are_pixels(given):
        return _with_ids(image_files.prepared(_NAME, _limited(_pixels(_NAME, given), limits), options, say), ids)
    if not isinstance(given, list) or not given:
        raise Refused(400, f"{_NAME}: expected {_FORMS}; found {_kind(given)}; give one of these")
    _check_count(len(given), limits)
    return _with_ids(np.concatenate([*_each(given, options, limits, say)]), ids)


def _given(value: Any) -> tuple[Any, Any]:
    """Return the images of a JSON value, or the one image in a list, and the ids, unchecked."""
    if not isinstance(value, dict):
        return value, None
    unknown = [key for key in value if key not in ("images", "image", "ids", "id")]
    if unknown or ("images" in value) == ("image" in value):
        keys = ", ".join(map(repr, value))[:100] or "none"
        raise Refused(400, f"{_NAME}: expected the key images or image, and ids or id; found {keys}; correct the keys")
    other = "ids" if "image" in value else "id"
    if other in value:
        raise Refused(
            400,
            f"{_NAME}: expected ids beside images, or id beside image; found {other!r} beside the other; rename it",
        )
    if "image" in value:
        return [value["image"]], [value["id"]] if "id" in value else None
    return value["images"], value.get("ids")


def _are_pixels(given: list) -> bool:
    """Return whether a list is one image, or images that are arrays of one size: then NumPy reads them at once."""
    if not all(isinstance(item, list) and item for item in given):
        return False
    return len({(len(item), len(item[0]) if isinstance(item[0], list) else None) for item in given}) == 1


def _each(given: list, options: ImageOptions, limits: RequestLimits, say: Say) -> Iterator[np.ndarray]:
    """Yield the images of JSON, each of shape (1, height, width)."""
    total = 0
    for row, item in enumerate(given):
        pixels = _one(f"image {row}", item, limits, say)
        total += pixels.size
        # Of each picture alone, it was looked at before it was inflated.
        if total > limits.pixels:
            raise Refused(
                413, f"expected at most {limits.pixels:,} pixels in a request; found more; send the images in several"
            )
        yield image_files.prepared(f"image {row}", pixels, options, say)


def _one(name: str, item: Any, limits: RequestLimits, say: Say) -> np.ndarray:
    """Return one image of JSON, of shape (height, width)."""
    if not isinstance(item, str):
        return _pixels(name, item, (2,))
    try:
        data = base64.b64decode(item, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(400, f"{name}: expected a PNG or JPEG in base64; {error}; encode it again") from error
    return _picture(name, data, limits, say)


def _pixels(name: str, item: Any, dimensions: tuple[int, ...] = (2, 3)) -> np.ndarray:
    """Return the pixels of JSON arrays as uint8, if they are whole numbers of 0-255 in rows of one length."""
    try:
        array = np.asarray(item)
    except (ValueError, OverflowError, RecursionError):
        array = np.empty(0, object)
    if array.dtype.kind not in "iu" or array.ndim not in dimensions or 0 in array.shape:
        found = f"{array.dtype} of shape {array.shape}" if array.size and array.dtype != object else "something else"
        raise Refused(
            400,
            f"{name}: expected rows of one length with pixels as whole numbers of 0-255; found {found}; "
            "give such rows for each image, not one flat list",
        )
    if array.min() < 0 or array.max() > 255:
        raise Refused(
            400, f"{name}: expected pixels of 0-255; found {array.min()} to {array.max()}; scale them to that range"
        )
    return array.astype(np.uint8)


def _limited(array: np.ndarray, limits: RequestLimits) -> np.ndarray:
    if array.ndim == 3:
        _check_count(len(array), limits)
    return array


def _check_count(count: int, limits: RequestLimits) -> None:
    if count > limits.images:
        raise Refused(
            413, f"expected at most {limits.images:,} images in a request; found {count:,}; send them in several"
        )


def _with_ids(images: np.ndarray, ids: Any) -> Asked:
    if ids is None:
        return Asked(images)
    if not isinstance(ids, list) or len(ids) != len(images) or len({*map(str, ids)}) != len(ids):
        found = f"{len(ids)} of them" if isinstance(ids, list) else _kind(ids)
        raise Refused(400, f"{_NAME}: expected an id of its own for each of {len(images)}; found {found}; correct them")
    return Asked(images, _checked_ids(ids))


def _checked_ids(ids: Sequence[Any]) -> tuple[str, ...]:
    for given in ids:
        if not isinstance(given, str) or not 0 < len(given) <= _MAX_ID or not given.isprintable():
            raise Refused(
                400,
                f"{_NAME}: expected ids as text of 1-{_MAX_ID} printable characters; found {given!r:.100}; change it",
            )
    return tuple(ids)


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "an empty array", str: "text", bool: "a truth value", type(None): "null"}
    return kinds.get(type(value), "a number")
