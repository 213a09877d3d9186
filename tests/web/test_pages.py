"""The pages of a site: what they say of a store with several runs, whose names and texts are all markup."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from flows.dataset_in_store import DatasetInStore
from flows.promotion import promote
from flows.web.pages import trying
from flows.web.pages.schedule import Due, Schedule
from flows.web.served import Site
from storage.drifts import Drifts
from storage.registry import Registry
from storage.store import Store
from tests.conftest import write_tiny
from tests.support.pages import Page, check_accessible
from tests.support.reports import MARKUP
from tests.support.runs import carried_out
from tests.support.sites import served

HTML = {"accept": "text/html"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with two runs of a data set whose classes and title are markup; the model of the second was forced."""
    folder = tmp_path_factory.mktemp("hostile")
    manifest = write_tiny(folder, classes=len(MARKUP), train=240, test=80).manifest
    lines = manifest.read_text("utf-8").splitlines(keepends=True)
    names = ", ".join(json.dumps(name) for name in MARKUP)
    text = "".join(line for line in lines if not line.startswith("classes"))
    floors = "[floors]\naccuracy = 0.0\nclass_recall = 0.0\n[gate]\nalpha_budget = 0.05\nbudget_decisions = 1\n"
    manifest.write_text(f"classes = [{names}]\ntitle = {json.dumps(MARKUP[0])}\n{text}\n{floors}", encoding="utf-8")
    store = Store(folder / "store")
    store.prepare()
    for epochs in (1, 8):
        carried_out(store, manifest, epochs=epochs)
    drifts, sentence = Drifts(store, "tiny"), "the images have drifted: class shares of {}"
    found = drifts.note(2, True, {"sentence": sentence.format(MARKUP[2]), "from": f"/new/{MARKUP[3]}"})
    assert found
    drifts.note_retraining(found.number, "a-flow-run")
    promote(DatasetInStore(store, "tiny"), "2", force=True, reason=f"because {MARKUP[1]}")
    return store


@pytest.fixture(scope="module")
def client(store: Store) -> Iterator[httpx.Client]:
    with served(Site(store)) as client:
        client.headers["accept"] = "text/html"
        yield client


def page_at(client: httpx.Client, address: str, status: int = 200) -> Page:
    answer = client.get(address)
    assert answer.status_code == status
    return checked(answer)


def checked(answer: httpx.Response) -> Page:
    """Read a page strictly: texts of the data are texts, and all that it loads is of the site."""
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "unsafe" not in answer.headers["content-security-policy"]
    page = Page(answer.text)
    check_accessible(page)
    scripts = [attributes for tag, attributes in page.elements if tag == "script"]
    assert all(attributes["src"] == "../_site/draw.js" for attributes in scripts)
    assert not {"iframe", "object", "embed", "base", "style", "details"} & {tag for tag, _ in page.elements}
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") or name == "style" for name in attributes), tag
        for name in ("src", "href", "action"):
            assert attributes.get(name, "").partition(":")[0] not in ("http", "https", "javascript"), tag
    return page


def test_the_first_page_shows_how_each_data_set_is_doing(client: httpx.Client, store: Store):
    words = page_at(client, "/").words()
    assert "tiny" in words
    assert "Champion v2" in words
    assert "95% interval" in words
    assert "promoted v1: the first model above the floors" in words
    assert "The next runs are unknown: expected a Prefect server at" in words
    assert "<code>idxflow up</code>" in client.get("/").text
    assert store.address in words
    assert "drifted the images have drifted: class shares of" in words
    assert "error budget 1 decision of the error budget of these test images left (0 of 0.05 spent)" in words


def test_a_data_set_has_its_runs_versions_and_decisions(client: httpx.Client):
    assert client.get("/tiny").headers["location"] == "tiny/"
    page = page_at(client, "/tiny/")
    words = page.words()
    for heading in ("Trend", "Runs", "Decisions", "Drift", "Versions"):
        assert heading in [title for _, title in page.headings]
    assert "v1 → v2" in words
    assert f"because {MARKUP[1]}" in words
    assert ", by hand" in words
    assert f"class shares of {MARKUP[2]}" in words
    assert "started" in words


