"""Call the functions of a student's notebooks on given inputs, inside the sandbox.

Run by path: `python call_exercises.py REQUEST.json ANSWER_FOLDER`. It needs the files beside it
and labkit, but nothing else of labkit.grading. Of a notebook only definitions are executed. Then
the asked function is called, in a forked process that nothing survives, and
`ANSWER_FOLDER/<exercise>.json` says what came back:

    {"answers": [{"value": …} or {"error": "Type: message"} for each case]}
    {"failure": "…"}: this program could not do its part; the notebook is not to blame
"""

import contextlib
import importlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # before numpy: threads do not survive a fork
os.environ.setdefault("MPLBACKEND", "Agg")

from exercise_values import Reader, plain, read_array  # noqa: E402
from forked import adopt_orphans, describe, encode, in_child, kill_strays  # noqa: E402
from notebook_functions import find_function, imports_of  # noqa: E402

HERE = Path(__file__).resolve().parent
MAX_ANSWER_BYTES = 2**20  # of one case
START_S = 20.0  # for the imports and definitions of a notebook
PATIENCE_S = 3.0  # beyond a call's own limit, for code that swallows its alarm
BUDGET_S = 200.0  # for all exercises; the one that spends it may take two minutes more
SERVER_START_S = 100.0
BOOKED_S = 2.0  # Triton may count a request a moment after it has answered it
NO_TIME = {"error": "TimeLimit: the exercises before this one took all the time"}

# Imported before the first fork where a notebook imports them.
SHARED = ("google", "labkit", "matplotlib", "numpy", "onnx", "onnxruntime", "torch", "tritonclient")

Json = dict[str, Any]


def main(request_path: str, answer_folder: str) -> int:
    """Call every exercise of the request; return the exit status."""
    request = json.loads(Path(request_path).read_text(encoding="utf-8"))
    exercises = sorted(request["exercises"], key=lambda exercise: bool(exercise["needs_server"]))
    adopt_orphans()
    with tempfile.TemporaryDirectory() as scratch:
        server = None
        if any(exercise["needs_server"] for exercise in exercises):
            server = Server(request_path, Path(scratch))  # starts while others are called
        try:
            preload(exercises)
            call_all(exercises, server, Path(scratch), Path(answer_folder))
        finally:
            if server is not None:
                server.stop()
    return 0


def call_all(
    exercises: list[Json], server: "Server | None", scratch: Path, answer_folder: Path
) -> None:
    """Call the exercises one after the other, and write each answer at once."""
    kept = {server.pid} if server is not None else set()
    deadline = time.monotonic() + BUDGET_S
    answers = {}
    for exercise in exercises:
        if time.monotonic() > deadline:
            answer = {"answers": [NO_TIME] * len(exercise["cases"])}
        else:
            answer = call_exercise(exercise, server, scratch)
            kill_strays(kept)
        answers[exercise["exercise"]] = answer
        write_answer(answer_folder, exercise["exercise"], answer)
    for name, answer in answers.items():  # again, now that no student's code runs any more
        write_answer(answer_folder, name, answer)


def write_answer(folder: Path, exercise: str, answer: Json) -> None:
    """Write an answer, whatever a student's code may have put in its place."""
    path = folder / f"{exercise}.json"
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    handle, temporary = tempfile.mkstemp(dir=folder)
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(encode(answer))
    Path(temporary).replace(path)


def preload(exercises: list[Json]) -> None:
    """Import what the notebooks import, so that forked processes need not do it again each."""
    names = set()
    for notebook in {exercise["notebook"] for exercise in exercises}:
        with contextlib.suppress(Exception):
            names |= {name for name in imports_of(Path(notebook)) if name.split(".")[0] in SHARED}
    asked = {exercise["asks"] for exercise in exercises}
    names |= {"onnx", "onnxruntime", "torch.onnx"} if "onnx" in asked else set()
    names |= {"labkit.client", "tritonclient.http"} if "requests" in asked else set()
    for name in sorted(names):
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    importlib.import_module("torch").set_num_threads(1)  # a forked process has no thread pool


def call_exercise(exercise: Json, server: "Server | None", scratch: Path) -> Json:
    """Return the answers of one exercise to all its cases."""
    try:
        addresses = server.addresses() if exercise["needs_server"] and server else {}
        if exercise["asks"] == "value":
            answers = call_cases(exercise, exercise["cases"], addresses, scratch)
        else:
            answers = call_apart(exercise, addresses, scratch)
    except Exception as error:  # whatever it was, the other exercises are still to be called
        return {"failure": describe(error)}
    failures = [answer for answer in answers if "failure" in answer]
    return failures[0] if failures else {"answers": answers}


def call_apart(exercise: Json, addresses: dict[str, str], scratch: Path) -> list[Json]:
    """Call each case in a process of its own, and look at more than its value."""
    answers: list[Json] = []
    for number, case in enumerate(exercise["cases"]):
        if answers and timed_out(answers[-1]):
            answers.append(answers[-1])
            continue
        folder = scratch / f"{exercise['exercise']}-{number}"
        folder.mkdir()
        counted = exercise["asks"] == "requests"
        before = requests_of(addresses) if counted else {}
        [answer] = call_cases(exercise, [case], addresses, folder)
        if "value" in answer and counted:
            images = case["arguments"][0]["shape"][0]
            answer = {"value": {**answer, "requests": requests_since(addresses, before, images)}}
        elif "value" in answer:
            answer = look_into(folder / "model.onnx", case["probe"])
        answers.append(answer)
    return answers


