"""`idxflow predict`: real files of every kind, what is said about those that do not fit, exit codes."""

from __future__ import annotations

import gzip
import json
import os
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from flows.commands.cli import run_command
from storage.errors import FormatError
from storage.formats import idx
from tasks.serving import image_files
from tasks.serving.predict import load_champion
from tests.support import commands
from tests.support.blobs import blobs, store_with_champion
from tests.support.servers import clean_environment

IMAGES = blobs()["test-images"]
GREY = IMAGES[4]


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a champion of `tiny`, only read by these tests."""
    return store_with_champion(tmp_path_factory.mktemp("ready")).root


@pytest.fixture
def home(ready: Path, tmp_path: Path, monkeypatch) -> Path:
    """An empty folder to be in, with the store in the environment."""
    monkeypatch.setenv("IDXFLOW_STORE", str(ready))
    monkeypatch.chdir(tmp_path)
    return tmp_path


Ask = Callable[..., dict]


@pytest.fixture
def ask(home: Path, capsys) -> Ask:
    """Predict files and return the JSON outcome, with the exit code and what was said added."""

    def call(*files: str, **options) -> dict:
        chosen = [f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items()]
        code = run_command(["predict", "tiny", *files, *chosen, "--json"])
        printed = capsys.readouterr()
        return {**json.loads(printed.out), "code": code, "said": printed.err}

    return call


def save(name: str, pixels: np.ndarray = GREY, **how) -> str:
    Image.fromarray(pixels).save(name, **how)
    return name


def rgb(pixels: np.ndarray, *weights: float) -> np.ndarray:
    return np.stack([(pixels * weight).astype(np.uint8) for weight in weights], axis=-1)


def test_all_kinds_of_files_give_the_same_answers(ask: Ask, home: Path):
    Path("plain.idx").write_bytes(idx.encode(IMAGES))
    # What a file is called does not matter.
    Path("packed.png").write_bytes(gzip.compress(idx.encode(IMAGES)))
    np.save("many.npy", IMAGES)
    np.savez("many.npz", labels=np.arange(30), images=IMAGES)
    np.savez_compressed("other.npz", labels=np.arange(30), pixels=IMAGES)
    expected = load_champion("tiny").predict(IMAGES)
    files = ["plain.idx", "packed.png", "many.npy", "many.npz", "other.npz"]
    result = ask(*files)
    assert (result["code"], result["said"], result["error"], result["version"]) == (0, "", None, 1)
    assert [(row["file"], row["row"]) for row in result["rows"]] == [(file, n) for file in files for n in range(30)]
    for start in range(0, 150, 30):
        rows = result["rows"][start : start + 30]
        assert [row["label"] for row in rows] == expected.label.tolist()
        assert [row["class"] for row in rows] == list(expected.name)
        np.testing.assert_array_equal(np.array([row["probability"] for row in rows], "f4"), expected.probability)


def test_pictures_give_the_answers_of_their_pixels(ask: Ask, home: Path):
    palette = Image.fromarray(GREY).convert("P")
    palette.save("palette.png")
    np.save("one.npy", GREY)
    Path("one.idx").write_bytes(idx.encode(GREY))
    files = [save("grey.png"), save("grey.bmp"), save("grey.tif"), save("equal.png", rgb(GREY, 1, 1, 1)), "palette.png"]
    result = ask(*files, "one.npy", "one.idx", save("grey.jpg", quality=100))
    assert (result["code"], result["remarks"]) == (0, [])
    answers = [(row["label"], row["probability"]) for row in result["rows"]]
    assert len(set(answers[:7])) == 1
    assert answers[7][0] == answers[0][0] == load_champion("tiny").predict(GREY).label[0]


def test_a_turned_photograph_is_put_upright(ask: Ask, home: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    # Stored lying on its side, as cameras do; Orientation 6 says: turn by 90 degrees clockwise to show.
    save("turned.jpg", np.rot90(GREY), quality=100, exif=exif)
    result = ask("turned.jpg", save("grey.png"))
    assert result["code"] == 0
    assert result["rows"][0]["label"] == result["rows"][1]["label"]


def test_colour_is_reported_and_becomes_the_usual_grey(ask: Ask, home: Path):
    result = ask(save("red.png", rgb(GREY, 1, 0.5, 0.2)))
    luma = np.asarray(Image.open("red.png").convert("L"))
    assert result["remarks"] == [
        "red.png is a colour image; its grey values are used (ITU-R 601: 0.299 red, 0.587 green, 0.114 blue)"
    ]
    assert "idxflow: warning: red.png is a colour image" in result["said"]
    assert result["rows"][0]["probability"] == pytest.approx(float(load_champion("tiny").predict(luma).probability[0]))


def test_inverted_images_are_reported_and_invert_turns_them_round(ask: Ask, home: Path):
    np.save("inverted.npy", 255 - IMAGES)
    plain = ask(save("inverted.png", 255 - GREY), "inverted.npy")
    assert plain["remarks"] == [
        "inverted.png: the image looks inverted, compared with the training images; --invert inverts them",
        "inverted.npy: 30 of 30 images look inverted, compared with the training images; --invert inverts them",
    ]
    turned = ask("inverted.npy", invert=True)
    assert turned["remarks"] == []
    assert [row["label"] for row in turned["rows"]] == load_champion("tiny").predict(IMAGES).label.tolist()
    assert "without --invert they would match" in ask(save("grey.png"), invert=True)["remarks"][0]


def test_one_odd_image_among_many_is_no_reason_to_doubt_all(ask: Ask, home: Path):
    np.save("mixed.npy", np.concatenate([IMAGES, 255 - IMAGES[:3]]))
    assert ask("mixed.npy")["remarks"] == []


def test_resize_scales_with_antialiasing(ask: Ask, home: Path):
    large = np.kron(IMAGES, np.ones((1, 3, 3), np.uint8))
    np.save("large.npy", large)
    refused = ask("large.npy")
    assert refused["code"] == refused["error"]["exit_code"] == 3
    assert "expected images of 10×8 pixels (height×width); found 30×24; --resize scales them" in refused["said"]
    result = ask("large.npy", resize=True)
    assert (result["code"], result["remarks"]) == (0, [])
    assert [row["label"] for row in result["rows"]] == load_champion("tiny").predict(IMAGES).label.tolist()
    fine = np.zeros((20, 16), np.uint8)
    # A one-pixel checkerboard averages to grey; picking pixels would give black or white.
    fine[::2, ::2] = fine[1::2, 1::2] = 255
    expected = load_champion("tiny").predict(np.asarray(Image.fromarray(fine).resize((8, 10), Image.LANCZOS)))
    probability = ask(save("fine.png", fine), resize=True)["rows"][0]["probability"]
    assert probability == pytest.approx(float(expected.probability[0]))
    assert "stretched to 10×8" in ask(save("wide.png", np.zeros((10, 30), np.uint8)), resize=True)["remarks"][0]


PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
"""First row, first column and steps of Adam7 (PNG, third edition, 8.2)."""
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Of each colour type."""
KINDS = [(0, 1), (0, 2), (0, 4), (0, 8), (3, 1), (3, 2), (3, 4), (3, 8), (2, 8), (4, 8), (6, 8)]
"""Colour type and bit depth of all kinds of PNG that have no more than 8 bits per channel."""
DEEP = [(0, 16), (2, 16), (4, 16), (6, 16)]


