"""Take the pictures of `docs/pictures/` that show a real run: its report, its page in the Prefect UI, and the site.

`make pictures` runs it. It needs Chromium, no network, and about two minutes. All else that it makes is in a temporary
folder. The SVG files beside the pictures are drawn by hand.
"""

from __future__ import annotations

import base64
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

PICTURES = Path(__file__).resolve().parent / "pictures"
IDXFLOW = str(Path(sys.executable).with_name("idxflow"))
MOST_BYTES = 200_000
# The first run makes a champion that the second one clearly beats.
RUNS = ('training={"hidden": [8]}', "profile=default")
PANE = {"width": 760, "height": 940}
PAGE = {"width": 1280, "height": 900}


@contextmanager
def service(home: Path, port: int) -> Iterator[tuple[dict[str, str], str]]:
    """Run `idxflow up` with a home and a store of its own; yield the environment of its clients, and its site."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "IDXFLOW_"))}
    own = {"HOME": str(home), "PREFECT_HOME": str(home / "prefect"), "IDXFLOW_STORE": str(home / "store")}
    # For the one request of this script: `main` asks the API which run to show.
    command = [IDXFLOW, "up", "--port", str(port), "--no-csrf", "--site-port", "0"]
    environment = inherited | own
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as up:
        try:
            site = ""
            for line in up.stdout or ():
                site = line.split()[4].rstrip(",") if line.startswith("starting the site at ") else site
                if line.startswith("ready"):
                    break
            else:
                raise RuntimeError("expected `idxflow up` to become ready; it ended, see above")
            yield environment, site
        finally:
            up.send_signal(signal.SIGTERM)
            up.communicate()


def newest_run(address: str, auth: str) -> str:
    """Return the path of the page of the run that has ended last."""
    user, _, password = auth.partition(":")
    ended = {"sort": "END_TIME_DESC", "limit": 1, "flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
    answer = httpx.post(f"{address}/api/flow_runs/filter", json=ended, auth=(user, password), trust_env=False)
    return f"/v2/runs/flow-run/{answer.raise_for_status().json()[0]['id']}"


def picture_of_run(browser: Any, address: str, auth: str) -> bytes:
    """Return the page of the newest run in the Prefect UI, with the end of its log in sight."""
    context = browser.new_context(viewport=PAGE, device_scale_factor=1.25, color_scheme="light")
    # Where the UI keeps what a person has typed into its form.
    secret = base64.b64encode(auth.encode()).decode()
    context.add_init_script(f"localStorage.setItem('prefect-password', '{secret}')")
    page = context.new_page()
    page.goto(address + newest_run(address, auth))
    page.get_by_text("Oldest to newest").click()
    page.get_by_role("option", name="Newest to oldest").click()
    page.get_by_text("promoted v2: ").first.wait_for()
    # The graph is drawn on a canvas, and moves until it fits.
    page.wait_for_timeout(4000)
    return bytes(page.screenshot())


def picture_of_report(browser: Any, report: Path) -> bytes:
    """Return two parts of the report side by side: the result, and the images that tell two models apart."""
    page = browser.new_page(viewport=PANE, device_scale_factor=1.25, color_scheme="light")
    page.goto(report.as_uri())
    panes = [page.screenshot()]
    page.get_by_role("heading", name="Mistakes and disagreements").evaluate(
        "heading => heading.scrollIntoView({behavior: 'instant'})"
    )
    panes.append(page.screenshot())
    images = [Image.open(io.BytesIO(pane)) for pane in panes]
    gap = 12
    both = Image.new("RGB", (sum(image.width for image in images) + gap, images[0].height), "#9aa5b1")
    both.paste(images[0], (0, 0))
    both.paste(images[1], (images[0].width + gap, 0))
    packed = io.BytesIO()
    both.save(packed, "PNG")
    return packed.getvalue()


def picture_of_trying(browser: Any, site: str) -> bytes:
    """Return the page where a digit was drawn, a three, with the answer of the champion."""
    page = browser.new_page(viewport={"width": 1080, "height": 960}, device_scale_factor=1.25, color_scheme="light")
    page.goto(f"{site}/digits/try")
    box = page.locator("#paper").bounding_box()
    points = ((0.3, 0.22), (0.5, 0.15), (0.66, 0.25), (0.62, 0.4), (0.48, 0.48), (0.65, 0.56), (0.7, 0.72), (0.5, 0.85))
    for number, (x, y) in enumerate((*points, (0.28, 0.76))):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=6)
        if number == 0:
            page.mouse.down()
    page.mouse.up()
    page.locator("#answer h2").wait_for()
    return bytes(page.screenshot())


def save(name: str, png: bytes) -> None:
    """Write a picture with 256 colours, which is enough for pages."""
    path = PICTURES / name
    Image.open(io.BytesIO(png)).convert("RGB").quantize(256).save(path, optimize=True)
    if path.stat().st_size > MOST_BYTES:
        raise RuntimeError(f"expected {path} to have at most {MOST_BYTES:,} bytes; found {path.stat().st_size:,}")
    print(f"{path}  {path.stat().st_size:,} bytes")


def main() -> None:
    """Run twice, and take all pictures of the second run."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    if not program:
        raise SystemExit("expected a browser; found no chromium; on Debian: apt-get install chromium-headless-shell")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    with (
        tempfile.TemporaryDirectory() as home,
        service(Path(home), port) as (environment, site),
        sync_playwright() as started,
    ):
        for parameter in RUNS:
            run = ["prefect", "deployment", "run", "retrain/digits", "--param", parameter, "--watch"]
            subprocess.run([IDXFLOW, *run], env=environment, check=True, stdout=subprocess.DEVNULL)
        report = Path(home) / "report.html"
        subprocess.run([IDXFLOW, "report", "digits", "--out", str(report)], env=environment, check=True)
        auth = (Path(home) / "prefect" / "idxflow" / "auth-string").read_text(encoding="utf-8").strip()
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        save("run.png", picture_of_run(browser, address, auth))
        save("report.png", picture_of_report(browser, report))
        save("try.png", picture_of_trying(browser, site))
        browser.close()


if __name__ == "__main__":
    main()
