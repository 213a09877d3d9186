"""`POST /v1/DATASET/predict`: every kind of body, every kind of bad one, and the limits, through real HTTP."""

from __future__ import annotations

import base64
import io
import json
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from flows.web.limits import RequestLimits
from flows.web.served import Site
from storage.drifts import Drifts
from storage.store import Store
from tasks.serving.predict import load_champion
from tests.support.blobs import SHAPE, blobs
from tests.support.sites import served

IMAGES = blobs()["test-images"]
GREY = IMAGES[4]


@pytest.fixture(scope="module")
def narrow(store: Store) -> Iterator[httpx.Client]:
    """A client of a site with low limits."""
    limits = RequestLimits(body_bytes=20_000, pixels=400, images=3, requests_per_second=1000)
    with served(Site(store, limits=limits)) as client:
        yield client


def picture(pixels: np.ndarray = GREY, kind: str = "PNG", **how: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **how)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def ask(client: httpx.Client, content: bytes, kind: str = "image/png", options: str = "") -> httpx.Response:
    return client.post(f"/v1/tiny/predict{options}", content=content, headers={"content-type": kind})


def ask_json(client: httpx.Client, value: Any, options: str = "") -> httpx.Response:
    return client.post(f"/v1/tiny/predict{options}", json=value)


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_one_image_in_every_form_gets_the_answer_of_the_model(client: httpx.Client, store: Store):
    expected = load_champion("tiny", store).predict(GREY)
    answer = {
        "dataset": "tiny",
        "version": 1,
        "predictions": [
            {"id": None, "label": 1, "name": "bar 1", "probability": float(expected.probability[0]), "version": 1}
        ],
        "remarks": [],
    }
    rows = GREY.tolist()
    responses = [
        ask(client, picture()),
        ask(client, npy(GREY), "application/x-npy"),
        ask(client, npy(np.asfortranarray(GREY)), "application/octet-stream"),
        *(ask_json(client, value) for value in (rows, [rows], {"image": rows}, {"images": [rows]})),
        ask_json(client, {"image": encoded(picture())}),
        ask(client, json.dumps(rows).encode(), "application/json; charset=utf-8"),
    ]
    assert [response.json() for response in responses] == [answer] * len(responses)
    # JPEG changes the pixels a little.
    (close,) = ask(client, picture(kind="JPEG", quality=95), "image/jpeg").json()["predictions"]
    assert (close["label"], close["probability"]) == (
        1,
        pytest.approx(answer["predictions"][0]["probability"], abs=0.1),
    )


def test_many_images_are_answered_in_their_order_with_the_ids_of_the_request(client: httpx.Client, store: Store):
    expected = load_champion("tiny", store).predict(IMAGES)
    ids = [f"image-{row}" for row in range(len(IMAGES))]
    mixed = [encoded(picture(image)) if row % 2 else image.tolist() for row, image in enumerate(IMAGES)]
    for response, names in (
        (ask(client, npy(IMAGES), "application/x-npy"), [None] * len(IMAGES)),
        (ask_json(client, {"images": IMAGES.tolist(), "ids": ids}), ids),
        (ask_json(client, {"images": mixed, "ids": ids}), ids),
    ):
        answers = response.json()["predictions"]
        assert [answer["id"] for answer in answers] == names
        assert [answer["label"] for answer in answers] == expected.label.tolist()
        assert [answer["probability"] for answer in answers] == expected.probability.tolist()


def test_the_probability_of_each_class_comes_if_asked_for(client: httpx.Client, store: Store):
    (answer,) = ask(client, picture(), options="?probabilities=true").json()["predictions"]
    assert answer["probabilities"] == load_champion("tiny", store).predict(GREY).probabilities[0].tolist()


