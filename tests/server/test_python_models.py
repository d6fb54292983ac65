"""Ordinary `backend: "python"` models, written as Triton documents them, with this numpy."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http
from tritonclient.utils import np_to_triton_dtype

from labkit.server import ServerError, TritonServer, find_triton, runtime_of
from labkit.server import server as server_module

TYPES = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}
# Returns its inputs changed in place, kept from before, reversed or broadcast.
MODEL = """\
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.kept = None

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        outputs, before = [], self.kept
        for tensor in request.inputs():
            assert isinstance(tensor, pb_utils.Tensor)
            array = tensor.as_numpy()
            if array.dtype == np.bool_:
                array = ~array
            else:
                array += array.dtype.type(1)
            if tensor.name() == "in_FP32":
                self.kept = array
            if tensor.name() == "in_FP64":
                array = np.broadcast_to(array, array.shape)
            if tensor.name() == "in_INT64":
                array = array[::-1][::-1]
            outputs.append(pb_utils.Tensor("out_" + tensor.name()[3:], array))
        total = np.zeros(1, np.float32) if before is None else before.sum().reshape(1)
        outputs.append(pb_utils.Tensor("before", total))
        return pb_utils.InferenceResponse(output_tensors=outputs)
"""
STRINGS = """\
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            words = pb_utils.get_input_tensor_by_name(request, "words").as_numpy()
            longer = np.array([[word + b"!" for word in row] for row in words], np.object_)
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("longer", longer)]))
        return answers
"""


def write(repository: Path, name: str, code: str, tensors: str) -> Path:
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "1" / "model.py").write_text(code)
    config = f'backend: "python"\n{tensors}\ninstance_group {{ count: 1 kind: KIND_CPU }}\n'
    (repository / name / "config.pbtxt").write_text(config)
    return repository


def write_numbers(repository: Path) -> Path:
    lines = [
        f'{kind} {{ name: "{prefix}_{dtype}" data_type: TYPE_{dtype} dims: [ -1, -1 ] }}'
        for dtype in TYPES
        for kind, prefix in (("input", "in"), ("output", "out"))
    ]
    lines.append('output { name: "before" data_type: TYPE_FP32 dims: [ 1 ] }')
    return write(repository, "numbers", MODEL, "\n".join(lines))


def write_strings(repository: Path) -> Path:
    tensors = (
        'input { name: "words" data_type: TYPE_STRING dims: [ -1, 2 ] }\n'
        'output { name: "longer" data_type: TYPE_STRING dims: [ -1, 2 ] }'
    )
    return write(repository, "strings", STRINGS, tensors)


@pytest.fixture
def the_wheels_stub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve as where no stub was built, whatever was built here."""
    monkeypatch.setattr("labkit.server.find.built_stub", lambda: None)


