"""Imported when Python starts with this folder in PYTHONPATH: commands of a test marked `remedies` note refusals."""

import sys
from pathlib import Path

_ROOT = str(Path(__file__).resolve().parents[3])
sys.path.insert(0, _ROOT)
from tests.support import refusals  # noqa: E402

sys.path.remove(_ROOT)
refusals.note_if_asked()
