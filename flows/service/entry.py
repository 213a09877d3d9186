"""Log a browser in: a link that works once, within a short time.

The link's token follows a `#`, so the browser does not send it in the request, and it appears in no log. The page at
the link sends the token back as JSON and receives the auth string, which it stores where Prefect's UI looks for it.
The private folder holds only the token's digest, as the name of a file: the request that removes that file has used
the link.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from flows.service.guard import Application, Message, Receive, Send, answer

PATH = "/enter"
SECONDS = 900
_LONGEST_BODY = 1000
# Both versions of Prefect's UI look there.
_SCRIPT = """
const say = words => { document.querySelector("p").textContent = words };
const token = location.hash.slice(1);
history.replaceState(null, "", location.pathname);
async function enter() {
  const headers = { "Content-Type": "application/json" };
  const answer = await fetch(location.pathname, { method: "POST", headers, body: JSON.stringify({ token }) });
  const found = await answer.json();
  if (!answer.ok) return say(found.detail);
  localStorage.setItem("prefect-password", btoa(found.auth_string));
  location.replace("/v2/dashboard");
}
enter().catch(() => say("The server does not answer; is `idxflow up` still running?"));
"""
_STYLE = "body { font: 1.1rem system-ui, sans-serif; margin: 20vh auto; max-width: 36rem; padding: 1rem }"
_PAGE = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>idxflow</title>'
    f"<style>{_STYLE}</style></head><body><p>Opening the Prefect UI …</p>"
    f'<noscript>The Prefect UI needs JavaScript.</noscript><script type="module">{_SCRIPT}</script></body></html>'
)


def link(folder: Path, ui: str, now: Callable[[], float] = time.time) -> str:
    """Return a link that lets one browser in, once, within 15 minutes; its token's digest is stored in `folder`."""
    folder.mkdir(mode=0o700, exist_ok=True)
    _forget(folder, now())
    token = secrets.token_urlsafe(32)
    _file(folder, token).write_text(str(now() + SECONDS), encoding="utf-8")
    return f"{ui}{PATH}#{token}"


def use(folder: Path, token: str, now: Callable[[], float] = time.time) -> bool:
    """Use a token and return whether it is valid. It is valid only once, even if two requests arrive together."""
    path = _file(folder, token)
    try:
        until = float(path.read_text(encoding="utf-8"))
        # Of several requests at once, only one can remove it.
        path.unlink()
    except (FileNotFoundError, ValueError):
        return False
    return now() < until


def entrance(folder: Path, auth_string: str) -> Application:
    """Return the application at the link: the page, and the endpoint to which it sends its token."""

    async def application(scope: Message, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            return await _show(send)
        token = await _token(receive)
        if token and use(folder, token):
            return await answer(send, 200, {"auth_string": auth_string})
        refusal = "This link was used before, or is older than 15 minutes. Run `idxflow up` again for a new one."
        return await answer(send, 403, {"detail": refusal})

    return application


async def _token(receive: Receive) -> str | None:
    body, more = b"", True
    while more and len(body) <= _LONGEST_BODY:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    try:
        token = json.loads(body)["token"]
    except (ValueError, KeyError, TypeError):
        return None
    return token if isinstance(token, str) else None


async def _show(send: Send) -> None:
    policy = (
        f"default-src 'none'; script-src '{_digest(_SCRIPT)}'; style-src '{_digest(_STYLE)}'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = [
        (b"content-type", b"text/html; charset=utf-8"),
        (b"cache-control", b"no-store"),
        (b"content-security-policy", policy.encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": _PAGE.encode()})


def _digest(inline: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()


def _file(folder: Path, token: str) -> Path:
    return folder / hashlib.sha256(token.encode(errors="replace")).hexdigest()


def _forget(folder: Path, now: float) -> None:
    """Remove expired links."""
    for path in folder.iterdir():
        with suppress(FileNotFoundError, ValueError):
            if float(path.read_text(encoding="utf-8")) < now:
                path.unlink()
