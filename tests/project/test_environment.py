"""What of the environment would change the weights does not: the same data, parameters, code and seed give the same."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from storage.datasets.training import TrainingConfig
from storage.runtime.arithmetic import ARITHMETIC
from tasks.model import network
from tests.support import commands
from tests.support.models import fitted

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
CHILD = """
import os, sys
{first}
from tests.project.test_environment import trained
print(trained())
"""
OTHER = {
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "TF_DISABLE_MKL": "1",
    "TF_SET_ONEDNN_FPMATH_MODE": "BF16",
    "TF_XLA_FLAGS": "--tf_xla_auto_jit=2 --tf_xla_cpu_global_jit",
    "XLA_FLAGS": "--xla_cpu_enable_fast_math=true",
    **{f"{library}_MAX_CPU_ISA": "SSE41" for library in ("ONEDNN", "DNNL")},
    **{f"{library}_DEFAULT_FPMATH_MODE": "BF16" for library in ("ONEDNN", "DNNL")},
    **{f"{library}_CPU_ISA_HINTS": "PREFER_YMM" for library in ("ONEDNN", "DNNL")},
}
HARMLESS = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_CORETYPE": "Haswell",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MKL_CBWR": "COMPATIBLE",
    "NPY_DISABLE_CPU_FEATURES": "AVX512F",
    "TF_NUM_INTRAOP_THREADS": "2",
    "TF_NUM_INTEROP_THREADS": "2",
    "TF_DETERMINISTIC_OPS": "0",
    "TF_USE_LEGACY_KERAS": "1",
    "KERAS_BACKEND": "numpy",
    "PYTHONHASHSEED": "7",
    "LC_ALL": "tr_TR.UTF-8",
    "CUDA_VISIBLE_DEVICES": "",
    "NVIDIA_TF32_OVERRIDE": "1",
}
"""What changes nothing, set or not."""


def trained() -> str:
    """Train a small network; return the digest of its weights."""
    fitting, _ = fitted(TrainingConfig(hidden=(50, 50), batch_size=16, learning_rate=0.05), rows=400)
    return network.weights_digest(fitting.weights)


def by_another_process(first: str, environment: dict[str, str], python: Sequence[str] = (sys.executable,)) -> str:
    result = subprocess.run(
        [*python, "-c", CHILD.format(first=first)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return result.stdout.strip()


def test_the_variables_that_choose_the_arithmetic_are_all_tried():
    assert set(OTHER) == set(ARITHMETIC)


def test_a_run_trains_the_same_weights_in_any_environment(tmp_path: Path):
    """Also on one processor, and with Keras told to compute in other ways."""
    (tmp_path / "keras.json").write_text('{"floatx": "float64", "epsilon": 0.1, "backend": "numpy"}')
    on_one = "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nimport flows.retrain"
    assert by_another_process(on_one, {**OTHER, **HARMLESS, "KERAS_HOME": str(tmp_path)}) == trained()


@pytest.mark.parametrize("name", ["TF_ENABLE_ONEDNN_OPTS", "ONEDNN_MAX_CPU_ISA"])
def test_without_that_it_would_train_others(name: str):
    """So that it is known when a release of TensorFlow reads other variables: then this list is out of date."""
    # oneDNN reads its own when it first computes, TensorFlow when it is imported: that takes a process five seconds.
    python = commands.python() if name.startswith("ONEDNN") else (sys.executable,)
    assert by_another_process("", {name: OTHER[name]}, python) != trained()
