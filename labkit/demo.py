"""A page on loopback: a person drops a picture, the pipeline of notebook 10 names its class."""

import io
import json
import logging
import math
import time
import warnings
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from labkit.client import ClientError, LabClient
from labkit.data import CLASSES
from labkit.errors import LabError
from labkit.repository import PIPELINE
from labkit.server.ports import LOOPBACK, can_listen, port_in_use

log = logging.getLogger(__name__)

MODELS = ("cifar10_preprocess", "cifar10_onnx", PIPELINE)
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MAX_MB = 20
MAX_PIXELS = 50_000_000  # of a picture; known before it is decoded
MAX_SIDE = 2048  # pixels sent to the server; a larger picture is made smaller
ANSWER_TIMEOUT_S = 30.0
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src "
    "'unsafe-inline'; connect-src 'self'; img-src blob:",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class NoPicture(LabError):
    """What was dropped is no picture that the demo reads."""


class PictureTooLarge(LabError):
    """A file or a picture is above the demo's limits."""


def open_picture(content: bytes) -> NDArray[np.uint8]:
    """Decode a picture that a person has dropped.

    Args:
        content: The file: JPEG, PNG, WebP, GIF (its first frame) or BMP.

    Returns:
        uint8 (height, width, 3), upright, with no side above `MAX_SIDE`.

    Raises:
        NoPicture: it cannot be read as one.
        PictureTooLarge: the file or the picture is above the limits.
    """
    if len(content) > MAX_MB * 10**6:
        raise PictureTooLarge(_too_large(len(content)))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # of damaged metadata, and of sizes that are checked here
            picture = Image.open(io.BytesIO(content), formats=FORMATS)
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise PictureTooLarge(
                    f"The picture has {width:,} × {height:,} pixels; at most "
                    f"{MAX_PIXELS:,} are read."
                )
            upright = ImageOps.exif_transpose(picture).convert("RGB")
    except PictureTooLarge:
        raise
    except Exception as error:  # a decoder raises whatever a damaged file leads it to
        log.debug("no picture: %s", error)
        raise NoPicture(
            "This file is no picture that can be read: drop a JPEG, PNG, WebP, GIF or BMP."
        ) from error
    upright.thumbnail((MAX_SIDE, MAX_SIDE))
    return np.array(upright)


def _too_large(size: int) -> str:
    return f"The file has {size / 1e6:,.0f} MB; at most {MAX_MB} MB are read: drop a smaller one."


def classify(url: str, pixels: NDArray[np.uint8]) -> dict[str, Any]:
    """Ask the pipeline about one picture.

    Args:
        url: Triton's HTTP endpoint, `host:port`.
        pixels: uint8 (height, width, 3).

    Returns:
        `classes`: label and share (softmax of the logits) of each class, best first; `ms`: time
        from the request to the answer, in milliseconds.

    Raises:
        ClientError: the server refused the picture, or does not answer.
    """
    with LabClient(url, timeout_s=ANSWER_TIMEOUT_S) as client:
        client.card(PIPELINE)  # connects, and asks what the client asks once
        begin = time.perf_counter()
        logits = client.infer(PIPELINE, {"image": pixels[None]}, check=False)["logits"][0]
        spent_s = time.perf_counter() - begin
    weights = [math.exp(value - max(logits)) for value in logits.tolist()]
    shares = {label: w / sum(weights) for label, w in zip(CLASSES, weights, strict=True)}
    best_first = sorted(shares.items(), key=lambda entry: -entry[1])
    classes = [{"label": label, "share": round(share, 4)} for label, share in best_first]
    return {"classes": classes, "ms": round(1e3 * spent_s, 1)}


class DemoServer(ThreadingHTTPServer):
    """The page and its one question, on this machine's loopback address.

    Args:
        triton: HTTP endpoint of the Triton that answers, `host:port`.
        port: Of the page; 0 for a free one.

    Raises:
        PortInUse: the port is held; the message names the process.
    """

    daemon_threads = True

    def __init__(self, triton: str, port: int = 0) -> None:
        if port and not can_listen(port):
            raise port_in_use({"page": port})
        super().__init__((LOOPBACK, port), _Handler)
        self.triton = triton

    @property
    def address(self) -> str:
        """`127.0.0.1:PORT`."""
        return f"{LOOPBACK}:{self.server_port}"

    @property
    def known_hosts(self) -> frozenset[str]:
        """What a browser on this machine calls this server; another name is somebody's trick."""
        return frozenset({self.address, f"localhost:{self.server_port}"})


class _Handler(BaseHTTPRequestHandler):
    """`GET /`: the page. `POST /classify` with a picture as the body: JSON."""

    server: DemoServer
    timeout = 30.0  # seconds for each read: a client that stops sending is let go

    def do_GET(self) -> None:
        """Give the page."""
        if self._refused():
            return
        if self.path != "/":
            self._problem(HTTPStatus.NOT_FOUND, "There is one page here: /")
            return
        template = resources.files("labkit") / "templates" / "demo.html"
        page = template.read_text(encoding="utf-8").replace("@CLASSES@", json.dumps(CLASSES))
        self._answer(HTTPStatus.OK, page.encode(), "text/html; charset=utf-8")

    def do_POST(self) -> None:
        """Answer for one picture."""
        if self._refused():
            return
        size = self.headers.get("Content-Length", "")
        if self.path != "/classify" or not size.isdecimal():
            self._problem(HTTPStatus.BAD_REQUEST, "Send a picture to /classify.")
        elif int(size) > MAX_MB * 10**6:
            self._problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, _too_large(int(size)))
        else:
            self._classify(self.rfile.read(int(size)))

    def _classify(self, content: bytes) -> None:
        try:
            found = classify(self.server.triton, open_picture(content))
        except NoPicture as error:
            self._problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, str(error))
        except PictureTooLarge as error:
            self._problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, str(error))
        except ClientError as error:
            if error.status == "400":
                said = error.server_message.rsplit(f"'{PIPELINE}', ", 1)[-1]
                self._problem(HTTPStatus.BAD_REQUEST, f"The server refused the picture: {said}.")
            else:
                self._problem(HTTPStatus.BAD_GATEWAY, f"The server has not answered: {error}")
        else:
            self._answer(HTTPStatus.OK, json.dumps(found).encode(), "application/json")

    def _refused(self) -> bool:
        """Refuse what another site has a browser send here."""
        hosts = self.server.known_hosts
        origin = self.headers.get("Origin")
        known = origin is None or origin in {f"http://{host}" for host in hosts}
        if known and self.headers.get("Host") in hosts:
            return False
        self._problem(HTTPStatus.FORBIDDEN, f"Open this page as http://{self.server.address}/")
        return True

    def _problem(self, status: HTTPStatus, sentence: str) -> None:
        self.close_connection = True  # what is left of a body is not read
        self._answer(status, json.dumps({"problem": sentence}).encode(), "application/json")

    def _answer(self, status: HTTPStatus, body: bytes, content_type: str) -> None:
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Leave the terminal to what a person has to know."""
        log.debug(format, *args)


def require_pipeline(repository: Path) -> None:
    """Refuse a repository in which notebook 10 has not made its models.

    Raises:
        LabError: one is missing; the message names the notebook.
    """
    missing = [name for name in MODELS if not (repository / name / "1").is_dir()]
    if missing:
        raise LabError(
            f"{repository} has no {', '.join(missing)} to serve: run notebooks 01 to 05 and 10, or "
            "`make lab` and then `labkit demo --run standard`"
        )