def test_each_run_leads_to_its_report_which_can_do_nothing(client: httpx.Client):
    page = page_at(client, "/tiny/")
    links = {a["href"] for tag, a in page.elements if tag == "a" and a["href"].startswith("runs/2")}
    assert len(links) == 2
    for link in links:
        answer = client.get(f"/tiny/{link}")
        assert answer.status_code == 200
        assert "<h1" in answer.text
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("sandbox allow-popups")
        assert "default-src 'none'" in policy
        assert "script" not in policy
    assert client.get("/tiny/runs/latest").headers["location"] in {link.removeprefix("runs/") for link in links}


def test_a_report_that_was_removed_is_made_again(client: httpx.Client, store: Store):
    run = client.get("/tiny/runs/latest").headers["location"]
    (store.root / "tiny" / "7-reports" / run / "report.html").unlink()
    assert f"run {run}" in Page(client.get(f"/tiny/runs/{run}").text).words()


@pytest.mark.parametrize(
    ("address", "status", "sentence"),
    [
        ("/tny/", 404, "found 'tny' (did you mean tiny?)"),
        ("/nothing/at/all", 404, "/ has the links"),
        ("/tiny/runs/never", 404, "expected a run of tiny"),
        ("/tiny/?runs=none", 422, "runs: input should be a valid integer"),
        ("/_site/..%2Fserved.py", 404, "/ has the links"),
    ],
)
def test_people_are_refused_by_a_page(client: httpx.Client, address: str, status: int, sentence: str):
    assert sentence in page_at(client, address, status).words()
    assert sentence in client.get(address, headers={"accept": "*/*"}).json()["error"]


def test_a_page_of_a_table_that_is_not_there_is_the_last_one(client: httpx.Client):
    assert page_at(client, "/tiny/?runs=99&versions=99").words() == page_at(client, "/tiny/").words()


def a_picture(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def test_a_chosen_picture_is_answered_without_a_script(client: httpx.Client, store: Store):
    version = Registry(store, "tiny").champion()
    height, width = version.image_shape  # type: ignore[union-attr]
    picture = np.full((10 * height, 10 * width), 255, np.uint8)
    picture[20:30, 10:-10] = 0
    answer = client.post("/tiny/try", files={"picture": ("x.png", a_picture(picture), "image/png")})
    page = checked(answer)
    words = page.words()
    assert "v2 says:" in words
    assert f"The whole picture was resized to {height}×{width} pixels." in words
    assert "It was inverted" in words
    assert all(" ".join(name.split()) in words for name in MARKUP)
    assert "Of all 240 rows" in words
    meters = [float(a["value"]) for tag, a in page.elements if tag == "meter"]
    assert sum(meters) == pytest.approx(1, abs=1e-5)
    assert len(meters) == len(MARKUP)
    assert len([1 for tag, a in page.elements if a.get("alt", "").startswith("Training image")]) == 8


@pytest.mark.remedies("flows.web.pages.trying:_image")
def test_a_form_without_a_picture_is_refused_in_place(client: httpx.Client):
    answer = client.post("/tiny/try", files={"picture": ("", b"", "application/octet-stream")})
    assert answer.status_code == 400
    assert "found none; draw one, or choose a file" in checked(answer).words()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"GIF89a", "expected an undamaged PNG or JPEG"),
        (a_picture(np.zeros((5000, 5000), np.uint8)), "expected at most 16,777,216 pixels"),
    ],
)
def test_what_is_no_picture_is_refused_in_place(client: httpx.Client, content: bytes, sentence: str):
    answer = client.post("/tiny/try", files={"picture": ("x", content, "image/png")})
    assert answer.status_code == 400
    assert sentence in checked(answer).words()