def call_cases(
    exercise: Json, cases: list[Json], addresses: dict[str, str], folder: Path
) -> list[Json]:
    """Call the function in a forked process; return an answer for each case."""

    def job(send: Callable[[Json], None]) -> None:
        reader = Reader(addresses, folder)
        given = {name: reader.given(name) for name in exercise["given"]}
        try:
            function = find_function(Path(exercise["notebook"]), exercise["function"], given)
        except BaseException as error:
            send({"error": describe(error)})
            return
        send({"ready": True})
        for case in cases:
            arguments = [reader.read(value) for value in case["arguments"]]
            answer = call(function, arguments, exercise["limit_s"], exercise["asks"] == "onnx")
            send(answer)
            if timed_out(answer):
                return  # the other cases would only take their time too

    messages, end = in_child(job, START_S, exercise["limit_s"] + PATIENCE_S)
    first, *answers = messages or [{"error": end}]
    if "ready" not in first:
        return [first] * len(cases)
    rest = answers[-1] if answers and timed_out(answers[-1]) else {"error": end}
    return (answers + [rest] * len(cases))[: len(cases)]


def call(
    function: Callable[..., Any], arguments: list[Any], limit_s: float, drop_value: bool
) -> Json:
    """Call a function under a time limit; return its value or its error."""
    signal.signal(signal.SIGALRM, raise_time_limit)
    try:
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        value = function(*arguments)
        answer = {"value": None if drop_value else plain(value)}
        size = len(encode(answer))
        signal.setitimer(signal.ITIMER_REAL, 0)
    except BaseException as error:  # SystemExit too: the other cases are still to be called
        signal.setitimer(signal.ITIMER_REAL, 0)
        return {"error": describe(error)}
    if size > MAX_ANSWER_BYTES:
        return {"error": f"ValueError: the answer is larger than {MAX_ANSWER_BYTES} bytes"}
    return answer


class TimeLimit(KeyboardInterrupt):
    """A call took too long. Not an Exception, so that `except Exception` does not stop it."""


def raise_time_limit(number: int, frame: FrameType | None) -> None:
    """End the call that the alarm rings for."""
    raise TimeLimit("no answer in time")


def timed_out(answer: Json) -> bool:
    """Say whether a call was ended by its time limit."""
    return str(answer.get("error", "")).startswith(TimeLimit.__name__)


# -- what is looked at beside a value --------------------------------------------------------------


def look_into(path: Path, probe: Json) -> Json:
    """Ask a written ONNX file, in a fresh process where no student's code has run.

    Args:
        path: The file, or nothing.
        probe: Images, as a request writes an array.
    """
    if not path.is_file():
        return {"error": "FileNotFoundError: the function wrote no file to its path"}

    def job(send: Callable[[Json], None]) -> None:
        try:
            answer = {"value": ask_onnx(path, read_array(probe))}
        except BaseException as error:
            answer = {"error": describe(error)}
        send(answer)

    messages, end = in_child(job, START_S, PATIENCE_S)
    return messages[0] if messages else {"error": end}


def ask_onnx(path: Path, images: Any) -> Json:
    """Return the names in an ONNX file, and its logits for images; None where it refuses them."""
    import onnx
    import onnxruntime

    graph = onnx.load(path, load_external_data=False).graph
    ends = [graph.input[0], graph.output[0]]
    dims = [end.type.tensor_type.shape.dim for end in ends]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    logits = None
    with contextlib.suppress(Exception):  # such as a batch that the file does not take
        session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
        logits = plain(session.run(None, {ends[0].name: images})[0])
    return {
        "inputs": [end.name for end in graph.input],
        "outputs": [end.name for end in graph.output],
        "axes": [dim[0].dim_param if dim else "" for dim in dims],
        "logits": logits,
    }


def requests_of(addresses: dict[str, str]) -> dict[int, int]:
    """Return the server's counters: images in a request → number of such requests."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    url = f"http://{addresses['http']}/v2/models/cifar10_onnx/stats"
    with opener.open(url, timeout=10) as reply:
        stats = json.load(reply)["model_stats"][0].get("batch_stats", [])
    return {int(entry["batch_size"]): int(entry["compute_infer"]["count"]) for entry in stats}


def requests_since(addresses: dict[str, str], before: dict[int, int], images: int) -> list[int]:
    """Return the images in each request since `before`, once that many images are counted."""
    deadline = time.monotonic() + BOOKED_S
    while True:
        now = requests_of(addresses)
        sizes = [size for size, n in now.items() for _ in range(n - before.get(size, 0))]
        if sum(sizes) >= images or time.monotonic() > deadline:
            return sizes
        time.sleep(0.02)


class Server:
    """A Triton with a model named `cifar10_onnx`, started by a program of its own.

    Attributes:
        pid: Of that program, which ends the server when it ends.
    """

    def __init__(self, request_path: str, scratch: Path) -> None:
        self._log = scratch / "server.log"
        self._found: dict[str, str] = {}
        self._deadline = time.monotonic() + SERVER_START_S
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(HERE / "serve_network.py"), request_path, str(scratch)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self.pid = self._process.pid

    def addresses(self) -> dict[str, str]:
        """Wait for the server; return the addresses of its three ports.

        Raises:
            RuntimeError: it did not start.
        """
        if self._found:
            return self._found
        output = self._process.stdout
        assert output is not None
        wait_s = max(0.0, self._deadline - time.monotonic())
        line = output.readline() if select.select([output], [], [], wait_s)[0] else b""
        if not line:
            lines = self._log.read_text(errors="replace").strip().splitlines()
            raise RuntimeError(lines[-1] if lines else "Triton was not ready in time")
        self._found = json.loads(line)
        return self._found

    def stop(self) -> None:
        """End the server."""
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


if __name__ == "__main__":
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != HERE]
    sys.exit(main(*sys.argv[1:]))
