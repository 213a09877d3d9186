"""What a run records of its processor, and how two of them are told apart."""

from __future__ import annotations

import re

import pytest

from storage.runtime import processor

X86 = "processor : 0\nmodel name : Some  CPU @ 2 GHz\nflags : fpu sse4_2 smep avx2 fma avx avx512f sse4a\n"
ARM = "processor : 0\nBogoMIPS : 50.00\nFeatures : fp asimd crc32 sve\nCPU part : 0xd40\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [(X86, "Some CPU @ 2 GHz: avx avx2 avx512f fma sse4_2"), (ARM, "0xd40: asimd sve"), ("model name : Some", "Some")],
)
def test_its_name_and_what_arithmetic_uses_are_recorded(text: str, expected: str):
    assert processor.described_in(text) == expected
    assert processor.described_in("")
    assert re.fullmatch(r"\S.*", processor.described())


def test_two_are_told_apart_by_name_and_by_instructions():
    assert processor.changed("A: avx", "A: avx") == ""
    assert processor.changed("A: avx", "B: avx") == "A → B"
    assert processor.changed("A: avx avx2", "A: avx fma") == "A; without avx2; now with fma"
    assert processor.changed("A: avx", "B") == "A → B"
