"""The demo in a real browser: a picture is dropped, ten bars answer; bad input gets a sentence."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from lesson import write_pipeline
from PIL import Image
from playwright.sync_api import Browser, Page
from test_jupyterlab import browser  # noqa: F401, a fixture

from labkit.data import CLASSES
from labkit.demo import DemoServer
from labkit.grading.inside.serve_network import write_network
from labkit.repository import VARIANTS, write_config
from labkit.server import TritonServer

WAIT_MS = 30_000
# What the network of this test is made of: the mean of one channel decides.
RED, GREEN, BLUE = "airplane", "bird", "frog"
# A drop as a person makes it: the browser itself builds the event with the file.
DROP = """async ({target, name, type, data}) => {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name, {type}));
    const event = {dataTransfer: transfer, bubbles: true, cancelable: true};
    const place = document.querySelector(target);
    for (const kind of ["dragenter", "dragover", "drop"])
        place.dispatchEvent(new DragEvent(kind, event));
}"""


def colour_network() -> dict[str, list[float]]:
    weight = np.zeros((10, 3, 32, 32), np.float32)
    for channel, label in enumerate((RED, GREEN, BLUE)):
        weight[CLASSES.index(label), channel] = 5 / 1024
    return {"weight": weight.ravel().tolist(), "bias": [0.0] * 10}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The demo, answered by a real Triton through the pipeline of notebook 10."""
    root = tmp_path_factory.mktemp("demo")
    repository = root / "model_repository"
    write_config(repository, VARIANTS["cifar10_onnx"])
    write_network(repository / "cifar10_onnx" / "1", colour_network())
    write_pipeline(repository)
    with (
        TritonServer(repository, log_path=root / "log", allow_python_models=True) as triton,
        DemoServer(triton.http) as server,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{server.address}/"
        server.shutdown()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:  # noqa: F811
    with browser.new_page(viewport={"width": 1_100, "height": 640}) as page:
        page.goto(address)
        yield page


def picture(colour: tuple[int, int, int], size: tuple[int, int] = (320, 200)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "PNG")
    return stream.getvalue()


def drop(page: Page, name: str, kind: str, content: bytes, target: str = "#drop") -> None:
    data = base64.b64encode(content).decode()
    page.evaluate(DROP, {"target": target, "name": name, "type": kind, "data": data})


def best(page: Page, label: str) -> None:
    page.locator("li.best", has_text=label).wait_for(timeout=WAIT_MS)


pytestmark = [pytest.mark.browser, pytest.mark.triton, pytest.mark.timeout(180)]


def test_a_dropped_picture_is_answered_by_ten_bars(page: Page, tmp_path: Path) -> None:
    assert page.locator("#bars li").count() == 10
    drop(page, "red.png", "image/png", picture((250, 0, 0)))
    best(page, RED)
    assert RED in page.locator("#says").inner_text()
    names = page.locator("#bars li > span:first-child").all_inner_texts()
    assert sorted(names) == sorted(CLASSES) and names[0] == RED
    page.wait_for_timeout(400)  # the bars grow
    boxes = [bar.bounding_box() for bar in page.locator(".bar span").all()]
    widths = [box["width"] for box in boxes if box]
    assert widths == sorted(widths, reverse=True) and widths[0] > 5 * widths[-1] > 0
    shown = page.locator("#drop img")
    assert shown.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [320, 200]
    drop(page, "blue.png", "image/png", picture((0, 0, 250)), target="footer")  # anywhere
    best(page, BLUE)
    assert page.locator("#drop img").count() == 1


def test_a_picture_can_be_chosen_too(page: Page) -> None:
    file = {"name": "green.png", "mimeType": "image/png", "buffer": picture((0, 250, 0))}
    page.set_input_files("#file", files=[file])
    best(page, GREEN)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"just a text", "no picture that can be read"),
        (picture((1, 2, 3), (4, 4)), "expected sides from 8"),
        (bytes(20_500_000), "at most 20 MB"),
    ],
    ids=["text", "small", "large"],
)
def test_bad_input_gets_one_clear_sentence(page: Page, content: bytes, says: str) -> None:
    drop(page, "file.png", "image/png", content)
    problem = page.locator("#says.problem", has_text=says)
    problem.wait_for(timeout=WAIT_MS)
    assert problem.inner_text().count(".") <= 2 and "\n" not in problem.inner_text()
    assert page.locator("li.best").count() == 0
    drop(page, "red.png", "image/png", picture((250, 0, 0)))
    best(page, RED)
    assert page.locator("#says.problem").count() == 0
