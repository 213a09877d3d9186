"""Which processor this is: TensorFlow and NumPy choose kernels by it, and those of another one round differently."""

from __future__ import annotations

import platform
import re
from functools import cache
from pathlib import Path

_INFO = Path("/proc/cpuinfo")
_MODEL = re.compile(r"^(?:model name|CPU part|cpu)\s*:\s*(.+)$", re.MULTILINE)
_SETS = re.compile(r"^(?:flags|Features)\s*:\s*(.+)$", re.MULTILINE)
_FOR_ARITHMETIC = re.compile(r"sse4_[12]|(avx|amx|asimd|sve)\w*|fma4?|f16c|sme2?|bf16|i8mm")


@cache
def described() -> str:
    """Return the processor's name and those of its instruction sets that arithmetic uses, such as `AMD EPYC: avx avx2`.

    The sets are left out where the system does not tell them.
    """
    try:
        return described_in(_INFO.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return described_in("")


def described_in(text: str) -> str:
    """Return the same of a text like that of `/proc/cpuinfo`; without a name in it, that which Python knows."""
    model, sets = _MODEL.search(text), _SETS.search(text)
    name = " ".join((model[1] if model else platform.processor() or platform.machine()).split())
    useful = sorted({each for each in sets[1].split() if _FOR_ARITHMETIC.fullmatch(each)}) if sets else []
    return f"{name}: {' '.join(useful)}" if useful else name


def changed(old: str, new: str) -> str:
    """Return how one processor differs from another one (`described`), in words; empty if it does not."""
    if old == new:
        return ""
    (name, _, sets), (name_now, _, sets_now) = (each.partition(": ") for each in (old, new))
    lost, gained = ({*first.split()} - {*second.split()} for first, second in ((sets, sets_now), (sets_now, sets)))
    words = [f"{name} → {name_now}"] if name != name_now else [name]
    words += [f"without {', '.join(sorted(lost))}"] if lost and sets_now else []
    words += [f"now with {', '.join(sorted(gained))}"] if gained and sets else []
    return "; ".join(words)
