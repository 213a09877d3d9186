"""What `idxflow dataset add` refuses: one sentence, nothing half-made, and what it advises leads on."""

from __future__ import annotations

import gzip
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from flows.commands.cli import run_command
from storage.files import locked
from storage.formats import idx
from tasks.adding import unpack
from tasks.adding.add import AddOptions, add
from tasks.ui import progress
from tests.support import sources
from tests.support.sources import ARRAYS, HEADER, LABELS, Make, table

DRAWN = ("--test-fraction", "0.2")


@dataclass(frozen=True)
class Case:
    """A source that is refused, and what its refusal advises."""

    mark: pytest.MarkDecorator
    """Where it is refused."""
    bad: Make
    says: str
    mend: Callable[[Path], object] = lambda source: None
    """Changes the source."""
    options: tuple[str, ...] = ()
    better: tuple[str, ...] | None = None
    """Options that the refusal advises; None: the same."""
    code: int = 3


def csv_of(*changed: tuple[int, int, object], rows: int = 60) -> Make:
    """A table in which some cells, by row and column, are others."""

    def make(folder: Path) -> Path:
        cells = [list(row) for row in sources.rows("train")][:rows]
        for row, place, value in changed:
            cells[row][place] = value
        return table(folder / "all.csv", cells, HEADER)

    return make


GOOD = csv_of()


def ragged(folder: Path) -> Path:
    cells = [list(row) for row in sources.rows("train")]
    return table(folder / "all.csv", [*cells[:7], cells[7][:-1], *cells[8:]], HEADER)


def many_columns(folder: Path) -> Path:
    return table(folder / "all.csv", [[1, *[0] * 100_000]], ["label", *map(str, range(100_000))])


def one_class(folder: Path) -> Path:
    return table(folder / "all.csv", [row for row in sources.rows("train") if row[0] == 1], HEADER)


def single(folder: Path) -> Path:
    rows = list(sources.rows("train"))
    return table(folder / "all.csv", [row for number, row in enumerate(rows) if row[0] != 2 or number < 3], HEADER)


def add_single(source: Path) -> object:
    return table(source, sources.rows("train"), HEADER)


def pickled(folder: Path) -> Path:
    folder.mkdir(parents=True)
    np.savez(folder / "all.npz", x=np.array([{"any": "object"}] * 60, object), y=LABELS["train"])
    return folder / "all.npz"


def npz(folder: Path, **arrays: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "all.npz", **({"x": ARRAYS["train-images"], "y": LABELS["train"]} | arrays))
    return folder / "all.npz"


def damaged_npz(folder: Path) -> Path:
    data = bytearray(npz(folder).read_bytes())
    data[200] ^= 255
    (folder / "all.npz").write_bytes(data)
    return folder / "all.npz"


def mended_npz(source: Path) -> object:
    return npz(source.parent)


def archive(*members: tuple[str, bytes]) -> Make:
    def make(folder: Path) -> Path:
        folder.mkdir(parents=True)
        with zipfile.ZipFile(folder / "all.zip", "w") as packed:
            for name, data in members:
                packed.writestr(name, data)
        return folder / "all.zip"

    return make


def good_archive(source: Path) -> object:
    """Unpacked by the user, who leaves out what is wrong with it."""
    source.unlink()
    return sources.pictures(source)


