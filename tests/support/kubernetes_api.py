"""A simulated Kubernetes API on loopback: it accepts jobs, and keeps what it was sent. No pod is ever started."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Cluster(ThreadingHTTPServer):
    """The cluster; `jobs` are the manifests that it was sent, with the namespaces of their addresses."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.jobs: list[tuple[str, dict[str, Any]]] = []

    @property
    def configuration(self) -> dict[str, Any]:
        """What clients find the cluster by, in the form of a kubeconfig; its context is `simulated`."""
        cluster = {"name": "simulated", "cluster": {"server": f"http://127.0.0.1:{self.server_port}"}}
        context = {"name": "simulated", "context": {"cluster": "simulated", "user": "nobody"}}
        kinds = {"clusters": [cluster], "contexts": [context], "users": [{"name": "nobody", "user": {}}]}
        return {"apiVersion": "v1", "kind": "Config", "current-context": "simulated", **kinds}


class _Handler(BaseHTTPRequestHandler):
    server: Cluster

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prefix, _, rest = self.path.partition("/namespaces/")
        namespace, _, kind = rest.partition("/")
        if (prefix, kind.partition("?")[0]) != ("/apis/batch/v1", "jobs"):
            self._answer(404, {"kind": "Status", "status": "Failure", "code": 404})
            return
        self.server.jobs.append((namespace, body))
        name = f"{body['metadata']['generateName']}{uuid.uuid4().hex[:5]}"
        made = {"name": name, "namespace": namespace, "uid": str(uuid.uuid4())}
        self._answer(201, {**body, "metadata": {**body["metadata"], **made}})

    def do_GET(self) -> None:
        self._answer(404, {"kind": "Status", "status": "Failure", "code": 404})

    def _answer(self, code: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@contextmanager
def simulated_cluster() -> Iterator[Cluster]:
    with Cluster() as cluster:
        thread = threading.Thread(target=cluster.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield cluster
        finally:
            cluster.shutdown()
            thread.join()
