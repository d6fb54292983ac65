"""The demo's page and its one question, without Triton: what is read, what is refused, in words."""

import io
import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from labkit import demo
from labkit.client import InvalidRequest, Unreachable
from labkit.data import CLASSES
from labkit.demo import DemoServer, NoPicture, PictureTooLarge, open_picture, require_pipeline
from labkit.errors import LabError
from labkit.server import PortInUse


def picture(
    kind: str = "PNG", size: tuple[int, int] = (40, 30), mode: str = "RGB", **how: Any
) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size, 128 if mode in "LP" else None).save(stream, kind, **how)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_every_kind_that_the_page_names_is_read(kind: str) -> None:
    pixels = open_picture(picture(kind))
    assert pixels.shape == (30, 40, 3)
    assert pixels.dtype == np.uint8


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "I;16"])
def test_grey_palettes_and_transparency_become_rgb(mode: str) -> None:
    assert open_picture(picture(mode=mode)).shape == (30, 40, 3)


def test_a_phones_rotation_is_followed() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    assert open_picture(picture("JPEG", exif=exif)).shape == (40, 30, 3)


def test_a_large_photo_is_made_smaller() -> None:
    assert open_picture(picture("JPEG", (4_000, 3_000))).shape == (1_536, 2_048, 3)


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"<svg/>", b"%PDF-1.7", picture()[:60], b"\xff\xd8\xff\xe0" + bytes(500)],
    ids=["empty", "text", "svg", "pdf", "half", "zeros"],
)
def test_what_is_no_picture_is_one_sentence(content: bytes) -> None:
    with pytest.raises(NoPicture, match=r"^This file is no picture.*BMP\.$"):
        open_picture(content)


def test_a_picture_that_would_fill_the_memory_is_not_decoded() -> None:
    content = picture(size=(9_000, 9_000), mode="1")  # some kilobytes, 81 million pixels
    assert len(content) < 100_000
    with pytest.raises(PictureTooLarge, match="9,000 × 9,000 pixels; at most 50,000,000"):
        open_picture(content)
    with pytest.raises(PictureTooLarge, match="21 MB; at most 20 MB"):
        open_picture(bytes(21_000_000))


# -- the page --------------------------------------------------------------------------------------


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Iterator[DemoServer]:
    """The demo on a free port; a picture's class is its mean."""

    def classify(url: str, pixels: NDArray[np.uint8]) -> dict[str, Any]:
        if pixels.shape[0] < 8:
            said = "in ensemble 'cifar10_pipeline', got 4 x 4 pixels, expected more"
            raise InvalidRequest("refused", server_message=said, status="400")
        if pixels.shape[0] == 13:
            raise Unreachable("nothing answers")
        return {"classes": [{"label": url, "share": int(pixels.mean())}], "ms": 1.0}

    monkeypatch.setattr(demo, "classify", classify)
    with DemoServer("127.0.0.1:1") as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join(5)


def ask(
    page: DemoServer, path: str = "/classify", body: bytes | None = None, **headers: str
) -> tuple[int, Any]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(f"http://{page.address}{path}", body, named)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10) as reply:
            status, text = reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read().decode()
    return status, json.loads(text) if text.startswith("{") else text


def test_the_page_knows_the_classes_and_asks_nobody_else(page: DemoServer) -> None:
    status, text = ask(page, "/")
    assert status == 200
    assert json.dumps(list(CLASSES)) in text
    assert "http" not in text


def test_a_picture_is_answered(page: DemoServer) -> None:
    assert ask(page, body=picture(mode="L")) == (
        200,
        {"classes": [{"label": "127.0.0.1:1", "share": 128}], "ms": 1.0},
    )


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"text", 415, "This file is no picture"),
        (picture(size=(9_000, 9_000), mode="1"), 413, "81,000,000"),
        (picture(size=(4, 4)), 400, "The server refused the picture: got 4 x 4 pixels"),
        (picture(size=(13, 13)), 502, "The server has not answered: nothing answers"),
    ],
    ids=["text", "bomb", "small", "no server"],
)
def test_bad_input_gets_one_sentence(page: DemoServer, body: bytes, status: int, says: str) -> None:
    found, answer = ask(page, body=body)
    assert found == status
    assert list(answer) == ["problem"]
    assert says.replace("81,000,000", "9,000 × 9,000") in answer["problem"]
    assert "\n" not in answer["problem"]


def test_a_body_above_the_limit_is_not_even_read(page: DemoServer) -> None:
    head = f"POST /classify HTTP/1.1\r\nHost: {page.address}\r\nContent-Length: 999999999\r\n\r\n"
    with socket.create_connection(("127.0.0.1", page.server_port), timeout=10) as connection:
        connection.sendall(head.encode())
        reply = connection.makefile("rb").read().decode()
    assert " 413 " in reply
    assert "1,000 MB; at most 20 MB" in reply


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/", None, {"Host": "example.org"}, 403),  # a name that leads here
        ("/classify", picture(), {"Origin": "http://example.org"}, 403),
        ("/../pyproject.toml", None, {}, 404),
        ("/templates/demo.html", None, {}, 404),
        ("/other", picture(), {}, 400),
        ("/classify", b"", {"Content_Length": "-1"}, 400),
    ],
)
def test_nothing_else_is_answered(
    page: DemoServer, path: str, body: bytes | None, headers: dict[str, str], status: int
) -> None:
    assert ask(page, path, body, **headers)[0] == status


def test_the_port_is_free_or_the_one_asked_for() -> None:
    with DemoServer("127.0.0.1:1") as first, DemoServer("127.0.0.1:1") as second:
        assert first.server_port != second.server_port
        with pytest.raises(PortInUse, match=f"page port {first.server_port} is held by"):
            DemoServer("127.0.0.1:1", first.server_port)


def test_without_the_pipeline_the_notebook_is_named(tmp_path: Path) -> None:
    (tmp_path / "cifar10_onnx" / "1").mkdir(parents=True)
    with pytest.raises(LabError, match=r"cifar10_preprocess, cifar10_pipeline.*01 to 05 and 10"):
        require_pipeline(tmp_path)
