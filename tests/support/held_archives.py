"""A data set in parts whose archives come from a web server that keeps one of them back, so that a run stays under way.

All archives come from mirrors, so workers fetch those of which a role has several. Nothing uses a processor meanwhile.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import bars
from tests.support.faultserver import FaultServer, good, silent
from tests.support.listed_archives import write_listed


@dataclass(frozen=True)
class Held:
    manifest: Path
    server: FaultServer
    path: str
    """Of the archive that is kept back."""
    body: bytes

    @property
    def times(self) -> int:
        """How often that archive was asked for."""
        return self.server.request_count(self.path)

    def others(self) -> list[int]:
        """How often each of the others was asked for."""
        return [self.server.request_count(path) for path in self.server.answers if path != self.path]

    def done(self, store: Path) -> bool:
        """Return whether all that can be fetched is in a store: seven archives, and the list of those of a role."""
        return len(list(store.glob("listed/1-archives/*/entry.json"))) == len(self.others()) + 1

    def release(self) -> None:
        """Give that archive, too, from now on."""
        self.server.answers[self.path] = good(self.body)


@contextmanager
def held_archives(folder: Path) -> Iterator[Held]:
    """Write the data set and its manifest, and serve its archives while the block lasts."""
    dataset = write_listed(folder, bars(120, 30, 3, (9, 7)), [40, 40, 40], packed=False)
    bodies = {spec.file: (dataset.manifest.parent / str(dataset.source) / spec.file).read_bytes()
              for spec in dataset.archives}  # fmt: skip
    answers = {f"/{name}": good(body) for name, body in bodies.items()}
    name = next(spec.file for spec in dataset.archives_of("train-images") if spec.number == 2)
    answers[f"/{name}"] = silent
    with FaultServer(answers) as server:
        text = dataset.manifest.read_text(encoding="utf-8")
        lines = [_line(line, bodies, server.url()) for line in text.splitlines()]
        dataset.manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
        yield Held(dataset.manifest, server, f"/{name}", bodies[name])


def _line(line: str, bodies: dict[str, bytes], address: str) -> str:
    """Return a line of the manifest, changed so that archives come from an address, with their size and digest."""
    if line.startswith("source = "):
        return f'mirrors = ["{address}"]'
    if line.startswith("file = "):
        body = bodies[line.split('"')[1]]
        return f'{line}\nbytes = {len(body)}\nsha256 = "{hashlib.sha256(body).hexdigest()}"'
    return line
