"""Read what a form of a page sends: fields and one file (RFC 7578), from a body whose size was limited before."""

from __future__ import annotations

from dataclasses import dataclass
from email import policy
from email.parser import BytesParser

from flows.web.refusals import Refused
from flows.web.served import FORM_TYPE


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
    header = f"Content-Type: {content_type}\r\n\r\n".encode("latin-1", "replace")
    message = BytesParser(policy=policy.HTTP).parsebytes(header + body)
    if not message.is_multipart():
        raise Refused(400, "expected the parts of a form; found none; send the form again")
    form = Form({}, {})
    for each in message.iter_parts():
        name = str(each.get_param("name", "", "content-disposition"))
        content = each.get_payload(decode=True)
        if each.get_filename() is not None:
            form.files[name] = content if isinstance(content, bytes) else b""
        elif isinstance(content, bytes):
            form.fields[name] = content.decode(errors="replace")
    return form
