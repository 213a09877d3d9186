"""`idxflow dataset add`: every form of the same data gives the same archives, a model, and the right messages."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows.commands.cli import run_command
from storage.datasets import catalog
from storage.datasets.catalog import DEFAULT_FILES
from storage.formats import idx
from tests.conftest import bars
from tests.support import sources
from tests.support.sources import ARRAYS, FORMS, LABELS, SHAPE

ROOT = Path(__file__).resolve().parents[2]


def added(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    """Add a data set, and return what `--json` says of it."""
    code = run_command(["dataset", "add", *words, "--json"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return json.loads(printed.out)


def arrays(folder: Path) -> dict[str, np.ndarray]:
    return {role: idx.read(folder / file) for role, file in DEFAULT_FILES.items()}


def digests(folder: Path) -> dict[str, str]:
    return {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in DEFAULT_FILES.values()}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_images(form: str, here: Path, tmp_path: Path, capsys):
    source = FORMS[form](tmp_path / "source")
    values = added(capsys, "mine", str(source))
    made = arrays(here / "mine")
    for split in ("train", "test"):
        # Folders of classes are read class by class.
        order = (
            np.argsort(LABELS[split], kind="stable") if "pictures" in form or form in ("BMP", "TIFF", "GIF") else ...
        )
        np.testing.assert_array_equal(made[f"{split}-images"], ARRAYS[f"{split}-images"][order])
        np.testing.assert_array_equal(made[f"{split}-labels"], LABELS[split][order])
    assert values["rows"] == {"train": 60, "test": 15}
    assert values["ink"] == "bright"
    dataset = catalog.read(here / "mine" / "mine.toml")
    assert dataset.image_shape == SHAPE
    assert len(dataset.classes) == 3
    assert dataset.source == here / "mine"
    picture = np.asarray(Image.open(here / "mine" / "mine.png"))
    assert picture.min() < 64 < 192 < picture.max()
    # Nothing else is left, and a second time gives the same bytes.
    assert sorted(path.name for path in here.iterdir()) == ["mine"]
    first = digests(here / "mine")
    shutil.rmtree(here / "mine")
    added(capsys, "mine", str(source))
    assert digests(here / "mine") == first


@pytest.mark.parametrize(
    ("form", "names"),
    [
        ("pictures", ["bar 0", "bar 1", "bar 2"]),
        ("Parquet of Hugging Face", ["bar 0", "bar 1", "bar 2"]),
        ("EMNIST's mat", ["A", "B", "C"]),
        ("EMNIST's IDX", ["A/a", "B/b", "C/c"]),
        ("Kaggle's CSV", ["0", "1", "2"]),
    ],
)
def test_classes_have_the_names_that_the_source_gives(form: str, names: list[str], here: Path, tmp_path: Path, capsys):
    values = added(capsys, "mine", str(FORMS[form](tmp_path / "source")))
    assert [c["name"] for c in values["classes"]] == names
    assert list(catalog.read(here / "mine" / "mine.toml").classes) == names


def test_what_was_found_is_printed_and_the_command_that_is_named_trains(here: Path, tmp_path: Path, capsys):
    source = sources.table(tmp_path / "all.csv", [*sources.rows("train"), *sources.rows("test")], sources.HEADER)
    assert (
        run_command(["dataset", "add", "mine", str(source), "--test-fraction", "0.2", "--classes", "low, middle, high"])
        == 0
    )
    out = capsys.readouterr().out
    assert "found a table with a header, the label in column 'label', 36 columns of pixels" in out
    assert "60 + 15 images of 6×6, the test split was drawn; pixels 0 to 25" in out
    assert re.search(r"1  middle +20 train \+ 5 test, '1' in the source", out)
    command = out.splitlines()[-1].removeprefix("next: idxflow ").split()
    assert run_command([*command, "--profile", "fast", "--store", str(tmp_path / "store"), "--json"]) in (0, 5)
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["dataset"] == "mine"
    assert outcome["test_accuracy"] is not None


def test_with_run_it_also_trains(here: Path, tmp_path: Path, capsys):
    source = sources.pictures(tmp_path / "source")
    words = ["dataset", "add", "mine", str(source), "--run", "--store", str(tmp_path / "store"), "--json"]
    assert run_command(words) in (0, 5)
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["dataset"] == "mine"
    assert outcome["test_accuracy"] is not None
    assert (here / "mine" / "mine.json").is_file()


def test_the_test_split_is_drawn_from_each_class_by_a_seed(here: Path, tmp_path: Path, capsys):
    source = sources.table(
        tmp_path / "sorted.csv", sorted([*sources.rows("train"), *sources.rows("test")]), sources.HEADER
    )
    drawn = {}
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        values = added(capsys, name, str(source), "--test-fraction", "0.2", "--seed", seed)
        assert [(c["train"], c["test"]) for c in values["classes"]] == [(20, 5)] * 3
        drawn[name] = digests(here / name)
    assert drawn["a"] == drawn["b"] != drawn["c"]


def test_equal_images_stay_on_one_side(here: Path, tmp_path: Path, capsys):
    rows = [row for row in sources.rows("train") for _ in range(2)]
    source = sources.table(tmp_path / "twice.csv", rows, sources.HEADER)
    added(capsys, "mine", str(source), "--test-fraction", "0.3")
    made = arrays(here / "mine")
    sides = [{image.tobytes() for image in made[f"{split}-images"]} for split in ("train", "test")]
    assert not sides[0] & sides[1]
    assert len(made["test-images"]) == 36


def test_groups_stay_on_one_side(here: Path, tmp_path: Path, capsys):
    header = [*sources.HEADER, "writer"]
    rows = [[*row, number // 3 % 10] for number, row in enumerate(sources.rows("train"))]
    source = sources.table(tmp_path / "written.csv", rows, header)
    added(capsys, "mine", str(source), "--test-fraction", "0.3", "--group-by", "writer")
    made = arrays(here / "mine")
    writers = {tuple(row[1:37]): row[37] for row in rows}
    sides = [
        {writers[tuple(map(int, image.ravel()))] for image in made[f"{split}-images"]} for split in ("train", "test")
    ]
    assert not sides[0] & sides[1]
    assert len(sides[1]) == 3


def test_groups_of_pictures_are_found_in_their_paths(here: Path, tmp_path: Path, capsys):
    source = sources.pictures(tmp_path / "source", "train")
    values = added(capsys, "mine", str(source), "--test-fraction", "0.25", "--group-by", r"(\d)\.png")
    made = arrays(here / "mine")
    last = {image.tobytes(): row % 10 for row, image in enumerate(ARRAYS["train-images"])}
    sides = [{last[image.tobytes()] for image in made[f"{split}-images"]} for split in ("train", "test")]
    assert not sides[0] & sides[1]
    assert values["rows"]["train"] + values["rows"]["test"] == 60


@pytest.mark.parametrize(
    ("names", "train", "test"), [(("training", "validation"), 60, 15), (("train", "val", "test"), 75, 15)]
)
def test_a_validation_split_is_the_test_split_or_part_of_the_other(
    names: tuple[str, ...], train: int, test: int, here: Path, tmp_path: Path, capsys
):
    sources.pictures(tmp_path / "source" / names[0], "train")
    for name in names[1:]:
        sources.pictures(tmp_path / "source" / name, "test")
    values = added(capsys, "mine", str(tmp_path / "source"))
    assert values["rows"] == {"train": train, "test": test}
    assert any(names[1] in line for line in values["remarks"])


def test_pictures_are_brought_to_one_size_and_what_that_loses_is_said(here: Path, tmp_path: Path, capsys):
    folder = tmp_path / "source"
    ink = np.zeros((40, 20, 3), np.uint8)
    ink[5:15, 5:10] = (255, 255, 0)
    for label, picture in (("high", ink), ("low", ink[::-1])):
        (folder / label).mkdir(parents=True)
        for number in range(4):
            different = picture.clip(max=255 - number)
            Image.fromarray(np.ascontiguousarray(different)).save(folder / label / f"{number}.jpg", quality=95)
    made = {}
    for fit in ("pad", "mass", "stretch"):
        values = added(capsys, fit, str(folder), "--size", "28x28", "--fit", fit, "--test-fraction", "0.25")
        assert values["remarks"] == ["colour pictures are read as grey: 0.299 red, 0.587 green, 0.114 blue (ITU-R 601)"]
        made[fit] = arrays(here / fit)["train-images"]
        assert made[fit].shape == (6, 28, 28)
    assert (made["pad"][:, :, :7] < 40).all()
    assert (made["pad"][0, 4:10, 10:14] > 150).any()
    # Centred by mass, both classes have their ink in the middle.
    middles = [np.argwhere(image > 128).mean(axis=0) for image in made["mass"]]
    assert np.abs(np.array(middles) - 13.5).max() < 1
    assert (made["stretch"][0, 4:10, 7:14] > 150).any()


def test_dark_ink_is_said_and_inverted_if_asked(here: Path, tmp_path: Path, capsys):
    inverted = [[row[0], *(255 - pixel for pixel in row[1:])] for row in sources.rows("train")]
    source = sources.table(tmp_path / "dark.csv", inverted, sources.HEADER)
    values = added(capsys, "dark", str(source), "--test-fraction", "0.2")
    assert values["ink"] == "dark"
    assert "--invert" in values["remarks"][-1]
    values = added(capsys, "bright", str(source), "--test-fraction", "0.2", "--invert")
    assert (values["ink"], values["remarks"]) == ("bright", [])


def test_where_the_ground_is_neither_dark_nor_bright_the_manifest_does_not_say_which(
    here: Path, tmp_path: Path, capsys
):
    noise = np.random.default_rng(0).integers(0, 256, (60, *SHAPE), dtype=np.uint8)
    np.savez(tmp_path / "noise.npz", x=noise, y=LABELS["train"])
    values = added(capsys, "mine", str(tmp_path / "noise.npz"), "--test-fraction", "0.2")
    assert (values["ink"], values["remarks"]) == ("unclear", [])
    assert "\n# ink = " in (here / "mine" / "mine.toml").read_text()


def test_pictures_that_cannot_be_read_are_listed(here: Path, tmp_path: Path, capsys):
    source = sources.pictures(tmp_path / "source")
    (source / "train" / "bar 1" / "4.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    assert run_command(["dataset", "add", "mine", str(source)]) == 3
    said = capsys.readouterr().err
    assert "bar 1/4.png: expected an undamaged PNG" in said
    assert not (here / "mine").exists()
    values = added(capsys, "mine", str(source), "--skip-bad")
    assert values["rows"] == {"train": 59, "test": 15}
    assert ["bar 1/4.png" in line for line in values["skipped"]] == [True]
    assert json.loads((here / "mine" / "mine.json").read_text())["skipped"] == values["skipped"]


def test_memory_does_not_grow_with_the_images(here: Path, tmp_path: Path):
    """Four times as many images of 3 kB: held in memory, they alone would be 90 MB more."""
    code = (
        "import re, sys\nfrom pathlib import Path\nfrom tasks.adding.add import AddOptions, add\n"
        "add(AddOptions('mine', Path(sys.argv[1]), Path(sys.argv[2]), test_fraction=0.2))\n"
        "print(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])"
    )
    peaks = []
    for rows in (10_000, 40_000):
        source, random = tmp_path / str(rows), np.random.default_rng(0)
        source.mkdir()
        images = random.integers(0, 256, (rows, 55, 55), dtype=np.uint8)
        (source / "train-images").write_bytes(idx.encode(images))
        (source / "train-labels").write_bytes(idx.encode((np.arange(rows) % 3).astype(np.uint8)))
        command = [sys.executable, "-c", code, str(source), str(here / str(rows))]
        peaks.append(int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout))
    # In KiB: Linux, proc_pid_status(5).
    assert peaks[1] - peaks[0] < 25_000


def test_exif_turns_a_picture_upright(here: Path, tmp_path: Path, capsys):
    folder = tmp_path / "source"
    for label, image in enumerate(ARRAYS["train-images"][:12]):
        file = folder / str(LABELS["train"][label]) / f"{label}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = 6
        # Orientation 6: the picture is stored turned to the left.
        Image.fromarray(np.rot90(image).copy()).save(file, exif=exif)
    added(capsys, "mine", str(folder), "--test-fraction", "0.25")
    originals = {image.tobytes() for image in ARRAYS["train-images"][:12]}
    assert all(image.tobytes() in originals for image in arrays(here / "mine")["train-images"])


def test_pixels_from_0_to_1_are_scaled_by_the_value_of_white(here: Path, tmp_path: Path, capsys):
    np.savez(tmp_path / "bars.npz", x=ARRAYS["train-images"] / 255, y=LABELS["train"])
    values = added(capsys, "mine", str(tmp_path / "bars.npz"), "--white", "1", "--test-fraction", "0.2")
    assert values["brightest"] == ARRAYS["train-images"].max()


@pytest.mark.remedies("tasks.adding.add:read")
def test_one_data_set_of_several_is_chosen_by_its_name(here: Path, tmp_path: Path, capsys):
    sources.emnist(tmp_path / "source")
    for file in list((tmp_path / "source").iterdir()):
        shutil.copy(file, file.with_name(file.name.replace("bars", "others")))
    assert run_command(["dataset", "add", "mine", str(tmp_path / "source")]) == 3
    assert "--match" in capsys.readouterr().err
    values = added(capsys, "mine", str(tmp_path / "source"), "--match", "emnist-bars", "--label-base", "1")
    assert [c["name"] for c in values["classes"]] == ["A/a", "B/b", "C/c"]
    np.testing.assert_array_equal(arrays(here / "mine")["test-images"], ARRAYS["test-images"])


@pytest.mark.parametrize("name", ["k49", "kuzushiji-49", "Kuzushiji49"])
@pytest.mark.remedies("storage.datasets.catalog:find")
def test_kuzushiji_49_is_made_of_the_files_in_which_it_is_published(name: str, here: Path, tmp_path: Path, capsys):
    """Four .npz files with one array each, `arr_0`: images of shape (n, 28, 28), labels from 0 to 48."""
    assert run_command(["run", name]) == 2
    said = capsys.readouterr().err
    assert "published as .npz files only" in said
    command = re.search("`idxflow (dataset add .*) FOLDER`", " ".join(said.replace("\n", " ").split()))
    made = bars(49 * 4, 49, 49, (49, 7))
    folder = tmp_path / "k49"
    folder.mkdir()
    for role, array in made.items():
        split, kind = role.split("-")
        np.savez_compressed(folder / f"k49-{split}-{'imgs' if kind == 'images' else kind}.npz", array)
    names = [chr(0x3042 + number) for number in range(49)]
    added_name = command[1].split()[-1]
    values = added(capsys, added_name, str(folder), "--classes", ",".join(names))
    assert values["rows"] == {"train": 49 * 4, "test": 49}
    written = arrays(here / added_name)
    for role in made:
        np.testing.assert_array_equal(written[role], made[role])
    assert catalog.read(here / added_name / f"{added_name}.toml").classes == tuple(names)