@pytest.mark.parametrize(("pixel_range", "shown"), [((0, 16), [[0, 128, 255]]), ((0, 255), [[0, 8, 16]])])
def test_images_are_shown_from_black_to_white_whatever_their_range(pixel_range: tuple[int, int], shown: list):
    address = trying.png(np.array([[0, 8, 16]], np.uint8), pixel_range)
    picture = Image.open(io.BytesIO(base64.b64decode(address.removeprefix("data:image/png;base64,"))))
    assert np.asarray(picture).tolist() == shown


def test_a_form_is_only_for_the_pages(client: httpx.Client):
    foreign = client.post("/tiny/try", files={"picture": b""}, headers={"origin": "https://elsewhere.example"})
    assert foreign.status_code == 403
    api = client.post("/v1/tiny/predict", files={"picture": b"x"}, headers={"accept": "*/*"})
    assert api.status_code == 415
    plain = client.post("/tiny/try", content=b"{}", headers={"content-type": "application/json"})
    assert plain.status_code == 415
    torn = client.post("/tiny/try", content=b"x", headers={"content-type": "multipart/form-data"})
    assert (torn.status_code, "send the form again" in torn.text) == (400, True)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(
            b'--B\r\nContent-Disposition: form-data; name="x"\r\n\r\ny\r\n' * 50_000 + b"--B--\r\n", id="parts"
        ),
        pytest.param(b"--B\r\nContent-Disposition: form-data; " + b"a=b; " * 40_000 + b"\r\n\r\nx", id="a long header"),
        pytest.param(
            b"--B\r\n" + b'Content-Type: multipart/mixed; boundary="1"\r\n\r\n--1\r\n' * 3000, id="parts in parts"
        ),
        pytest.param(b"--B\r\n\r\nx\r\n--B--\r\n", id="a part without a name"),
        pytest.param(b"--B\r\nContent-Disposition: ;;;=;\xff\r\n\r\nx", id="a header that is none"),
    ],
)
def test_a_hostile_form_is_refused_at_once(client: httpx.Client, body: bytes):
    answer = client.post("/tiny/try", content=body, headers={"content-type": "multipart/form-data; boundary=B"})
    assert answer.status_code == 400
    assert "expected" in checked(answer).words()


def test_a_store_with_nothing_in_it_says_how_to_begin(tmp_path: Path):
    empty = Store(tmp_path / "store")
    empty.prepare()
    with served(Site(empty)) as client:
        words = Page(client.get("/", headers=HTML).text).words()
    assert "Nothing is in this store yet" in words
    assert empty.command("run") in words


def test_a_data_set_that_cannot_be_read_does_not_hide_the_others(tmp_path: Path):
    store = Store(tmp_path / "store")
    store.prepare()
    for name in ("broken", "whole"):
        folder = store.root / name / "ledger" / "runs"
        folder.mkdir(parents=True)
    (store.root / "broken" / "ledger" / "runs" / "00000001-x.json").write_text("{")
    with served(Site(store)) as client:
        words = Page(client.get("/", headers=HTML).text).words()
        assert client.get("/broken/", headers=HTML).status_code == 503
    assert "broken needs attention" in words
    assert "restore it from a backup" in words
    assert "whole ok" in words


def test_the_server_is_asked_once_at_a_time_and_never_waited_for_twice():
    now, asked = [0.0], list[int]()
    due = datetime(2026, 5, 1, tzinfo=UTC)

    def ask() -> tuple[dict[str, datetime], str | None]:
        asked.append(1)
        if len(asked) == 2:
            raise RuntimeError("no answer")
        return {"tiny": due}, None

    schedule = Schedule(ask, clock=lambda: now[0])
    assert schedule.known() == Due({"tiny": due}, None)
    assert schedule.known() == Due({"tiny": due}, None)
    assert len(asked) == 1
    now[0] = 60.0
    schedule.look()
    while schedule.known().unknown is None:
        pass
    assert schedule.known().unknown == "RuntimeError: no answer"