def linked_zip(folder: Path) -> Path:
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "all.zip", "w") as packed:
        link = zipfile.ZipInfo("a/link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        packed.writestr(link, "/etc/passwd")
    return folder / "all.zip"


def linked_tar(folder: Path) -> Path:
    folder.mkdir(parents=True)
    with tarfile.open(folder / "all.tar", "w") as packed:
        link = tarfile.TarInfo("a/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        packed.addfile(link)
    return folder / "all.tar"


def bomb(folder: Path) -> Path:
    """It declares more than there is room for on any disk."""
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "all.zip", "w") as packed:
        packed.writestr("a/b.png", b"x")
        packed.filelist[0].file_size = unpack.MAX_BYTES + 1
        packed.filelist[0].compress_size = 1
    return folder / "all.zip"


def linked_out(folder: Path) -> Path:
    source = sources.pictures(folder / "in")
    outside = folder / "outside.png"
    Image.fromarray(ARRAYS["train-images"][0]).save(outside)
    (source / "train" / "bar 0" / "link.png").symlink_to(outside)
    return source


def unlink(name: str) -> Callable[[Path], object]:
    return lambda source: (source / name).unlink()


def stray(folder: Path) -> Path:
    source = sources.pictures(folder)
    Image.fromarray(ARRAYS["train-images"][0]).save(source / "train" / "stray.png")
    return source


def two_sizes(folder: Path) -> Path:
    source = sources.pictures(folder)
    Image.fromarray(ARRAYS["train-images"][0].repeat(2, 0)).save(source / "train" / "bar 0" / "other.png")
    return source


def broken(folder: Path) -> Path:
    source = sources.pictures(folder)
    (source / "test" / "bar 0" / "broken.png").write_bytes(b"")
    return source


def parquet(folder: Path, **columns: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    good = {"image": [sources.png(image) for image in ARRAYS["train-images"]], "label": LABELS["train"].tolist()}
    pq.write_table(pa.table({**good, **columns}), folder / "all.parquet")
    return folder / "all.parquet"


def mended_parquet(source: Path) -> object:
    return parquet(source.parent)


def idx_pair(folder: Path, **arrays: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    made = {"images": ARRAYS["train-images"], "labels": LABELS["train"]} | arrays
    for kind, array in made.items():
        (folder / f"train-{kind}-idx").write_bytes(idx.encode(array))
    return folder


def written(name: str, data: bytes) -> Make:
    def make(folder: Path) -> Path:
        folder.mkdir(parents=True)
        (folder / name).write_bytes(data)
        return folder / name

    return make


def instead(make: Make) -> Callable[[Path], Path]:
    """Another source at the same place."""

    def mend(source: Path) -> Path:
        shutil.rmtree(source) if source.is_dir() else source.unlink()
        return make(source)

    return mend


MAT = b"MATLAB 5.0 MAT-file" + bytes(200)
COLUMNS = np.zeros((60, 3), np.int32)
REFUSED = pytest.mark.remedies("tasks.adding.batches:refused")
NUMBER_OF_NAMES = pytest.mark.remedies("tasks.adding.add:_names")
NAMES = pytest.mark.remedies("tasks.adding.add:_names:2")
OWN_TEST = pytest.mark.remedies("tasks.adding.add:check_not_split")
NO_TEST = pytest.mark.remedies("tasks.adding.add:_test_rows")
TOO_FEW = pytest.mark.remedies("tasks.adding.add:_too_few")
PATTERN = pytest.mark.remedies("tasks.adding.pictures:groups")
LEFT_OUT = pytest.mark.remedies("tasks.adding.pictures:leave_out")
NOTHING = pytest.mark.remedies("tasks.adding.recognize:source")


CASES = {
    # Tables.
    "a ragged row": Case(REFUSED, ragged, "line 9: expected 37 columns; found 36", add_single),
    "a pixel of 256": Case(
        REFUSED,
        csv_of((4, 9, 256)),
        "line 6: expected a whole number from 0 to 255 in column 'pixel8'; found '256'",
        add_single,
    ),
    "a pixel below 0": Case(REFUSED, csv_of((4, 9, -1)), "found '-1'", add_single),
    "a text as pixel": Case(REFUSED, csv_of((4, 9, "ink")), "found 'ink'", add_single),
    "a pixel of 0.5": Case(REFUSED, csv_of((4, 9, 0.5)), "--white 1", better=(*DRAWN, "--white", "255.5")),
    "one label is a text": Case(
        REFUSED, csv_of((3, 0, "three")), "all numbers or all texts; found '0' and 'three'", add_single
    ),
    "a label of thousands": Case(
        REFUSED,
        lambda folder: table(folder / "all.csv", ([number, *[number % 250] * 36] for number in range(300)), HEADER),
        "at most 256 classes",
        add_single,
    ),
    "no column of labels": Case(
        REFUSED,
        lambda folder: table(folder / "all.csv", sources.rows("train"), ["what", *HEADER[1:]]),
        "the columns what, pixel0",
        better=(*DRAWN, "--label-column", "what"),
    ),
    "another column": Case(
        REFUSED,
        GOOD,
        "a column 'clas'",
        options=("--label-column", "clas"),
        better=(*DRAWN, "--label-column", "label"),
    ),
    "100,000 columns": Case(REFUSED, many_columns, "100,000 columns of pixels", add_single),
    "a header alone": Case(REFUSED, lambda folder: table(folder / "all.csv", [], HEADER), "a header alone", add_single),
    "an empty file": Case(REFUSED, written("all.csv", b""), "an empty file", add_single),
    "white space": Case(REFUSED, written("all.csv", b"\n\n"), "an empty file", add_single),
    "an endless line": Case(REFUSED, written("all.csv", b"1," * (1 << 23)), "lines of at most", add_single),
    "Latin-1": Case(REFUSED, written("all.csv", "é,1,2\n".encode("latin-1")), "text in UTF-8", add_single),
    "gzip that ends early": Case(
        REFUSED,
        written("all.csv", gzip.compress(b"1,2,3,4,5\n" * 50)[:-12]),
        "a damaged gzip file",
        add_single,
    ),
    "no columns of pixels": Case(
        REFUSED,
        lambda folder: parquet(folder, image=["a"] * 60),
        "columns of pixels beside the label",
        mended_parquet,
    ),
    "lists of several lengths": Case(
        REFUSED,
        lambda folder: parquet(folder, image=[[1] * (n % 2 + 1) for n in range(60)]),
        "lists of one length",
        mended_parquet,
    ),
    "rows without a label": Case(
        REFUSED, lambda folder: parquet(folder, label=[None, *range(59)]), "1 row without one", mended_parquet
    ),
    "a damaged Parquet file": Case(
        REFUSED,
        written("all.parquet", b"PAR1" + bytes(100) + b"PAR1"),
        "an undamaged Parquet",
        mended_parquet,
    ),
    "a picture in a row is broken": Case(
        LEFT_OUT,
        lambda folder: parquet(
            folder, image=[b"\x89PNG", *(sources.png(image) for image in ARRAYS["train-images"][1:])]
        ),
        "all.parquet, row 0: expected an undamaged PNG",
        better=(*DRAWN, "--skip-bad"),
    ),
    # Arrays.
    "pickled objects": Case(
        REFUSED, pickled, "Python objects (pickle), which could run code and are never loaded", mended_npz
    ),
    "arrays of other names": Case(
        REFUSED,
        lambda folder: npz(folder, z=LABELS["train"], y2=LABELS["train"]),
        "arrays named x_train",
        mended_npz,
    ),
    "fewer labels than images": Case(
        REFUSED, lambda folder: npz(folder, y=LABELS["train"][1:]), "as many labels as images", mended_npz
    ),
    "labels of 3 columns": Case(
        REFUSED,
        lambda folder: npz(folder, y=COLUMNS + LABELS["train"][:, None]),
        "labels of shape 60×3",
        better=(*DRAWN, "--label-column", "0"),
    ),
    "labels as fractions": Case(
        REFUSED,
        lambda folder: npz(folder, y=LABELS["train"] + 0.5),
        "labels as whole numbers or texts; found 0.5",
        mended_npz,
    ),
    "labels as NaN": Case(REFUSED, lambda folder: npz(folder, y=np.full(60, np.nan)), "found nan", mended_npz),
    "images of five dimensions": Case(
        REFUSED, lambda folder: npz(folder, x=ARRAYS["train-images"][:, None, None]), "60×1×1×6×6", mended_npz
    ),
    "pixels of 0 to 1": Case(
        REFUSED,
        lambda folder: npz(folder, x=ARRAYS["train-images"] / 255),
        "--white 1",
        better=(*DRAWN, "--white", "1"),
    ),
    "texts as pixels": Case(
        REFUSED, lambda folder: npz(folder, x=np.full((60, 6, 6), "a")), "numbers as pixels", mended_npz
    ),
    "a damaged npz": Case(
        REFUSED,
        archive(("x.npy", b"no"), ("y.npy", b"no")),
        "numbers in the array x",
        lambda source: npz(source.parent).rename(source),
    ),
    "an npz that ends early": Case(REFUSED, damaged_npz, "an undamaged .npz file", mended_npz),
    "another mat": Case(
        REFUSED,
        written("all.mat", MAT),
        "a MATLAB file of EMNIST's form",
        instead(lambda source: sources.mat(source.with_suffix("")).rename(source)),
        better=(),
    ),
    # IDX files.
    "IDX: fewer labels": Case(
        REFUSED,
        lambda folder: idx_pair(folder, labels=LABELS["train"][1:]),
        "60 and 59",
        instead(idx_pair),
    ),
    "IDX: two of each": Case(
        REFUSED,
        lambda folder: (
            sources.idx_files(folder),
            shutil.copy(folder / "train-images-idx3-ubyte", folder / "other-train-images-idx3-ubyte"),
        )[0],
        "--match",
        lambda source: [file.rename(file.with_name(f"mine-{file.name}")) for file in source.glob("t*")],
        better=("--match", "mine"),
    ),
    # Pictures.
    "a link out of the folder": Case(REFUSED, linked_out, "found a link to", unlink("train/bar 0/link.png"), better=()),
    "a picture beside the classes": Case(
        REFUSED, stray, "each picture in the folder of its class", unlink("train/stray.png"), better=()
    ),
    "pictures of two sizes": Case(REFUSED, two_sizes, "--size 6x6", better=("--size", "6x6")),
    "an empty picture": Case(LEFT_OUT, broken, "--skip-bad", better=("--skip-bad",)),
    "a group that is in no path": Case(
        REFUSED,
        lambda folder: sources.pictures(folder, "train"),
        "a group by 'writer'",
        options=(*DRAWN, "--group-by", "writer"),
        better=(*DRAWN, "--group-by", r"\d+\."),
    ),
    "no regular expression": Case(
        PATTERN,
        lambda folder: sources.pictures(folder, "train"),
        "a regular expression",
        options=(*DRAWN, "--group-by", "("),
        better=(*DRAWN, "--group-by", r"(\d+)\.png"),
        code=2,
    ),
    "one class": Case(REFUSED, one_class, "found one, '1'", add_single),
    "a class of one image": Case(
        TOO_FEW, single, "found none of '2' in the test split, of 1 image, 1 different", add_single
    ),
    "an empty folder": Case(
        REFUSED, lambda folder: folder.mkdir() or folder, "an empty folder", sources.pictures, better=()
    ),
    "nothing": Case(
        NOTHING,
        lambda folder: folder / "nothing",
        "found nothing",
        lambda source: sources.pictures(source),
        better=(),
        code=2,
    ),
    "one IDX file": Case(
        REFUSED,
        written("t10k-images-idx3-ubyte", idx.encode(ARRAYS["test-images"])),
        "one IDX file",
        instead(sources.idx_files),
        better=(),
    ),
    "one .npy file": Case(
        REFUSED, written("x.npy", b"\x93NUMPY\x01\x00"), "one .npy file", instead(sources.npy), better=()
    ),
    "one picture": Case(
        REFUSED,
        written("x.png", sources.png(ARRAYS["test-images"][0])),
        "one picture",
        instead(sources.pictures),
        better=(),
    ),
    "HDF5": Case(
        REFUSED,
        written("x.mat", b"\x89HDF\r\n\x1a\n"),
        "an HDF5 file",
        instead(lambda source: npz_at(source)),
        better=DRAWN,
    ),
    "other bytes": Case(
        REFUSED,
        written("x.bin", b"\x01\0\x02\0"),
        "bytes 01000200",
        instead(lambda source: npz_at(source)),
        better=DRAWN,
    ),
    # Archives.
    "zip slip": Case(REFUSED, archive(("../../out.png", b"x")), "one at '../../out.png'", good_archive, better=()),
    "an absolute path": Case(
        REFUSED, archive(("/tmp/out.png", b"x")), "one at '/tmp/out.png'", good_archive, better=()
    ),
    "a drive": Case(REFUSED, archive(("C:\\out.png", b"x")), "C:", good_archive, better=()),
    "a link in a ZIP": Case(REFUSED, linked_zip, "a link, a/link.png", good_archive, better=()),
    "a link in a tar": Case(REFUSED, linked_tar, "a link or a device", good_archive, better=()),
    "a bomb": Case(REFUSED, bomb, "bytes or more", good_archive, better=()),
    "a tar that ends early": Case(
        REFUSED,
        lambda folder: (
            (tar := sources.tarred(sources.pictures)(folder)) and (tar.write_bytes(tar.read_bytes()[:-3000]), tar)[1]
        ),
        "an undamaged archive",
        instead(sources.pictures),
        better=(),
    ),
    # Options.
    "a test split drawn twice": Case(OWN_TEST, sources.npz, "leave it out", options=DRAWN, better=(), code=2),
    "no test split": Case(NO_TEST, GOOD, "draw one with --test-fraction 0.15", options=(), better=DRAWN, code=2),
    "labels that do not begin there": Case(
        REFUSED, GOOD, "labels 1 to 3", options=(*DRAWN, "--label-base", "1"), better=DRAWN
    ),
    "too few names": Case(
        NUMBER_OF_NAMES,
        GOOD,
        "the 3 classes",
        options=(*DRAWN, "--classes", "a,b"),
        better=(*DRAWN, "--classes", "a,b,c"),
        code=2,
    ),
    "a name twice": Case(
        NAMES,
        GOOD,
        "different names",
        options=(*DRAWN, "--classes", "a,b,b"),
        better=(*DRAWN, "--classes", "a,b,c"),
        code=2,
    ),
}


def npz_at(source: Path) -> Path:
    with source.open("wb") as stream:
        np.savez(stream, x=ARRAYS["train-images"], y=LABELS["train"])
    return source


@pytest.mark.parametrize("case", [pytest.param(case, marks=case.mark, id=name) for name, case in CASES.items()])
def test_what_is_refused_leaves_nothing_and_what_it_advises_leads_on(case: Case, here: Path, tmp_path: Path, capsys):
    source = case.bad(tmp_path / "source")
    options = case.options or (DRAWN if case.better is None else ())
    assert run_command(["dataset", "add", "mine", str(source), *options]) == case.code
    said = capsys.readouterr().err.splitlines()[-1]
    assert case.says in said
    assert "Traceback" not in said
    assert ".adding" not in said
    assert list(here.iterdir()) == []
    case.mend(source)
    better = options if case.better is None else case.better
    assert run_command(["dataset", "add", "mine", str(source), *better]) == 0, capsys.readouterr().err
    assert (here / "mine" / "mine.toml").is_file()


@pytest.mark.remedies("storage.datasets.own_files:check_name")
def test_a_name_of_the_catalog_is_refused(here: Path, tmp_path: Path, capsys):
    source = sources.npz(tmp_path)
    for name in ("mnist", "My Letters", "../x"):
        assert run_command(["dataset", "add", name, str(source)]) == 2
        assert "NAME: expected a-z, 0-9, - and _" in capsys.readouterr().err
    assert run_command(["dataset", "add", "my-letters", str(source)]) == 0


@pytest.mark.remedies("tasks.adding.add:_check", "tasks.adding.add:_check:2")
def test_a_folder_that_is_there_stays_as_it_is(here: Path, tmp_path: Path, capsys):
    source = sources.npz(tmp_path)
    (here / "mine").mkdir()
    (here / "mine" / "precious").touch()
    assert run_command(["dataset", "add", "mine", str(source)]) == 2
    assert "found a folder; remove it, or choose another with --as" in capsys.readouterr().err
    assert [path.name for path in (here / "mine").iterdir()] == ["precious"]
    assert run_command(["dataset", "add", "mine", str(source), "--as", "no/where"]) == 2
    assert "found nothing; make it, or choose another with --as" in capsys.readouterr().err
    assert run_command(["dataset", "add", "mine", str(source), "--as", "other"]) == 0


@pytest.mark.remedies("tasks.adding.add:refuse")
def test_two_at_once_do_not_disturb_each_other(here: Path, tmp_path: Path, capsys):
    source = sources.npz(tmp_path)
    with locked(here / ".mine.lock"):
        assert run_command(["dataset", "add", "mine", str(source)]) == 2
        assert "another `idxflow dataset add` does" in capsys.readouterr().err
        assert run_command(["dataset", "add", "mine", str(source), "--as", "other"]) == 0
    assert run_command(["dataset", "add", "mine", str(source)]) == 0


@pytest.mark.remedies("flows.commands.dataset:_size")
def test_a_size_is_height_and_width(here: Path, tmp_path: Path, capsys):
    source = sources.npz(tmp_path)
    for size in ("28", "0x28", "28x5000", "28 x", "large"):
        assert run_command(["dataset", "add", "mine", str(source), "--size", size]) == 2
        assert f"such as 28x28; found '{size}'" in capsys.readouterr().err
    assert run_command(["dataset", "add", "mine", str(source), "--size", "28x28"]) == 0


def test_an_interrupted_command_leaves_nothing_and_a_killed_one_nothing_that_stays(here: Path, tmp_path: Path):
    def interrupt(_: progress.Progress) -> None:
        raise KeyboardInterrupt

    options = AddOptions("mine", sources.pictures(tmp_path / "source"), here / "mine")
    with progress.listening(interrupt), pytest.raises(KeyboardInterrupt):
        add(options)
    assert list(here.iterdir()) == []
    # As kill -9 leaves it.
    (here / ".mine.adding" / "unpacked").mkdir(parents=True)
    (here / ".mine.adding" / "pixels").touch()
    add(options)
    assert [path.name for path in here.iterdir()] == ["mine"]


def test_a_source_is_only_read(here: Path, tmp_path: Path):
    source = sources.pictures(tmp_path / "source")
    before = {path: path.stat().st_mtime_ns for path in source.rglob("*")}
    add(AddOptions("mine", source, here / "mine"))
    assert {path: path.stat().st_mtime_ns for path in source.rglob("*")} == before
