"""How a request is refused: a status and one sentence."""

from __future__ import annotations

from fastapi.responses import JSONResponse


class Refused(Exception):
    """Ends a request with a status and one sentence."""

    def __init__(self, status: int, sentence: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, headers


def refused(status: int, sentence: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return the response to a request that is refused: `{"error": sentence}`."""
    return JSONResponse({"error": sentence}, status, {"cache-control": "no-store", **(headers or {})})