def test_images_are_changed_as_asked_and_it_says_what_is_odd(client: httpx.Client):
    large = np.kron(GREY, np.ones((3, 3), np.uint8))
    refused = ask(client, picture(large))
    assert (refused.status_code, refused.json()) == (
        400,
        {"error": "the body: expected images of 10×8 pixels (height×width); found 30×24; ?resize=true scales them"},
    )
    assert ask(client, picture(large), options="?resize=true").json()["predictions"][0]["label"] == 1
    odd = ask(client, picture(255 - GREY)).json()
    assert odd["remarks"] == [
        "the body: the image looks inverted, compared with the training images; ?invert=true inverts them"
    ]
    assert ask(client, picture(255 - GREY), options="?invert=true").json()["predictions"][0]["label"] == 1
    colour = np.stack([GREY, GREY // 2, GREY], axis=-1)
    assert ask(client, picture(colour)).json()["remarks"][0].startswith("the body is a colour image; its grey values")
    sizes = ask_json(client, {"images": [GREY.tolist(), large.tolist()]}, "?resize=true").json()
    assert [answer["label"] for answer in sizes["predictions"]] == [1, 1]


def deep(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


BAD: dict[str, tuple[str, bytes, str]] = {
    "no picture": ("image/png", b"not a picture", "expected an undamaged PNG or JPEG; it is none of these"),
    "half a picture": ("image/png", picture()[:60], "expected an undamaged PNG or JPEG"),
    "another kind of picture": ("image/png", picture(kind="GIF"), "expected an undamaged PNG or JPEG"),
    "16 bits": ("image/png", picture(GREY.astype(np.uint16)), "expected at most 8 bits per channel; found 16"),
    "nothing": ("application/x-npy", b"", "expected an undamaged .npy file"),
    "half an array": ("application/x-npy", npy(GREY)[:-1], "and 79 bytes follow"),
    "objects": ("application/x-npy", npy(np.array([{}], object)), "without Python objects"),
    "a header that lies": (
        "application/x-npy",
        npy(GREY).replace(b"(10, 8), }", b"(1000000, 1000000), }"),
        "shape (1000000, 1000000), and 91 bytes follow",
    ),
    "floats": ("application/x-npy", npy(GREY / 255), "expected pixels as uint8, 0-255; found float64 from 0 to"),
    "a row for each image": ("application/x-npy", npy(GREY.reshape(1, -1)), "give them their shape"),
    "four dimensions": ("application/x-npy", npy(GREY[None, None]), "found (1, 1, 10, 8)"),
    "a truth value as a size": (
        "application/x-npy",
        npy(GREY).replace(b"(10, 8), }  ", b"(True, 80), }"),
        "undamaged .npy",
    ),
    "a header that does not end": (
        "application/x-npy",
        b"\x93NUMPY\1\0" + (3000).to_bytes(2, "little") + b"(" * 3000,
        "undamaged .npy",
    ),
    "id beside images": ("application/json", b'{"images": [[[1]]], "id": "x"}', "found 'id' beside the other"),
    "ids beside image": ("application/json", b'{"image": [[1]], "ids": ["x"]}', "found 'ids' beside the other"),
    "broken JSON": ("application/json", b"{", "expected JSON; "),
    "no UTF-8": ("application/json", b'"\xff"', "expected JSON; "),
    "deep JSON": ("application/json", deep(100_000), "expected JSON; "),
    "less deep JSON": ("application/json", deep(90), "expected rows of one length"),
    "a number": ("application/json", b"7", "found a number"),
    "null": ("application/json", b"null", "found null"),
    "an empty list": ("application/json", b"[]", "found an empty array"),
    "unknown keys": ("application/json", b'{"pixels": []}', "found 'pixels'; correct the keys"),
    "both keys": ("application/json", b'{"image": [], "images": []}', "expected the key images or image"),
    "a flat list": ("application/json", b"[1, 2, 3]", "expected rows of one length"),
    "ragged rows": ("application/json", b"[[1, 2], [3]]", "expected rows of one length"),
    "floats in JSON": ("application/json", b"[[0.5, 1.0]]", "found float64 of shape (1, 2)"),
    "negative": ("application/json", b"[[-1, 300]]", "expected pixels of 0-255; found -1 to 300"),
    "a huge number": ("application/json", b"[[1" + b"0" * 40 + b"]]", "expected rows of one length"),
    "text that is no base64": ("application/json", b'["%"]', "image 0: expected a PNG or JPEG in base64"),
    "base64 of something else": ("application/json", b'["AAAA"]', "image 0: expected an undamaged PNG or JPEG"),
    "too few ids": ("application/json", b'{"images": [[[1]]], "ids": []}', "expected images of 10"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_body_gets_a_sentence(client: httpx.Client, name: str):
    kind, content, sentence = BAD[name]
    refused = ask(client, content, kind)
    assert refused.status_code == 400
    assert list(refused.json()) == ["error"]
    assert sentence in refused.json()["error"]


@pytest.mark.parametrize(
    ("ids", "sentence"),
    [
        ([], "expected an id of its own for each of 1; found 0 of them"),
        ("a", "found text"),
        ([1], "expected ids as text of 1-200 printable characters; found 1"),
        (["\n"], "found '\\n'"),
        (["x" * 201], "expected ids as text"),
    ],
)
def test_bad_ids_get_a_sentence(client: httpx.Client, ids: Any, sentence: str):
    refused = ask_json(client, {"images": [GREY.tolist()], "ids": ids})
    assert (refused.status_code, sentence in refused.json()["error"]) == (400, True)


def test_other_mistakes_get_a_sentence(client: httpx.Client):
    unknown = client.post("/v1/tinny/predict", content=picture(), headers={"content-type": "image/png"})
    assert (unknown.status_code, unknown.json()) == (
        404,
        {"error": "expected a data set that is served here; found 'tinny' (did you mean tiny?); there are: tiny"},
    )
    form = client.post(
        "/v1/tiny/predict", content=b"x=1", headers={"content-type": "application/x-www-form-urlencoded"}
    )
    assert (form.status_code, "expected a body of type application/json or" in form.json()["error"]) == (415, True)
    assert client.post("/v1/tiny/predict").status_code == 415
    assert client.get("/v1/tiny/predict").status_code == 405
    option = ask(client, picture(), options="?resize=perhaps")
    assert (option.status_code, option.json()["error"]) == (
        422,
        "resize: input should be a valid boolean, unable to interpret input; found 'perhaps'; correct it",
    )


def test_a_data_set_without_a_champion_is_not_asked(store: Store, tmp_path):
    empty = Store(tmp_path / "empty")
    (empty.root / "digits" / "ledger").mkdir(parents=True)
    with served(Site(empty)) as client:
        refused = client.post("/v1/digits/predict", content=picture(), headers={"content-type": "image/png"})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "10")
        assert "expected a champion of digits; found none yet; `idxflow run digits" in refused.json()["error"]
        assert client.get("/v1/digits").json()["version"] is None


def bomb() -> bytes:
    """A PNG whose header says 30,000 × 30,000 pixels, in few bytes."""
    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b""))
    packed = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def test_what_is_over_a_limit_is_refused(narrow: httpx.Client):
    tall = ask(narrow, picture(np.zeros((21, 20), np.uint8)), options="?resize=true")
    assert (tall.status_code, tall.json()["error"]) == (
        400,
        "the body: expected at most 400 pixels; found 21×20; scale it down",
    )
    assert ask(narrow, bomb()).status_code == 400
    many = ask(narrow, npy(IMAGES[:4]), "application/x-npy")
    assert (many.status_code, many.json()["error"]) == (
        413,
        "expected at most 3 images in a request; found 4; send them in several",
    )
    assert ask_json(narrow, [image.tolist() for image in IMAGES[:4]]).status_code == 413
    assert ask_json(narrow, ["AAAA"] * 4).status_code == 413
    together = ask_json(narrow, [encoded(picture(np.zeros((15, 15), np.uint8)))] * 2, "?resize=true")
    assert (together.status_code, together.json()["error"]) == (
        413,
        "expected at most 400 pixels in a request; found more; send the images in several",
    )
    large = ask(narrow, bytes(20_001))
    assert (large.status_code, large.headers["connection"]) == (413, "close")
    assert "expected a body of at most 20,000 bytes; found more" in large.json()["error"]
    # One that does not say its length.
    parts = (bytes(5000) for _ in range(5))
    chunked = narrow.post("/v1/tiny/predict", content=parts, headers={"content-type": "image/png"})
    assert chunked.status_code == 413
    assert ask(narrow, npy(IMAGES[:3]), "application/x-npy").status_code == 200


def test_a_slow_body_is_given_up(store: Store):
    with served(Site(store, limits=RequestLimits(body_seconds=0.01))) as client, socket.socket() as slow:
        slow.connect((client.base_url.host, client.base_url.port))
        head = (
            "POST /v1/tiny/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\nContent-Length: 9\r\n\r\n"
        )
        slow.sendall(head.encode())
        answer = b"".join(iter(lambda: slow.recv(10_000), b"")).decode()
    assert answer.startswith("HTTP/1.1 408 ")
    assert "expected the whole body within 0.01 s; found 0 bytes; send it faster" in answer


def test_a_client_that_goes_away_is_no_error_in_the_log(store: Store, caplog: pytest.LogCaptureFixture):
    with served(Site(store)) as client:
        with socket.create_connection(("127.0.0.1", client.base_url.port or 0)) as connection:
            head = "POST /v1/tiny/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\nContent-Length: 99"
            connection.sendall(f"{head}\r\n\r\nhalf".encode())
        counted = 'idxflow_requests_total{route="/v1/{dataset}/predict",status="400"} 1.0'
        while counted not in client.get("/metrics").text:
            time.sleep(0.01)
    assert "Exception" not in caplog.text


def test_more_requests_than_allowed_are_sent_away(store: Store):
    with served(Site(store, limits=RequestLimits(requests_per_second=0.001))) as client:
        assert client.get("/healthz").status_code == 200
        refused = client.get("/healthz")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert "expected at most 0.001 requests a second from one address" in refused.json()["error"]


def test_when_too_many_wait_the_next_is_sent_away(store: Store):
    with served(Site(store, limits=RequestLimits(waiting=0))) as client:
        refused = ask(client, picture())
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert "expected at most 0 requests to wait" in refused.json()["error"]


def test_the_description_has_the_route_its_body_and_its_answer(client: httpx.Client):
    described = client.get("/openapi.json").json()
    operation = described["paths"]["/v1/{dataset}/predict"]["post"]
    assert "image/png" in operation["requestBody"]["content"]
    assert operation["responses"]["200"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/Predictions"
    }
    page = client.get("/docs").text
    assert "POST /v1/{dataset}/predict" in page
    assert "probability" in page
    assert "http://" not in page.replace("http://127.0.0.1", "")
    assert "https://" not in page
    assert '<link rel="stylesheet" href="./_site/site.css">' in page
    assert "<code>idxflow labels add</code>" in page
    assert "HTTPValidationError" not in page


def test_the_metrics_count_what_happened(store: Store):
    drifts = Drifts(store, "tiny")
    with served(Site(store)) as client:
        assert "idxflow_drifted{" not in client.get("/metrics").text
        drifts.note(1, True, {})
        assert 'idxflow_drifted{dataset="tiny",version="1"} 1.0' in client.get("/metrics").text
        drifts.note(1, False, {})
        assert ask(client, npy(IMAGES), "application/x-npy").status_code == 200
        ask(client, b"")
        client.get("/elsewhere/at/all")
        text = client.get("/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert lines['idxflow_drifted{dataset="tiny",version="1"}'] == "0.0"
    assert lines['idxflow_champion_version{dataset="tiny"}'] == "1.0"
    assert float(lines['idxflow_champion_age_seconds{dataset="tiny"}']) > 0
    assert lines['idxflow_requests_total{route="/v1/{dataset}/predict",status="200"}'] == "1.0"
    assert lines['idxflow_requests_total{route="/v1/{dataset}/predict",status="400"}'] == "1.0"
    assert lines['idxflow_requests_total{route="other",status="404"}'] == "1.0"
    assert lines['idxflow_request_seconds_count{route="/v1/{dataset}/predict"}'] == "2.0"
    assert lines['idxflow_predictions_total{dataset="tiny",label="bar 0",version="1"}'] == "10.0"
    assert all(line.startswith("idxflow_") for line in lines)


def test_the_size_of_images_is_told(client: httpx.Client):
    told = client.get("/v1/tiny").json()
    assert (told["version"], told["image_shape"], told["classes"]) == (1, [*SHAPE], ["bar 0", "bar 1", "bar 2"])
