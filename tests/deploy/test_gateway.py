"""The gateway's rules: a real nginx with docker/gateway/nginx.conf before replicas of our own."""

from __future__ import annotations

import json
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fake_replicas import Answer, FakeReplica, ask, eventually, fake_replicas, parse, send

from labkit.operate import MissingProgram, find_program
from labkit.operate.gateway import Gateway
from labkit.server.ports import free_port

pytestmark = pytest.mark.nginx

INFER = "/v2/models/cifar10_onnx/infer"
KEYS = {"lab": "0123456789abcdef" * 4, "other": "fedcba9876543210" * 4}
KEY = KEYS["lab"]
MIB = 2**20


@pytest.fixture(scope="module", autouse=True)
def nginx() -> Path:
    try:
        return find_program("nginx")
    except MissingProgram as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def replica() -> Iterator[FakeReplica]:
    with fake_replicas(1) as (only,):
        yield only


@pytest.fixture(scope="module")
def gateway(replica: FakeReplica, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One gateway for all tests that do not change it."""
    folder = tmp_path_factory.mktemp("gateway")
    with Gateway([replica.address], [replica.address], folder, keys=KEYS) as running:
        yield running


def before(replicas: list[FakeReplica], folder: Path, **settings: str) -> Gateway:
    addresses = [replica.address for replica in replicas]
    return Gateway(addresses, addresses, folder / "gateway", keys=KEYS, settings=settings)


def infer(gateway: Gateway, body: bytes = b"image", key: str = KEY) -> Answer:
    return ask(gateway.http_url, INFER, method="POST", key=key, body=body)


def log_lines(gateway: Gateway) -> list[dict[str, object]]:
    return [json.loads(line) for line in gateway.access_log.read_text().splitlines()]


# ---- what is open and what is not ----------------------------------------------------------

OPEN = [
    ("GET", "/v2"),
    ("GET", "/v2/health/live"),
    ("GET", "/v2/health/ready"),
    *(
        ("GET", f"/v2/models/{model}{version}{what}")
        for model in ("cifar10_onnx", "a.b-c_1")
        for version in ("", "/versions/12")
        for what in ("", "/ready", "/config", "/stats")
    ),
    ("POST", INFER),
    ("POST", "/v2/models/cifar10_onnx/versions/1/infer"),
]
CLOSED = [
    # what Triton offers and the gateway does not pass on
    ("POST", "/v2/repository/index"),
    ("GET", "/v2/repository/index"),
    ("POST", "/v2/repository/models/m/load"),
    ("POST", "/v2/repository/models/m/unload"),
    ("GET", "/v2/systemsharedmemory/status"),
    ("POST", "/v2/systemsharedmemory/region/r/register"),
    ("POST", "/v2/systemsharedmemory/unregister"),
    ("GET", "/v2/cudasharedmemory/status"),
    ("POST", "/v2/cudasharedmemory/region/r/register"),
    ("GET", "/v2/trace/setting"),
    ("POST", "/v2/trace/setting"),
    ("GET", "/v2/models/m/trace/setting"),
    ("POST", "/v2/models/m/trace/setting"),
    ("GET", "/v2/logging"),
    ("POST", "/v2/logging"),
    ("GET", "/metrics"),
    ("POST", "/v2/models/m/generate"),
    ("POST", "/v2/models/m/generate_stream"),
    ("POST", "/inference.GRPCInferenceService/ModelInfer"),
    # the right path, the wrong method
    ("POST", "/v2"),
    ("POST", "/v2/health/ready"),
    ("POST", "/v2/models/m/config"),
    ("GET", INFER),
    ("PUT", INFER),
    ("DELETE", "/v2/models/m"),
    ("HEAD", "/v2"),
    ("OPTIONS", "/v2"),
    ("get", "/v2"),
    ("XGET", "/v2"),
    ("XPOST", INFER),
    # other spellings of closed paths
    ("POST", "//v2/repository/index"),
    ("POST", "/v2//repository/index"),
    ("POST", "/v2/repository//index"),
    ("POST", "/v2/./repository/index"),
    ("POST", "/v2/models/../repository/index"),
    ("POST", "/v2/models/m/../../repository/index"),
    ("POST", "/v2/models/%2e%2e/repository/index"),
    ("POST", "/v2/models/%2E%2E/repository/index"),
    ("POST", "/v2/models/.%2e/repository/index"),
    ("POST", "/v2/models/m%2f..%2f..%2frepository/index"),
    ("POST", "/v2/models/..%2frepository/index/infer"),
    ("POST", "/v2/%72epository/index"),
    ("POST", "/%76%32/repository/index"),
    ("POST", "/v2/repository/index?"),
    ("POST", "/v2/repository/index?x=/infer"),
    ("POST", "/v2/repository/index#/infer"),
    ("POST", "/v2/repository/index;/infer"),
    ("POST", "/v2/repository/index%00/infer"),
    ("POST", "/v2/repository/index%0a"),
    ("POST", "/v2/repository/index/infer"),
    ("POST", "/v2/repository/index."),
    ("POST", "/v2/repository/index/"),
    ("POST", "/V2/Repository/Index"),
    ("POST", "http://localhost/v2/repository/index"),
    ("POST", "/v2/repository\\index"),
    ("GET", "/v2/models/m/%74race/setting"),
    ("GET", "/v2/%6cogging"),
    ("GET", "/v2/health/../logging"),
    ("GET", "/v2/health/ready/../../logging"),
    ("GET", "/v2/models/m/ready/../trace/setting"),
    ("GET", "/healthz/../v2/logging"),
    # other spellings of open paths: one spelling is enough
    ("GET", "/V2"),
    ("GET", "/v2/"),
    ("GET", "//v2"),
    ("GET", "/v2."),
    ("GET", "/v2?"),
    ("GET", "/v2?x=1"),
    ("GET", "/v2/health"),
    ("GET", "/v2/Health/Ready"),
    ("GET", "/v2/health/ready/"),
    ("GET", "/v2/health/ready."),
    ("GET", "/v2/health/%72eady"),
    ("GET", "/v2/models"),
    ("GET", "/v2/models/"),
    ("GET", "/v2/models/."),
    ("GET", "/v2/models/.."),
    ("GET", "/v2/models/..."),
    ("GET", "/v2/models/.hidden"),
    ("GET", "/v2/models/-flag"),
    ("GET", "/v2/models/a b".replace(" ", "%20")),
    ("GET", "/v2/models/a%2fb"),
    ("GET", "/v2/models/mÃ¼ll"),
    ("GET", "/v2/models/m/versions/one"),
    ("GET", "/v2/models/m/versions/1/"),
    ("GET", "/v2/models/m/versions/-1"),
    ("GET", "/v2/models/m/Ready"),
    ("POST", "/v2/models/m/INFER"),
    ("POST", "/v2/models/m/infer/"),
    ("POST", "/v2/models/m/infer?x"),
    ("POST", "/v2/models//infer"),
    ("POST", "/v2/models/m/infer/infer"),
    ("GET", "/"),
    ("GET", "/refused"),
    ("GET", "/healthz/"),
    ("GET", "/nginx_status"),
    ("GET", "/.git/config"),
]  # fmt: skip
NO_REQUEST = [  # nginx itself refuses to read these
    ("GET", "/.."),
    ("GET", "/../v2/logging"),
    ("GET", "/v2/../../v2/logging"),
    ("GET", "/%2e%2e/v2/logging"),
    ("GET", "/v2/models/m%00"),
    ("GET", "/v2/models/%zz"),
    ("GET", "v2/logging"),
    ("CONNECT", "localhost:80"),
]


@pytest.mark.parametrize(("method", "path"), OPEN)
def test_an_open_path_reaches_triton_as_it_is(
    gateway: Gateway, replica: FakeReplica, method: str, path: str
) -> None:
    body = b"image" if method == "POST" else b""
    answer = ask(gateway.http_url, path, method=method, key=KEY, body=body)
    assert answer.status == 200
    assert replica.asked[-1][:2] == (method, path)
    assert replica.asked[-1][3] == body


@pytest.mark.parametrize(("method", "path"), CLOSED)
def test_everything_else_is_refused(
    gateway: Gateway, replica: FakeReplica, method: str, path: str
) -> None:
    count = replica.count()
    answer = ask(gateway.http_url, path, method=method, key=KEY)
    if method == "HEAD":
        assert (answer.status, answer.body) == (403, b"")
    elif method == "get":  # no method of HTTP
        assert answer.status in (400, 403, 405)
    else:
        assert answer.status in ((400, 403) if "%00" in path else (403,))
        assert answer.error
    assert replica.count() == count


@pytest.mark.parametrize(("method", "path"), NO_REQUEST)
def test_what_is_no_request_is_refused_in_json_too(
    gateway: Gateway, replica: FakeReplica, method: str, path: str
) -> None:
    count = replica.count()
    answer = ask(gateway.http_url, path, method=method, key=KEY)
    assert answer.status in (400, 403, 405)
    assert answer.error
    assert replica.count() == count


def test_a_second_request_hidden_in_the_first_is_refused(
    gateway: Gateway, replica: FakeReplica
) -> None:
    """Two lengths for one body: what one side takes for a body, the other could take as request."""
    hidden = b"POST /v2/repository/index HTTP/1.1\r\nHost: x\r\n\r\n"
    for fields in (
        f"Content-Length: {len(hidden)}\r\nTransfer-Encoding: chunked",
        f"Content-Length: 0\r\nContent-Length: {len(hidden)}",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding : chunked",
    ):
        count = replica.count()
        head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nConnection: close\r\n"
        answer = send(gateway.http_url, f"{head}{fields}\r\n\r\n".encode() + b"0\r\n\r\n" + hidden)
        assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 501", b"HTTP/1.1 200")), fields
        reached = [path for _, path, _, _ in replica.asked[count:]]
        assert set(reached) <= {INFER}, fields


# ---- who may ask ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-API-Key": ""},
        {"X-API-Key": "wrong"},
        {"X-API-Key": KEY[:-1]},
        {"X-API-Key": f"{KEY}0"},
        {"X-API-Key": f"{KEY}, x"},
        {"X-API-Key": "lab"},  # the name is no key
        {"X-API-Key": "default"},
        {"X-API-Key": ".*"},
        {"X-API-Key": "~.*"},
        {"X-API-Key": "k" * 4000},
        {"X_API_Key": KEY},
        {"Authorization": f"Bearer {KEY}"},
        {"Cookie": f"X-API-Key={KEY}"},
    ],
    ids=lambda headers: str(headers).replace(KEY, "KEY")[:40],
)
@pytest.mark.parametrize("path", ["/v2", "/v2/health/ready", "/v2/repository/index", "/x"])
def test_without_a_key_nothing_is_open(
    gateway: Gateway, replica: FakeReplica, headers: dict[str, str], path: str
) -> None:
    count = replica.count()
    answer = ask(gateway.http_url, path, headers=headers)
    assert answer.status == 401
    assert "API key" in answer.error
    assert answer.headers["www-authenticate"] == "ApiKey"
    assert replica.count() == count


def test_each_key_works_and_stays_at_the_gateway(gateway: Gateway, replica: FakeReplica) -> None:
    for name, key in KEYS.items():
        assert ask(gateway.http_url, "/v2", key=key).status == 200
        assert "x-api-key" not in replica.asked[-1][2]
        eventually(lambda name=name: log_lines(gateway)[-1]["key"] == name)


def test_the_gateway_says_that_it_is_there_without_a_key(gateway: Gateway) -> None:
    answer = ask(gateway.http_url, "/healthz")
    assert (answer.status, json.loads(answer.body)) == (200, {"status": "ok"})


def test_the_server_does_not_say_its_version(gateway: Gateway) -> None:
    for path in ("/v2", "/x", "/%zz"):
        assert ask(gateway.http_url, path, key=KEY).headers["server"] == "nginx"


def test_a_line_for_each_request_and_never_a_key(gateway: Gateway) -> None:
    ask(gateway.http_url, "/v2", key=KEY)
    ask(gateway.http_url, f"/v2?key={KEY}", key=KEY)
    ask(gateway.http_url, "/v2", key="guessed-key-0001")
    ask(gateway.http_url, '/v2/"quotes"\\', key=KEY)
    eventually(lambda: "quotes" in gateway.access_log.read_text())
    first, second, third, fourth = log_lines(gateway)[-4:]
    assert first["request"] == second["request"] == third["request"] == "GET /v2"
    assert fourth["request"] == 'GET /v2/"quotes"\\'
    assert [line["status"] for line in (first, second, third)] == [200, 403, 401]
    assert [line["key"] for line in (first, second, third)] == ["lab", "lab", ""]
    assert first["upstream_addr"] == gateway.http[0]
    assert first["upstream_status"] == "200"
    assert 0 <= float(str(first["upstream_response_time"])) <= 10
    assert 0 <= float(str(first["request_time"])) <= 10
    assert int(str(first["request_length"])) > 0
    assert second["upstream_addr"] == ""
    text = gateway.access_log.read_text()
    assert not any(key in text for key in [*KEYS.values(), "guessed-key-0001"])


# ---- how much ------------------------------------------------------------------------------


def test_a_body_up_to_the_cap_passes_and_one_above_does_not(
    gateway: Gateway, replica: FakeReplica
) -> None:
    body = bytes(range(256)) * (8 * MIB // 256)
    assert infer(gateway, body).status == 200
    assert replica.asked[-1][3] == body
    count = replica.count()
    answer = infer(gateway, body + b"x")
    assert answer.status == 413
    assert "too large" in answer.error
    assert replica.count() == count


def test_a_body_of_unknown_length_is_capped_as_well(replica: FakeReplica, tmp_path: Path) -> None:
    with before([replica], tmp_path, body_cap="100k") as gateway:
        chunk = b"1000\r\n" + b"x" * 0x1000 + b"\r\n"
        headers = {"Transfer-Encoding": "chunked"}
        for chunks, status in ((20, 200), (40, 413)):
            count = replica.count()
            body = chunk * chunks + b"0\r\n\r\n"
            answer = ask(
                gateway.http_url, INFER, method="POST", key=KEY, body=body, headers=headers
            )
            assert answer.status == status
            assert replica.count() == count + (status == 200)


def test_requests_above_the_rate_are_refused_for_that_key_only(
    replica: FakeReplica, tmp_path: Path
) -> None:
    with before([replica], tmp_path, rate="60r/m", burst="3") as gateway:
        answers = [infer(gateway) for _ in range(12)]
        statuses = Counter(answer.status for answer in answers)
        assert statuses[200] >= 4  # one at once and three above the rate
        assert statuses[429] >= 4
        assert set(statuses) == {200, 429}
        refused = next(answer for answer in answers if answer.status == 429)
        assert "too many requests" in refused.error
        assert refused.headers["retry-after"] == "1"
        assert infer(gateway, key=KEYS["other"]).status == 200
        assert ask(gateway.http_url, "/healthz").status == 200
        eventually(lambda: infer(gateway).status == 200)


# ---- which replica -------------------------------------------------------------------------


def test_a_dead_replica_costs_no_request(tmp_path: Path) -> None:
    with fake_replicas(2) as replicas:
        addresses = [f"127.0.0.1:{free_port()}", *(replica.address for replica in replicas)]
        with Gateway(addresses, addresses, tmp_path / "gateway", keys=KEYS) as gateway:
            statuses = Counter(infer(gateway).status for _ in range(200))
            assert statuses == {200: 200}
            eventually(lambda: len(log_lines(gateway)) >= 200)
            tried = [str(line["upstream_addr"]) for line in log_lines(gateway)]
    assert any("," in addresses for addresses in tried)  # it was asked, and another one after it
    assert all(replica.count() for replica in replicas)


def test_a_replica_that_hangs_up_costs_no_request_and_the_body_is_sent_again(
    tmp_path: Path,
) -> None:
    with fake_replicas(2) as (broken, good), before([broken, good], tmp_path) as gateway:
        broken.hang_up = True
        for number in range(40):
            body = f"image {number}".encode() * 10_000
            assert infer(gateway, body).status == 200
            assert good.asked[-1][3] == body
        assert broken.count() >= 1
        assert broken.asked[0][3].startswith(b"image ")
        broken.hang_up = False
        count = broken.count()  # it is asked again once it has recovered
        eventually(lambda: infer(gateway).status == 200 and broken.count() > count)


@pytest.mark.parametrize("status", [502, 504])
def test_a_replica_that_is_unavailable_is_passed_over(tmp_path: Path, status: int) -> None:
    with fake_replicas(2) as (busy, good), before([busy, good], tmp_path) as gateway:
        busy.status = status
        assert Counter(infer(gateway).status for _ in range(40)) == {200: 40}
        assert busy.count() >= 1
        assert good.count() == 40


@pytest.mark.parametrize("status", [400, 404, 500, 501, 503])
def test_an_answer_about_the_request_is_not_asked_for_twice(tmp_path: Path, status: int) -> None:
    with fake_replicas(2) as replicas, before(replicas, tmp_path) as gateway:
        for replica in replicas:
            replica.status = status
        for _ in range(10):
            answer = infer(gateway)
            assert (answer.status, answer.error) == (status, "as asked")  # Triton's own words
        assert sum(replica.count() for replica in replicas) == 10


def test_a_replica_with_a_full_queue_is_not_put_aside(tmp_path: Path) -> None:
    """Else an overload of a moment takes the capacity of the seconds after it."""
    with fake_replicas(2) as (full, good), before([full, good], tmp_path) as gateway:
        full.status = 503
        answers = Counter(infer(gateway).status for _ in range(20))
        assert answers[503] >= 5
        full.status = 200
        assert Counter(infer(gateway).status for _ in range(20)) == {200: 20}
        assert good.count() < 40


def test_when_no_replica_takes_requests_the_client_is_told_at_once(tmp_path: Path) -> None:
    with fake_replicas(2) as replicas, before(replicas, tmp_path) as gateway:
        for replica in replicas:
            replica.status = 502
        first = infer(gateway)
        assert (first.status, first.error) == (502, "as asked")  # each one was tried once
        assert [replica.count() for replica in replicas] == [1, 1]
        second = infer(gateway)
        assert second.status == 503
        assert "no replica takes the request now" in second.error
        assert second.headers["retry-after"] == "1"
        for replica in replicas:
            replica.status = 200
        eventually(lambda: infer(gateway).status == 200)


def test_a_request_is_asked_at_two_replicas_and_no_more(tmp_path: Path) -> None:
    """A request that kills whoever takes it must not go through the whole row."""
    with fake_replicas(3) as replicas, before(replicas, tmp_path) as gateway:
        for replica in replicas:
            replica.hang_up = True
        assert infer(gateway).status == 503
        assert sum(replica.count() for replica in replicas) == 2


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br"])
def test_a_compressed_body_is_refused(tmp_path: Path, coding: str) -> None:
    with fake_replicas(1) as [replica], before([replica], tmp_path) as gateway:
        coded = {"Content-Encoding": coding}
        answer = ask(gateway.http_url, INFER, method="POST", key=KEY, body=b"x", headers=coded)
        assert (answer.status, answer.error) == (415, "a compressed body: send it as it is")
        assert replica.count() == 0


def test_no_replica_at_all_is_one_sentence(tmp_path: Path) -> None:
    nobody = [f"127.0.0.1:{free_port()}"]
    with Gateway(nobody, nobody, tmp_path / "gateway", keys=KEYS) as gateway:
        answer = infer(gateway)
        assert answer.status == 503
        assert "no replica" in answer.error


def test_a_replica_that_hangs_is_given_up(tmp_path: Path) -> None:
    settings = {"read_timeout": "1s"}
    with fake_replicas(2) as (hung, good), before([hung, good], tmp_path, **settings) as gateway:
        hung.gate.clear()
        assert Counter(infer(gateway).status for _ in range(10)) == {200: 10}
        assert hung.count() >= 1
        good.gate.clear()
        answer = infer(gateway)
        assert answer.status in (503, 504)
        assert answer.error


def test_load_goes_to_the_replica_with_the_fewest_requests(tmp_path: Path) -> None:
    with fake_replicas(3) as replicas, before(replicas, tmp_path) as gateway:
        for replica in replicas:
            replica.gate.clear()
        with ThreadPoolExecutor(30) as pool:
            answers = [pool.submit(infer, gateway) for _ in range(30)]
            eventually(lambda: sum(replica.waiting for replica in replicas) == 30)
            assert [replica.waiting for replica in replicas] == [10, 10, 10]
            replicas[2].gate.set()  # the fast one takes what comes from now on
            eventually(lambda: replicas[2].waiting == 0)
            count = replicas[2].count()
            assert Counter(infer(gateway).status for _ in range(10)) == {200: 10}
            assert replicas[2].count() == count + 10
            for replica in replicas:
                replica.gate.set()
            assert Counter(answer.result().status for answer in answers) == {200: 30}


def test_connections_to_a_replica_are_kept(tmp_path: Path) -> None:
    with fake_replicas(1) as (replica,), before([replica], tmp_path) as gateway:
        assert Counter(infer(gateway).status for _ in range(40)) == {200: 40}
        assert len(replica.connections) <= 2  # one for each worker


def test_no_replica_gets_more_at_once_than_it_may(tmp_path: Path) -> None:
    with fake_replicas(2) as replicas, before(replicas, tmp_path, max_conns="2") as gateway:
        for replica in replicas:
            replica.gate.clear()
        with ThreadPoolExecutor(4) as pool:
            answers = [pool.submit(infer, gateway) for _ in range(4)]
            eventually(lambda: sum(replica.waiting for replica in replicas) == 4)
            assert infer(gateway).status == 503
            assert [replica.waiting for replica in replicas] == [2, 2]
            for replica in replicas:
                replica.gate.set()
            assert Counter(answer.result().status for answer in answers) == {200: 4}
        assert infer(gateway).status == 200


def test_new_replicas_without_a_lost_request(tmp_path: Path) -> None:
    with fake_replicas(4) as replicas, before(replicas[:2], tmp_path) as gateway:
        for replica in replicas:
            replica.delay_s = 0.01
        statuses: Counter[int] = Counter()
        stop = threading.Event()

        def keep_asking() -> None:
            while not stop.is_set():
                statuses[infer(gateway).status] += 1

        threads = [threading.Thread(target=keep_asking) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for chosen in (replicas[2:], replicas[:1], replicas):
                addresses = [replica.address for replica in chosen]
                counts = [replica.count() for replica in chosen]
                gateway.reload(addresses, addresses)
                eventually(
                    lambda chosen=chosen, counts=counts: all(
                        replica.count() > count + 5
                        for replica, count in zip(chosen, counts, strict=True)
                    )
                )
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert set(statuses) == {200}
        assert statuses[200] > 50
        gateway.reload([replicas[3].address], [replicas[3].address])
        counts = [replica.count() for replica in replicas[:3]]
        assert Counter(infer(gateway).status for _ in range(20)) == {200: 20}
        assert [replica.count() for replica in replicas[:3]] == counts


# ---- slow clients --------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["", f"POST {INFER} HTTP/1.1\r\nHost: x\r\nX-API-"])
def test_a_client_that_never_ends_its_headers_is_cut_off(
    replica: FakeReplica, tmp_path: Path, start: str
) -> None:
    with before([replica], tmp_path, header_timeout="1s", keepalive_timeout="1s") as gateway:
        # recv returns b"" once the gateway closes; a gateway that waits would time out here
        assert send(gateway.http_url, start.encode(), limit_s=15) == b""


def test_a_client_that_stops_within_its_body_is_cut_off(
    replica: FakeReplica, tmp_path: Path
) -> None:
    count = replica.count()
    with before([replica], tmp_path, body_timeout="1s") as gateway:
        head = (
            f"POST {INFER} HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nContent-Length: 100\r\n\r\n"
        )
        answer = send(gateway.http_url, head.encode() + b"x" * 50, limit_s=15)
        assert answer == b"" or parse(answer).status == 408
        eventually(
            lambda: log_lines(gateway)[-1:] != [] and log_lines(gateway)[-1]["status"] == 408
        )
        assert infer(gateway).status == 200
    assert replica.count() == count + 1  # the broken request never came to a replica


def test_slow_clients_do_not_keep_others_waiting(replica: FakeReplica, tmp_path: Path) -> None:
    with before([replica], tmp_path) as gateway:
        host, port = gateway.http_url.split(":")
        slow = [socket.create_connection((host, int(port)), timeout=10) for _ in range(200)]
        try:
            for connection in slow:
                connection.sendall(b"POST / HTTP/1.1\r\nX-Slow: ")
            assert Counter(infer(gateway).status for _ in range(20)) == {200: 20}
        finally:
            for connection in slow:
                connection.close()


# ---- the gateway's own words ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_line", "fields", "status"),
    [
        ("GET /v2 HTTP/1.1", "X-API-Key: no", 401),
        ("GET /x HTTP/1.1", f"X-API-Key: {KEY}", 403),
        (f"POST {INFER} HTTP/1.1", f"X-API-Key: {KEY}\r\nContent-Length: 99999999", 413),
        (f"GET /v2/{'x' * 40_000} HTTP/1.1", f"X-API-Key: {KEY}", 414),
        ("GET /v2 HTTP/1.1", f"X-API-Key: {KEY}\r\nX-Long: {'x' * 40_000}", 431),
        ("GET /v2 HTTP/1.1", f"X-API-Key: {KEY}\r\nContent-Length: many", 400),
        ("TRACE /v2 HTTP/1.1", f"X-API-Key: {KEY}", 405),
        ("GET /v2 HTTP/3.0", f"X-API-Key: {KEY}", 505),
        ("GET", f"X-API-Key: {KEY}", 400),
        ("\x00\x01\x02", "", 400),
    ],
    ids=lambda value: str(value)[:20] if isinstance(value, int) else "",
)
def test_every_refusal_is_json(
    gateway: Gateway, request_line: str, fields: str, status: int
) -> None:
    data = f"{request_line}\r\nHost: x\r\nConnection: close\r\n{fields}\r\n\r\n".encode()
    answer = send(gateway.http_url, data)
    if not answer.startswith(b"HTTP/1.1"):  # a request without a version is answered without one
        assert json.loads(answer)["error"]
        return
    assert parse(answer).status == status
    assert parse(answer).error
