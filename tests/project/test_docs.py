"""The documentation names only what exists, and shows commands as they are."""

from __future__ import annotations

import ast
import json
import os
import re
import runpy
import shlex
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from tests.conftest import how_to_skip_none
from tests.support.commands import idxflow

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(p for p in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")))
REFERENCE = ROOT / "docs" / "reference"
FOLDERS = ("flows", "tasks", "expectations", "storage", "tests", "benchmarks", "examples", "deploy", "docs")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def shell_lines(text: str) -> list[str]:
    blocks = re.findall(r"```(?:sh|console)\n(.*?)```", text, re.DOTALL)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [re.split(r"\s+#", line)[0].rstrip(" \\") for line in lines]


def commands(program: str) -> list[str]:
    lines = {
        line.split("=", 1)[1].split(" ", 1)[1] if re.match(r"[A-Z_]+=\S+ ", line) else line
        for document in DOCUMENTS
        for line in shell_lines(document.read_text(encoding="utf-8"))
        if re.match(rf"([A-Z_]+=\S+ )*(\.venv/bin/)?{program} ", line)
    }
    return sorted(line.removeprefix(".venv/bin/").split(" > ")[0].split(" | ")[0] for line in lines)


@cache
def help_of(*words: str) -> str:
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
    # What follows `idxflow prefect` is Prefect's own command.
    program, words = ("prefect", words[1:]) if words[:1] == ("prefect",) else ("idxflow", words)
    result = idxflow(*words, "--help", env=environment, program=program)
    assert result.returncode == 0, result.stderr
    return "\n".join(line.rstrip() for line in result.stdout.splitlines())


def test_ci_has_all_that_tests_skip_without():
    reasons = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py")]
    packages = how_to_skip_none(reasons).partition("install ")[2].split()
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert packages == sorted(re.findall(r'needed\+=" ([\w-]+)"', script))


def test_what_is_missing_is_named_once_at_the_end():
    skipped = "Skipped: needs strace: on Debian, apt-get install strace"
    assert how_to_skip_none([skipped, skipped, "Skipped: needs to be root"]).endswith("apt-get install strace")
    assert how_to_skip_none(["Skipped: needs to be root"]) == ""


def test_the_readme_shows_the_two_commands():
    assert {"make run", "make test"} <= set(shell_lines(README))


@pytest.mark.parametrize("command", commands("idxflow"))
def test_idxflow_commands_exist(command: str):
    words = shlex.split(command)[1:]
    named = {
        "alerts": 2,
        "dataset": 2,
        "quarantine": 2,
        "labels": 2,
        "registry": 2,
        "runs": 2,
        "share": 2,
        "prefect": 3,
    }
    subcommand = [] if words[0].startswith("-") else words[: named.get(words[0], 1)]
    text = help_of(*subcommand)
    for option in [w.split("=")[0] for w in words if w.startswith("--")]:
        assert option in text


@pytest.mark.parametrize("command", commands("make"))
def test_make_targets_exist(command: str):
    makefile = (ROOT / "Makefile").read_text()
    for word in shlex.split(command)[1:]:
        if "=" in word:
            assert f"$({word.split('=')[0]})" in makefile
        else:
            assert re.search(rf"^{word}:", makefile, re.MULTILINE)


@pytest.mark.parametrize("command", commands("prefect"))
def test_prefect_commands_name_what_is_deployed(command: str):
    deployments = (ROOT / "prefect.yaml").read_text()
    for name in re.findall(r"retrain/([a-z-]+)", command):
        assert f"- name: {name}\n" in deployments
    if "--pool" in command:
        pool = command.split("--pool ")[1].split()[0]
        is_made = any(f"work-pool create {pool} " in page.read_text(encoding="utf-8") for page in DOCUMENTS)
        assert f"name: {pool}\n" in deployments or is_made


@pytest.mark.parametrize(
    ("words", "codes"),
    [("run", "0 1 2 3 4 5 130 143"), ("validate", "0 1 2 3 4 130 143"), ("registry show", "0 1 2 130 143")],
)
def test_help_lists_the_exit_codes_of_its_command(words: str, codes: str):
    listed = " ".join(help_of(*words.split()).split()).partition("Exit codes: ")[2]
    assert re.findall(r"(?:^|, )(\d+) ", listed) == codes.split()


def test_help_is_shown_as_it_is():
    """The reference pages are what the code says, and have each command of the help."""
    generator = runpy.run_path(str(ROOT / "docs" / "write_reference.py"))
    for name, page in generator["PAGES"].items():
        assert (REFERENCE / name).read_text(encoding="utf-8") == page().rstrip() + "\n", "run `make reference`"
    listed = re.findall(r"^  ([a-z]+) ", help_of(), re.MULTILINE)
    sections = re.findall(r"^## idxflow ([a-z]+)$", (REFERENCE / "cli.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sections == listed


def test_every_variable_and_file_that_is_named_exists():
    source = "".join(
        p.read_text() for folder in ("flows", "tasks", "storage", "tests") for p in (ROOT / folder).rglob("*.py")
    )
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for variable in re.findall(r"`(IDXFLOW_[A-Z_]+)", text):
            assert variable in source
        for path in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
            assert (document.parent / path).exists(), f"{document.name} links to {path}"
        # `tasks/<step>.py` and the like stand for what somebody will write.
        for path in re.findall(rf"(?:{'|'.join(FOLDERS)})/[\w./-]+\.(?:py|toml|md|j2)", text):
            assert (ROOT / path).exists(), f"{document.name} names {path}"


def test_pictures_are_small():
    pictures = list((ROOT / "docs" / "pictures").iterdir())
    assert {"report.png", "run.png"} <= {picture.name for picture in pictures}
    assert all(picture.stat().st_size < 200_000 for picture in pictures)


def test_each_deployment_that_is_shown_could_be_in_prefect_yaml():
    """It has the parameters of the flow that it names, and nothing that the file does not define."""
    definitions = (ROOT / "prefect.yaml").read_text(encoding="utf-8").partition("deployments:")[0]
    blocks = [
        block
        for document in DOCUMENTS
        for block in re.findall(r"```yaml\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
        if "entrypoint:" in block
    ]
    assert blocks
    for block in blocks:
        (deployment,) = yaml.safe_load(f"{definitions}deployments:\n{block}")["deployments"]
        module, _, flow = deployment["entrypoint"].rpartition(".")
        source = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
        (function,) = (node for node in source.body if isinstance(node, ast.FunctionDef) and node.name == flow)
        assert deployment["parameters"].keys() <= {argument.arg for argument in function.args.args}


def marked() -> dict[str, set[str]]:
    """The files with a comment `# Prefect: name.`, by that name."""
    files = [ROOT / "pyproject.toml", ROOT / "prefect.yaml"]
    for folder in ("flows", "tasks", "storage", "expectations", "tests", "deploy"):
        files += [path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".yaml", ".toml", "")]
    marks: dict[str, set[str]] = {}
    for path in files:
        if path.is_file():
            for name in re.findall(r"^\s*# Prefect: ([a-z-]+)\.", path.read_text(encoding="utf-8"), re.MULTILINE):
                marks.setdefault(name, set()).add(str(path.relative_to(ROOT)))
    return marks


def test_each_work_around_for_prefect_is_on_the_page_and_in_the_code():
    page = (ROOT / "docs" / "maintaining.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z-]+)` \|(.+?)\|(.+?)\|(.+?)\|(.+?)\|$", page, re.MULTILINE)
    listed = {name: set(re.findall(r"\]\(\.\./([^)]+)\)", where)) for name, _, _, where, _ in rows}
    assert listed == marked()
    assert all(cell.strip() for row in rows for cell in row)
    installed = ".".join(version("prefect").split(".")[:2])
    assert f"stands on Prefect {installed}." in page, "go through the table again"


def test_the_exit_codes_are_those_of_the_errors():
    from storage import errors

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    codes = {kind.exit_code for kind in kinds if issubclass(kind, errors.IdxflowError)}
    codes |= {0, errors.DRIFTED, errors.NOT_REPRODUCED, 130, 143}
    page = (REFERENCE / "exit-codes.md").read_text(encoding="utf-8")
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)} == codes


def test_the_keys_of_a_run_as_json_are_those_of_the_page():
    page = (
        (REFERENCE / "exit-codes.md").read_text(encoding="utf-8").partition("has these keys:")[2].partition("\n## ")[0]
    )
    listed = re.findall(r"`([a-z_]+)`", "".join(re.findall(r"^\| (`.+?`) \|", page, re.MULTILINE)))
    result = idxflow("run", "no-such-data-set", "--json", "--timings", env=os.environ)
    assert result.returncode == 2
    assert listed == list(json.loads(result.stdout))
