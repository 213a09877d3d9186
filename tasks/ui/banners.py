"""Filter out the meaningless messages that libraries write to standard error while they load."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_BANNERS = (
    b"I0000 ",
    b"WARNING: All log messages before absl::InitializeLog()",
    # Of LiteRT's interpreter: how it computes.
    b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU.",
)


@contextmanager
def without_banners() -> Iterator[None]:
    """Capture what C++ code of TensorFlow or LiteRT writes to standard error, and pass on all but its banners.

    `TF_CPP_MIN_LOG_LEVEL` does not reach these lines (tensorflow/tensorflow#100442).
    """
    with suppress(OSError, ValueError, AttributeError):
        sys.stderr.flush()
    try:
        saved = os.dup(2)
    except OSError:
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            held.seek(0)
            for line in held:
                if not line.startswith(_BANNERS):
                    os.write(2, line)