def png(name: str, grey: np.ndarray, colour: int, depth: int, interlaced: bool = False) -> str:
    """Write `grey` (0 to 2^depth - 1) as a PNG of any kind, opaque, by the specification and no library."""
    samples = np.repeat(grey[:, :, None].astype(np.uint16), CHANNELS[colour], axis=2)
    if colour in (4, 6):
        samples[:, :, -1] = 2**depth - 1
    parts = [samples[y::dy, x::dx] for y, x, dy, dx in PASSES] if interlaced else [samples]
    rows = [_packed(row.reshape(-1), depth) for part in parts if part.size for row in part]
    header = struct.pack(">IIBBBBB", grey.shape[1], grey.shape[0], depth, colour, 0, 0, interlaced)
    ramp = np.repeat(np.linspace(0, 255, 2**depth if colour == 3 else 1).astype(np.uint8), 3).tobytes()
    chunks = [(b"IHDR", header), *([(b"PLTE", ramp)] if colour == 3 else [])]
    chunks += [(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))), (b"IEND", b"")]
    written = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    Path(name).write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(written))
    return name


def _packed(samples: np.ndarray, depth: int) -> bytes:
    if depth == 16:
        return samples.astype(">u2").tobytes()
    bits = np.unpackbits(samples.astype(np.uint8)[:, None], axis=1)[:, 8 - depth :]
    return np.packbits(bits.reshape(-1)).tobytes()


@pytest.mark.parametrize("interlaced", [False, True], ids=["plain", "interlaced"])
@pytest.mark.parametrize(("colour", "depth"), KINDS)
def test_every_kind_of_png_gives_its_grey_values(home: Path, colour: int, depth: int, interlaced: bool):
    levels = 2**depth - 1
    grey = (GREY.astype(int) * levels + 127) // 255
    remarks: list[str] = []
    (image,) = image_files.read(
        Path(png("any.png", grey, colour, depth, interlaced)), image_files.ImageOptions(GREY.shape), remarks.append
    )
    np.testing.assert_allclose(image[0], grey * (255 / levels), atol=1)
    assert remarks == []


