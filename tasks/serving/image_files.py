"""Read images from users' files: IDX, pictures, NumPy. Nothing in a file is executed."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from storage.errors import ConfigError, FormatError
from storage.files import alike, kind_of, open_regular
from storage.formats import idx
from tasks.serving import picture

READ_AT_ONCE = 8192
_BLOCK_BYTES = 1 << 26
"""Maximum bytes read at a time, for any image size; at least one image is read."""
MAX_NPZ_BYTES = 1 << 32
"""Maximum inflated size of all arrays of one `.npz` file."""


@dataclass(frozen=True)
class ImageOptions:
    """The size that images should have, and the transformations allowed."""

    image_shape: tuple[int, int]
    """Height and width in pixels."""
    pixel_range: tuple[int, int] = (0, 255)
    """The values of black and white in the images that the model was trained on."""
    resize: bool = False
    scale: bool = False
    invert: bool = False
    spelling: str = "--{}"
    """How a person asks for a transformation, for messages."""

    def spelled(self, option: str) -> str:
        """Return how a person asks for `resize`, `scale` or `invert`."""
        return self.spelling.format(option)


Say = Callable[[str], None]
"""Takes a remark about how an image was transformed."""


def check_is_file(path: Path) -> None:
    """Check that `path` is a file.

    Raises:
        ConfigError: it is not.
    """
    if not path.is_file():
        raise ConfigError(f"expected an image file at {path}; found {kind_of(path)}{alike(path)}; correct the path")


def beginning(path: Path) -> bytes:
    """Return the first 8 bytes of a file, by which its kind is known.

    Raises:
        ConfigError: it cannot be opened.
    """
    try:
        with open_regular(path) as stream:
            return stream.read(8)
    except OSError as error:
        raise ConfigError(
            f"expected a file that can be read at {path}; {error.strerror}; correct its permissions"
        ) from error


def read(path: Path, options: ImageOptions, say: Say) -> Iterator[np.ndarray]:
    """Yield the images of a file in blocks, uint8 of shape (n, height, width), of the size and range asked for.

    Args:
        say: called with a remark, once per file and kind, if an image was transformed.

    Raises:
        ConfigError: the file cannot be opened.
        FormatError: it is damaged, of an unknown kind, or its images cannot be used as they are.
    """
    for images in _reader(path, beginning(path))(path, say):
        yield prepared(str(path), images, options, say)


def prepared(name: str, pixels: np.ndarray, options: ImageOptions, say: Say) -> np.ndarray:
    """Return images as a model takes them, uint8 of shape (n, height, width), of the size and range asked for.

    Args:
        name: of where they come from, for messages.
        pixels: of shape (n, height, width), or (height, width) for one image.
        say: called with a remark if an image was transformed, or may not be what the model knows.

    Raises:
        FormatError: they cannot be used as they are.
    """
    images = _checked(name, pixels)
    if images.ndim == 2:
        _check_not_flat(name, images, options)
        images = images[np.newaxis]
    return _in_range(name, _fitted(name, images, options, say), options, say)


def if_inverted(name: str, inverted: int, rows: int, options: ImageOptions) -> str | None:
    """Return a remark if most of the `rows` images look inverted: an odd one among thousands is no reason to doubt."""
    if 2 * inverted <= rows:
        return None
    which = "the image" if rows == 1 else f"{inverted:,} of {rows:,} images"
    looks = "looks" if rows == 1 else "look"
    flag = options.spelled("invert")
    remedy = f"without {flag} they would match" if options.invert else f"{flag} inverts them"
    return f"{name}: {which} {looks} inverted, compared with the training images; {remedy}"


def colour_remark(name: str) -> str:
    """Return the remark about a picture in colour."""
    return f"{name} is a colour image; its grey values are used (ITU-R 601: 0.299 red, 0.587 green, 0.114 blue)"


def _reader(path: Path, magic: bytes) -> Callable[[Path, Say], Iterator[np.ndarray]]:
    """Choose a reader by the magic bytes of the file, because names can be wrong."""
    readers: dict[bytes, Callable[[Path, Say], Iterator[np.ndarray]]] = {
        **dict.fromkeys(picture.BEGINNINGS, _picture),
        b"\x93NUMPY": _npy,
        b"PK": _npz,
        b"\x1f\x8b": _idx,
        b"\0\0": _idx,
    }
    for start, reader in readers.items():
        if magic.startswith(start):
            return reader
    content = f"one that begins with the bytes {magic[:4].hex()}" if magic else "an empty file"
    raise FormatError(
        f"{path}: expected IDX (plain or gzip), PNG, JPEG, BMP, TIFF, GIF, .npy or .npz; found {content}; convert it "
        "to one of these"
    )


def _idx(path: Path, say: Say) -> Iterator[np.ndarray]:
    with idx.Reader(path, str(path)) as reader:
        if len(reader.header.shape) == 2:
            yield reader.read()
            return
        yield from reader.blocks(max(1, min(READ_AT_ONCE, _BLOCK_BYTES // reader.header.row_bytes)))


def _npy(path: Path, say: Say) -> Iterator[np.ndarray]:
    try:
        # Mapped, not read, so that a header with a false size is detected before memory is allocated.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except picture.BROKEN as error:
        raise FormatError(
            f"{path}: expected an undamaged .npy file without Python objects; {error}; "
            "write it again, in NumPy with np.save of an array of uint8"
        ) from error
    yield from _blocks(_checked(str(path), array))


def _npz(path: Path, say: Say) -> Iterator[np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > MAX_NPZ_BYTES:
            raise ValueError(f"it holds {size:,} bytes, more than {MAX_NPZ_BYTES:,}")
        with np.load(path, allow_pickle=False) as file:
            array = _images_of(file)
    except (*picture.BROKEN, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise FormatError(
            f"{path}: expected an undamaged .npz file without Python objects; {error}; "
            "write it again, in NumPy with np.savez(…, images=…)"
        ) from error
    yield from _blocks(_checked(str(path), array))


def _images_of(file: Any) -> np.ndarray:
    """Return the array `images` or, failing that, the first array with three dimensions."""
    for name in ["images"] if "images" in file.files else file.files:
        array: np.ndarray = file[name]
        if array.ndim == 3 or name == "images":
            return array
    raise ValueError(f"expected an array named images or one of 3 dimensions; found {', '.join(file.files) or 'none'}")


def _blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    if array.ndim == 2:
        yield array
        return
    for start in range(0, len(array), READ_AT_ONCE):
        yield array[start : start + READ_AT_ONCE]


def _checked(name: str, array: np.ndarray) -> np.ndarray:
    """Return `array` if it can be images of 8-bit pixels, or a single one if it has two dimensions."""
    if array.dtype != np.uint8:
        raise FormatError(
            f"{name}: expected pixels as uint8, 0-255; found {array.dtype.name}{_range(array)}; "
            "scale to 0-255 and convert, in NumPy with .astype(np.uint8)"
        )
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise FormatError(
            f"{name}: expected images of shape (n, height, width) or (height, width); found {array.shape}; "
            "give grey images, not labels or colour ones"
        )
    return array


def _range(array: np.ndarray) -> str:
    if not array.size or not np.issubdtype(array.dtype, np.number) or np.iscomplexobj(array):
        return ""
    return f" from {array.min():g} to {array.max():g}"


def _picture(path: Path, say: Say) -> Iterator[np.ndarray]:
    found = picture.read_file(path)
    if found.was_colour:
        say(colour_remark(str(path)))
    if found.warning:
        say(f"{found.warning} (it can be read)")
    if found.frames > 1:
        say(f"{path} has {found.frames:,} frames; the first one is used")
    yield found.pixels[np.newaxis]


def _check_not_flat(name: str, image: np.ndarray, options: ImageOptions) -> None:
    """Refuse an array of two dimensions with as many columns as an image has pixels: it has an image per row."""
    height, width = options.image_shape
    if image.shape != options.image_shape and image.shape[1] == height * width:
        raise FormatError(
            f"{name}: expected images of {height}×{width}; found {len(image):,} rows of {height * width:,} pixels; "
            f"give them their shape, in NumPy with .reshape(-1, {height}, {width}), or with [None] if it is one image"
        )


def _fitted(name: str, images: np.ndarray, options: ImageOptions, say: Say) -> np.ndarray:
    shape: tuple[int, ...] = images.shape[1:]
    target = options.image_shape
    if shape == target:
        return np.ascontiguousarray(images)
    if not options.resize:
        raise FormatError(
            f"{name}: expected images of {_size(target)} pixels (height×width); found {_size(shape)}; "
            f"{options.spelled('resize')} scales them"
        )
    if shape[0] * target[1] != shape[1] * target[0]:
        say(f"{name} has images of {_size(shape)}, stretched to {_size(target)}: their proportions changed")
    return _resized(images, target)


def _in_range(name: str, images: np.ndarray, options: ImageOptions, say: Say) -> np.ndarray:
    """Rescale from 0-255 or invert pixel values, as the options ask; remark on values outside the training range."""
    black, white = options.pixel_range
    if options.scale:
        images = np.rint(black + images * ((white - black) / 255)).astype(np.uint8)
    elif images.max() > white or images.min() < black:
        say(
            f"{name} has pixels from {images.min()} to {images.max()}, but the model was trained on pixels from "
            f"{black} to {white}: its predictions mean little; {options.spelled('scale')} maps 0-255 to that range"
        )
    return np.clip(black + white - images.astype(np.int16), 0, 255).astype(np.uint8) if options.invert else images


def _resized(images: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resize with Pillow's Lanczos filter, which averages over all source pixels of a target pixel (antialiasing)."""
    from PIL import Image

    size = (shape[1], shape[0])
    return np.stack([np.asarray(Image.fromarray(i).resize(size, Image.Resampling.LANCZOS)) for i in images])


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}×{shape[1]}"
