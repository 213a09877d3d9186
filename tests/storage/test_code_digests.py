"""What counts as a change of a step's code."""

from __future__ import annotations

import ast
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from storage.runtime import code_digests


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in {
        "tasks/decode.py": (
            'from storage.formats import idx\n\ndef decode(x):\n    """Doc."""\n    return idx.read(x)\n'
        ),
        "storage/formats/idx.py": "from storage.errors import IdxflowError\n\ndef read(x):\n    return x\n",
        "storage/errors.py": "class IdxflowError(Exception): pass\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(code_digests, "ROOT", tmp_path)
    code_digests._read.cache_clear()
    yield tmp_path
    code_digests._read.cache_clear()


def after(project: Path, name: str, old: str, new: str) -> dict[str, str]:
    path = project / name
    path.write_text(path.read_text().replace(old, new))
    code_digests._read.cache_clear()
    return code_digests.digests("tasks.decode")


def test_a_step_is_its_module_and_what_that_imports_but_no_plumbing(project: Path):
    assert list(code_digests.digests("tasks.decode")) == ["storage.formats.idx", "tasks.decode"]


@pytest.mark.parametrize(
    ("name", "old", "new", "changed"),
    [
        ("tasks/decode.py", "idx.read(x)", "idx.read(x) + 1", {"tasks.decode"}),
        ("storage/formats/idx.py", "return x", "return -x", {"storage.formats.idx"}),
        ("tasks/decode.py", '"""Doc."""', '"""Other."""', set()),
        ("tasks/decode.py", "return idx", "# why\n    return idx", set()),
        ("storage/errors.py", "pass", "exit_code = 2", set()),
    ],
)
def test_only_what_runs_counts(project: Path, name: str, old: str, new: str, changed: set[str]):
    before = code_digests.digests("tasks.decode")
    now = after(project, name, old, new)
    assert {module for module in before if before[module] != now[module]} == changed


FORMATS = {"storage.formats.arrays", "storage.formats.members", "storage.formats.parquet", "storage.formats.split_rows"}
MODEL = {
    "storage.formats.products",
    "tasks.model.classifier",
    "tasks.model.forward",
    "tasks.model.network",
    "tasks.model.own_network",
    "tasks.model.scaling",
}
TRAINING = {
    "storage.formats.history",
    "tasks.model.activity",
    "tasks.model.augmentation",
    "tasks.model.checkpoint",
    "tasks.model.compiled",
    "tasks.model.fitting",
    "tasks.model.holdout",
    "tasks.model.labels",
    "tasks.model.network",
    "tasks.model.optimizers",
    "tasks.model.own_code",
    "tasks.model.own_network",
    "tasks.model.own_training",
    "tasks.model.rates",
    "tasks.model.scaling",
    "tasks.model.shares",
    "tasks.model.sides",
    "tasks.model.training_rows",
}
COMPARING = {
    "expectations.summary",
    "storage.formats.sorted_columns",
    "tasks.checking.comparing",
    "tasks.checking.repeats",
    "tasks.checking.surveys",
}
CLOSURES = {
    "decoding.pairs": {
        "storage.formats.chunks",
        "storage.formats.idx",
        "storage.formats.members",
        "storage.formats.parquet",
        "storage.formats.split_rows",
        "tasks.decoding.reading",
        "tasks.decoding.writing",
    },
    "audit": FORMATS
    | MODEL
    | {
        "tasks.auditing.cells",
        "tasks.auditing.confident",
        "tasks.auditing.cross_validation",
        "tasks.auditing.folds",
        "tasks.auditing.near_duplicates",
        "tasks.auditing.survey",
        "tasks.auditing.tables",
        "tasks.model.activity",
        "tasks.model.augmentation",
        "tasks.model.compiled",
        "tasks.model.fitting",
        "tasks.model.optimizers",
        "tasks.model.rates",
        "tasks.model.training_rows",
    },
    "quarantine": FORMATS
    | COMPARING
    | {
        "storage.formats.quarantined",
        "tasks.auditing.tables",
        "tasks.checking.bad_rows",
        "tasks.checking.dividing",
    },
    "validate": FORMATS
    | COMPARING
    | {
        "expectations.engine",
        "expectations.engine_process",
        "expectations.findings",
        "expectations.run_suites",
        "expectations.suites",
        "tasks.checking.image_table",
        "tasks.checking.measuring",
    },
    "normalize": FORMATS
    | {
        "tasks.model.holdout",
        "tasks.model.part_sums",
        "tasks.model.pixel_sums",
        "tasks.model.scaling",
        "tasks.model.sides",
    },
    "train": FORMATS | TRAINING,
    "evaluate": FORMATS | MODEL | {"tasks.gate.wilson", "tasks.model.labels", "tasks.scoring.scores"},
    "confirm": FORMATS | MODEL | {"storage.formats.predictions", "tasks.model.confirm_worker"},
    "probe": FORMATS
    | MODEL
    | {
        "storage.formats.behaviour_images",
        "storage.formats.idx",
        "tasks.gate.wilson",
        "tasks.model.augmentation",
        "tasks.probing.answers",
        "tasks.probing.changes",
        "tasks.probing.named_images",
        "tasks.serving.image_files",
        "tasks.serving.picture",
    },
    "tune": FORMATS | TRAINING | {"tasks.train", "tasks.tuning.optuna_study", "tasks.tuning.space"},
    "decide": FORMATS
    | {
        "storage.formats.predictions",
        "tasks.gate.behaviour",
        "tasks.gate.criteria",
        "tasks.gate.evidence",
        "tasks.gate.holm",
        "tasks.gate.judging",
        "tasks.gate.known",
        "tasks.gate.looks",
        "tasks.gate.slices",
        "tasks.gate.wilson",
        "storage.formats.idx",
        "tasks.slicing.columns",
        "tasks.slicing.cuts",
        "tasks.slicing.label_columns",
        "tasks.slicing.measures",
    },
}
"""The modules beside its own whose change makes the result of a step again."""


@pytest.mark.parametrize("step", CLOSURES)
def test_a_step_depends_on_what_does_its_work_and_on_nothing_else(step: str):
    assert set(code_digests.digests(f"tasks.{step}")) == {f"tasks.{step}", *CLOSURES[step]}


def test_every_step_with_a_key_has_its_closure_above():
    keyed = {
        path.stem for path in (code_digests.ROOT / "tasks").glob("*.py") if "digests(__name__)" in path.read_text()
    }
    # All that `decode` does is there, for a worker that imports no Prefect.
    assert keyed | {"decoding.pairs"} == set(CLOSURES)


@pytest.mark.parametrize(
    "unseen",
    [
        "from . import formats",
        "from .formats import read",
        "from importlib import import_module\n\ndef later():\n    import_module('tasks.model')",
        "def later():\n    __import__('tasks.model')",
        "from storage.formats import *",
        "from storage.formats import something",
        "import storage.formats",
    ],
)
def test_an_import_that_cannot_be_followed_is_refused(project: Path, unseen: str):
    (project / "storage/formats/__init__.py").write_text("something = 1\n")
    with pytest.raises(
        ValueError, match=r"tasks/decode\.py, line \d+: expected imports of .*; found `.*`; import the "
    ):
        after(
            project, "tasks/decode.py", "from storage.formats import idx", f"from storage.formats import idx\n{unseen}"
        )


@pytest.mark.parametrize(("folder", "changed"), [("tasks/ui", False), ("tasks/model", True)])
def test_a_change_in_a_folder_that_only_shows_makes_nothing_again(project: Path, folder: str, changed: bool):
    (project / folder).mkdir()
    (project / folder / "words.py").write_text("def line(): return 1\n")
    package = folder.replace("/", ".")
    before = after(project, "tasks/decode.py", "from storage", f"from {package} import words\nfrom storage")
    assert (after(project, f"{folder}/words.py", "1", "2") != before) == changed


def edited(module: str, old: str, new: str) -> bool:
    """Say whether an edit of the product's own source would make again what the module decides."""
    path = code_digests._path(module)
    source = path.read_text()
    assert source.count(old) == 1, f"{module} has no such line any more, or several"
    deciding = [
        ast.unparse(code_digests._Deciding().visit(ast.parse(text))) for text in (source, source.replace(old, new))
    ]
    return deciding[0] != deciding[1]


@pytest.mark.parametrize(
    ("module", "old", "new", "again"),
    [
        ("tasks.train", '_log.info("%s: training resumes after', '_log.warning("%s: resumed after', False),
        ("tasks.decoding.reading", "expected as many labels as images; ", "expected a label for each image; ", False),
        ("tasks.model.rates", "return config.learning_rate / (1", "return config.learning_rate / (2", True),
        ("tasks.model.pixel_sums", "math.sqrt(variance)", "math.sqrt(variance + 1)", True),
        (
            "tasks.model.holdout",
            "int(rows * (1 - validation_fraction))",
            "round(rows * (1 - validation_fraction))",
            True,
        ),
        ("tasks.scoring.scores", "shifted = logits.astype(np.float64)", "shifted = logits.astype(np.float32)", True),
        ("tasks.gate.wilson", "z * z / rows", "z / rows", True),
    ],
)
def test_arithmetic_counts_and_words_do_not(module: str, old: str, new: str, again: bool):
    assert edited(module, old, new) == again


@pytest.mark.parametrize("step", CLOSURES)
def test_docstrings_and_comments_do_not_count(step: str):
    source = code_digests._path(f"tasks.{step}").read_text()
    docstrings = [
        text
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and (text := ast.get_docstring(node, False))
    ]
    assert len(docstrings) > 1
    reworded = "# Another comment.\n" + source
    for text in docstrings:
        reworded = reworded.replace(text, "Other words.")
    deciding = [ast.unparse(code_digests._Deciding().visit(ast.parse(text))) for text in (source, reworded)]
    assert "Other words." in reworded
    assert deciding[0] == deciding[1]


@pytest.mark.parametrize(
    "showing", ["storage.datasets.training", "storage.errors", "tasks.ui.summaries", "tasks.ui.verdicts"]
)
def test_help_texts_and_summaries_are_in_no_closure(showing: str):
    assert code_digests._path(showing).is_file()
    assert not any(showing in code_digests.digests(f"tasks.{step}") for step in CLOSURES)


def test_threads_may_ask_at_once():
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            code_digests._read.cache_clear()
            assert len({tuple(digests) for digests in pool.map(code_digests.digests, ["tasks.train"] * 8)}) == 1