@pytest.mark.parametrize("interlaced", [False, True], ids=["plain", "interlaced"])
@pytest.mark.parametrize(("colour", "depth"), DEEP)
def test_no_kind_of_png_is_cut_to_8_bits(home: Path, colour: int, depth: int, interlaced: bool):
    file = Path(png("deep.png", GREY.astype(int) * 257, colour, depth, interlaced))
    with pytest.raises(FormatError, match="expected at most 8 bits per channel; found 16"):
        list(image_files.read(file, image_files.ImageOptions(GREY.shape), print))


def test_a_picture_as_wide_as_an_image_has_pixels_is_one_image(ask: Ask, home: Path):
    """In an array of two dimensions, it is a row for each image, unless a third says otherwise."""
    large = np.kron(GREY, np.ones((8, 10), np.uint8))
    assert large.shape[1] == GREY.size
    np.save("flat.npy", large)
    np.save("one.npy", large[None])
    result = ask(save("large.png", large), "one.npy", save("grey.png"), resize=True)
    assert len({row["label"] for row in result["rows"]}) == 1, result
    assert "or with [None] if it is one image" in ask("flat.npy", resize=True)["said"]


def deep(name: str) -> str:
    Image.fromarray((GREY.astype(np.uint16)) << 8).save(name)
    return name


def written(name: str, data: bytes) -> str:
    Path(name).write_bytes(data)
    return name


def array(name: str, values: np.ndarray, **how) -> str:
    np.save(name, values, **how)
    return name


def arrays_file(name: str, **values: np.ndarray) -> str:
    np.savez(name, **values)
    return name


def transparent() -> str:
    Image.fromarray(np.dstack([GREY, GREY, GREY, GREY])).save("clear.png")
    return "clear.png"


