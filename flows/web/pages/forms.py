"""Read what a form of a page sends: fields and one file (RFC 7578), from a body whose size was limited before."""

from __future__ import annotations

from dataclasses import dataclass
from email.message import Message
from email.parser import BytesHeaderParser

from flows.web.refusals import Refused
from flows.web.served import FORM_TYPE

_MOST_PARTS = 16
_LONGEST_HEAD = 4096
"""Bytes of the headers of a part. Both are bounded because Python's parser takes minutes for megabytes of headers."""


@dataclass(frozen=True)
class Form:
    """The fields of a form, and the bytes of its files, each by name."""

    fields: dict[str, str]
    files: dict[str, bytes]


def read(content_type: str, body: bytes) -> Form:
    """Return what a form has sent.

    Args:
        content_type: the header, with the boundary.

    Raises:
        Refused: 415 if it is none, 400 if it cannot be read.
    """
    if content_type.partition(";")[0].strip().lower() != FORM_TYPE:
        raise Refused(
            415,
            f"expected a body of type {FORM_TYPE}; found {content_type[:100]!r}; "
            "programs send pictures to /v1/DATASET/predict",
        )
    form = Form({}, {})
    for head, content in _parts(content_type, body):
        name = str(head.get_param("name", "", "content-disposition"))
        # Not `get_filename`, which decodes it: that there is one is all that counts.
        if head.get_param("filename", None, "content-disposition") is None:
            form.fields[name] = content.decode(errors="replace")
        else:
            form.files[name] = content
    return form


def _parts(content_type: str, body: bytes) -> list[tuple[Message, bytes]]:
    """Return the headers and the content of each part."""
    header = Message()
    header["content-type"] = content_type[:_LONGEST_HEAD].encode("latin-1", "replace").decode("latin-1")
    boundary = header.get_param("boundary")
    if not isinstance(boundary, str) or not boundary:
        raise _unreadable("a boundary", "none")
    # The first delimiter need not follow a line (RFC 2046, 5.1.1).
    pieces = (b"\r\n" + body).split(b"\r\n--" + boundary.encode("latin-1", "replace"), _MOST_PARTS + 2)[1:]
    if not pieces:
        raise _unreadable("the parts of a form", "none")
    # What follows the last delimiter, `--`, is no part; if it is missing, the last part counts nevertheless.
    parts = [piece for piece in pieces if not piece.startswith(b"--")]
    if len(parts) > _MOST_PARTS:
        raise _unreadable(f"at most {_MOST_PARTS} parts of a form", "more")
    return [_part(piece) for piece in parts]


def _part(piece: bytes) -> tuple[Message, bytes]:
    head, found, content = piece.partition(b"\r\n\r\n")
    if not found or len(head) > _LONGEST_HEAD:
        raise _unreadable(f"headers of at most {_LONGEST_HEAD:,} bytes in each part of a form", "none or longer ones")
    return BytesHeaderParser().parsebytes(head.lstrip()), content


def _unreadable(expected: str, found: str) -> Refused:
    return Refused(400, f"expected {expected}; found {found}; send the form again")
