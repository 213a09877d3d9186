"""Fuzz one target and say what libFuzzer says."""

from __future__ import annotations

import sys

from tests.fuzz import fuzz

if __name__ == "__main__":
    target, runs, *options = sys.argv[1:]
    process = fuzz(target, int(runs), options)
    sys.stderr.write(process.stderr)
    sys.exit(process.returncode)
