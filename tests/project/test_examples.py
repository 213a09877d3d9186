"""The scripts of `examples/`, as people start from them: one makes a champion, the other uses it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from tests.support.commands import idxflow

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

pytestmark = pytest.mark.flow


def test_a_champion_of_own_images_answers(
    server: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    environment = server | {"IDXFLOW_STORE": str(tmp_path / "store")}
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setenv("IDXFLOW_STORE", environment["IDXFLOW_STORE"])

    def the_command(*arguments: str, output: int | None = None) -> str:
        """The same command as that of the script, without the seconds that its imports take."""
        result = idxflow(*arguments, env=environment)
        assert result.returncode == 0, result.stderr
        if output is None:
            sys.stdout.write(result.stdout)
        return result.stdout

    own_data = importlib.import_module("own_data")
    monkeypatch.setattr(own_data, "idxflow", the_command)
    own_data.main(tmp_path / "shapes")
    written, *_, page = capsys.readouterr().out.splitlines()
    assert written == f"wrote four archives and {tmp_path / 'shapes' / 'shapes.toml'}"
    assert Path(page.removeprefix("report ")).is_file()
    importlib.import_module("use_champion").main()
    first, *answers = capsys.readouterr().out.splitlines()
    assert first.startswith("champion v1, ")
    assert len(answers) == 6
    right = [line for line in answers if line.split()[0] in line.partition("(it is a ")[2]]
    assert len(right) > 3
