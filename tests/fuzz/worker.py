"""The process that fuzzes: `python -m tests.fuzz.worker TARGET FOLDER [libFuzzer options]`. It never returns."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import atheris

GUIDED_BY = {"idx": ["storage.formats.idx"], "manifest": ["storage.datasets", "tomllib"]}
"""Modules whose branches guide the search, by target; they must not be imported before."""
LIMITS = ("-rss_limit_mb=2048", "-timeout=60")


def main(target: str, folder: str, *options: str) -> None:
    """Fuzz `target` with its seeds and its words, put in `folder` first."""
    with atheris.instrument_imports(include=GUIDED_BY[target]):
        module = importlib.import_module(f"tests.fuzz.{target}_target")
    corpus, words = Path(folder, "corpus"), Path(folder, "words")
    corpus.mkdir()
    for number, seed in enumerate(module.seeds()):
        (corpus / f"seed-{number:03d}").write_bytes(seed)
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in module.WORDS), encoding="ascii")
    atheris.Setup([sys.argv[0], f"-dict={words}", *LIMITS, *module.OPTIONS, *options, str(corpus)], module.check)
    atheris.Fuzz()


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


if __name__ == "__main__":
    main(*sys.argv[1:])