def cut(name: str, **how) -> str:
    path = Path(save("whole-" + name, np.random.default_rng(0).integers(0, 256, (80, 80), dtype=np.uint8), **how))
    return written(name, path.read_bytes()[: path.stat().st_size // 2])


REFUSED = {
    "16-bit picture": (lambda: deep("deep.png"), "expected at most 8 bits per channel; found 16"),
    "16-bit array": (lambda: array("a.npy", GREY.astype(np.uint16)), "found uint16 from "),
    "floats": (lambda: array("a.npy", IMAGES / 255), "found float64 from 0 to 1; scale to 0-255"),
    "IDX of floats": (lambda: written("f.idx", idx.encode(IMAGES.astype("f4"))), "found float32"),
    "labels": (lambda: written("l.idx", idx.encode(np.arange(30, dtype=np.uint8))), "not labels or colour"),
    "colour array": (lambda: array("c.npy", np.zeros((2, 10, 8, 3), np.uint8)), "not labels or colour"),
    "flat rows": (lambda: array("r.npy", IMAGES.reshape(30, -1)), ".reshape(-1, 10, 8)"),
    "objects": (lambda: array("o.npy", np.array([{}], object), allow_pickle=True), "without Python objects"),
    "no images": (lambda: arrays_file("n.npz", a=np.zeros(3), b=np.zeros((2, 2))), "found a, b"),
    "transparent": (transparent, "transparent pixels"),
    "cut PNG": (lambda: cut("cut.png"), "expected an undamaged PNG, JPEG, BMP, TIFF or GIF"),
    "cut JPEG": (lambda: cut("cut.jpg"), "expected an undamaged PNG, JPEG, BMP, TIFF or GIF"),
    "cut BMP": (lambda: cut("cut.bmp"), "expected an undamaged PNG, JPEG, BMP, TIFF or GIF"),
    "cut npy": (lambda: written("c.npy", Path(array("w.npy", IMAGES)).read_bytes()[:500]), "undamaged .npy"),
    "cut npz": (lambda: written("c.npz", Path(arrays_file("w.npz", a=IMAGES)).read_bytes()[:500]), "undamaged .npz"),
    "cut gzip": (lambda: written("c.gz", gzip.compress(idx.encode(IMAGES))[:300]), "c.gz: expected"),
    "only a magic number": (lambda: written("m.png", b"\x89PNG\r\n\x1a\n"), "m.png: expected an undamaged"),
    "WebP": (
        lambda: save("a.webp"),
        "expected IDX (plain or gzip), PNG, JPEG, BMP, TIFF, GIF, .npy or .npz; found one",
    ),
    "empty": (lambda: written("e.png", b""), "found an empty file"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_taken_is_refused_in_one_sentence(home: Path, capsys, make: Callable[[], str], message: str):
    file, out = Path(make()), Path("out.parquet")
    code = run_command(["predict", "tiny", str(file), "--out", str(out)])
    printed = capsys.readouterr()
    assert code == 3
    assert message in printed.err
    assert str(file) in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert not out.exists()


@pytest.mark.parametrize("limit", [30, 50])
def test_pictures_that_unpack_to_too_much_are_refused(home: Path, monkeypatch, capsys, limit: int):
    # 80 pixels: between the limit and twice that Pillow alone would only warn.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    assert run_command(["predict", "tiny", save("bomb.png")]) == 3
    assert f"expected at most {limit} pixels" in capsys.readouterr().err


def test_arrays_that_unpack_to_too_much_are_refused(home: Path, monkeypatch, capsys):
    monkeypatch.setattr("tasks.serving.image_files.MAX_NPZ_BYTES", 1000)
    file = Path(arrays_file("bomb.npz", images=IMAGES))
    assert run_command(["predict", "tiny", str(file)]) == 3
    assert "more than 1,000" in capsys.readouterr().err


def test_all_rows_are_in_the_parquet_file(ask: Ask, home: Path):
    np.save("many.npy", IMAGES)
    Path("out.parquet").write_text("what was there is replaced")
    result = ask("many.npy", save("grey.png"), out=Path("out.parquet"))
    table = pq.read_table("out.parquet")
    assert table.column_names == ["file", "row", "label", "class", "probability", "version"]
    assert table.to_pylist() == result["rows"]
    assert len(table) == 31
    assert result["out"] == str(home / "out.parquet")
    assert not list(home.glob(".out*"))


def test_many_rows_are_counted_and_the_first_are_shown(home: Path, capsys):
    np.save("many.npy", IMAGES)
    assert run_command(["predict", "tiny", "many.npy", "--out", "new/out.parquet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:10]] == [f"many.npy[{n}]" for n in range(10)]
    assert lines[10] == "… 20 more of 30"
    assert [line.split()[:2] for line in lines[11:14]] == [["bar", "0"], ["bar", "1"], ["bar", "2"]]
    assert sum(int(line.split()[2]) for line in lines[11:14]) == 30
    assert lines[14:] == ["30 rows written to new/out.parquet"]


def test_a_file_name_that_is_no_text_is_written_out(ask: Ask, home: Path):
    name = os.fsdecode(b"gr\xe9y.png")
    Path(save("grey.png")).rename(name)
    result = ask(name, out=Path("out.parquet"))
    assert (result["code"], result["rows"][0]["file"]) == (0, r"gr\udce9y.png")
    assert pq.read_table("out.parquet").to_pylist() == result["rows"]


def test_control_characters_stay_out_of_the_terminal(home: Path, capsys):
    Path(save("grey.png")).rename("\x1b[2Jgrey.png")
    assert run_command(["predict", "tiny", "\x1b[2Jgrey.png"]) == 0
    assert "\ufffd[2Jgrey.png[0]" in capsys.readouterr().out


def idxflow(home: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = clean_environment(home, IDXFLOW_STORE=os.environ["IDXFLOW_STORE"])
    return commands.idxflow(*arguments, env=environment, cwd=home)


def test_as_a_user_types_it(home: Path):
    expected = load_champion("tiny").predict(GREY)
    result = idxflow(home, "predict", "tiny", save("grey.png"), "--version", "1")
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"grey.png[0]  {expected.name[0]}  {expected.probability[0]:.4f}  v1\n"
    assert result.stderr == ""
    as_json = idxflow(home, "predict", "tiny", "grey.png", save("small.png", GREY[:5]), "--json", "--resize")
    assert [row["file"] for row in json.loads(as_json.stdout)["rows"]] == ["grey.png", "small.png"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["tiny", "none.png"], 2, "found nothing; correct the path"),
        (["tiny", "."], 2, "found a folder"),
        (["tiny"], 2, "requires an argument"),
        (["tiny", "file", "--version", "best"], 2, "expected a version as `champion` or a number"),
        (["tiny", "file", "--out", "."], 2, "is a folder; choose another name"),
        (["tiny", "file", "--out", "./file"], 2, "to differ from the files to read"),
        (["other", "file"], 2, "run `idxflow run --dataset-file FILE` first"),
        (["tiny", "file", "--version", "7"], 2, "expected a version of tiny; found v7; give v1, the only one"),
        (["tiny", "file"], 3, "found one that begins with the bytes 6d616465"),
    ],
)
def test_wrong_usage_is_refused_at_once(home: Path, capsys, arguments: list[str], code: int, message: str):
    Path("file").write_text("made up")
    assert run_command(["predict", *arguments]) == code
    printed = capsys.readouterr()
    assert message in " ".join(printed.err.split())
    assert printed.out == ""


@pytest.mark.parametrize(("file", "code"), [("none.png", 2), ("file", 3)])
def test_exit_codes_of_real_processes(home: Path, file: str, code: int):
    Path("file").write_text("made up")
    result = idxflow(home, "predict", "tiny", file)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (code, "", 1)
    assert file in result.stderr