@pytest.mark.parametrize(
    "stub", ["the wheel's", pytest.param("built here", marks=pytest.mark.native)]
)
def test_numbers_are_right_over_every_protocol(
    stub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if stub == "the wheel's":
        monkeypatch.setattr("labkit.server.find.built_stub", lambda: None)
    rng = np.random.default_rng(0)
    repository = write_numbers(tmp_path / "repository")
    with TritonServer(
        repository,
        log_path=tmp_path / "log",
        allow_python_models=True,
    ) as server:
        before = np.float32(0)
        for protocol, address in ((http, server.http), (grpc, server.grpc)):
            with protocol.InferenceServerClient(address) as client:
                assert runtime_of(_config(server)) == "python"
                for shape in ((3, 5), (1, 1), (0, 4), (700, 300)):
                    sent = {
                        name: rng.integers(0, 2 if name == "BOOL" else 100, shape).astype(dtype)
                        for name, dtype in TYPES.items()
                    }
                    answer = client.infer("numbers", [_input(protocol, *i) for i in sent.items()])
                    for name, array in sent.items():
                        expected = ~array if name == "BOOL" else array + array.dtype.type(1)
                        received = answer.as_numpy(f"out_{name}")
                        np.testing.assert_array_equal(received.reshape(shape), expected, name)
                    # What a model keeps of a request stays as it was.
                    np.testing.assert_array_equal(answer.as_numpy("before"), [before])
                    before = (sent["FP32"] + np.float32(1)).sum()


def _input(protocol, name: str, array: np.ndarray):  # type: ignore[no-untyped-def]
    made = protocol.InferInput(f"in_{name}", list(array.shape), np_to_triton_dtype(array.dtype))
    made.set_data_from_numpy(array)
    return made


def _config(server: TritonServer) -> dict[str, object]:
    with http.InferenceServerClient(server.http) as client:
        return client.get_model_config("numbers")


@pytest.mark.native
def test_strings_are_right_with_a_stub_that_was_built_here(tmp_path: Path) -> None:
    repository = write_strings(tmp_path / "repository")
    words = np.array([[b"a", "ü".encode()], [b"", b"long " * 50]], np.object_)
    with TritonServer(
        repository,
        log_path=tmp_path / "log",
        allow_python_models=True,
    ) as server:
        for protocol, address in ((http, server.http), (grpc, server.grpc)):
            with protocol.InferenceServerClient(address) as client:
                asked = protocol.InferInput("words", [2, 2], "BYTES")
                asked.set_data_from_numpy(words)
                received = client.infer("strings", [asked]).as_numpy("longer")
                assert received.tolist() == [[word + b"!" for word in row] for row in words]


@pytest.mark.skipif(int(np.__version__.split(".")[0]) < 2, reason="numpy 1 needs no refusal")
@pytest.mark.usefixtures("the_wheels_stub")
def test_strings_that_would_be_garbled_are_refused_before_the_start(tmp_path: Path) -> None:
    repository = write_strings(tmp_path / "repository")
    with pytest.raises(ServerError, match=r"strings: it has a string tensor.*labkit triton build"):
        TritonServer(
            repository,
            log_path=tmp_path / "log",
            allow_python_models=True,
        ).start()


@pytest.mark.skipif(int(np.__version__.split(".")[0]) < 2, reason="numpy 1 needs no refusal")
@pytest.mark.usefixtures("the_wheels_stub")
def test_strings_that_no_configuration_shows_are_refused_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model may complete its own configuration: the server learns of strings too late then."""
    monkeypatch.setattr(server_module, "refused_here", lambda folders, runtime: {})
    repository = write_strings(tmp_path / "repository")
    with (
        TritonServer(
            repository,
            log_path=tmp_path / "log",
            allow_python_models=True,
        ) as server,
        http.InferenceServerClient(server.http) as client,
    ):
        asked = http.InferInput("words", [1, 2], "BYTES")
        asked.set_data_from_numpy(np.array([[b"a", b"b"]], np.object_))
        for _ in range(2):  # and the server goes on
            with pytest.raises(Exception, match="labkit triton build"):
                client.infer("strings", [asked])
        assert client.is_server_live()


def test_a_python_without_a_stub_is_told_before_anything_is_downloaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    binary = find_triton()
    assert binary is not None
    absent = replace(binary, stub=binary.stub.with_name("absent"))
    assert "labkit triton build" in str(absent.problem)
    code = (
        "import collections, sys\n"
        "Version = collections.namedtuple('Version', 'major minor micro')\n"
        "sys.version_info = Version(3, 14, 0)\n"
        "import labkit.server.find as find, labkit.server.fetch as fetch\n"
        "find.fetch_server = None\n"
        "try: find.require_triton()\n"
        "except find.TritonNotFound as error: print(error)"
    )
    monkeypatch.setenv("PYTHONPATH", str(Path(server_module.__file__).parents[2]))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "3.11, 3.12, 3.13" in done.stdout and "labkit triton build" in done.stdout, done
