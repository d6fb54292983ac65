"""Inside the kernel, after the last cell: call one function of the student's and show its answer.

The text of this module is executed anew for every call, with REQUEST among its globals. What goes
back is JSON as an output that no notebook keeps. Nothing here is secret, and nothing is believed:
a student's code may have replaced any of it, and then still has to give right answers.
"""

import ast
import base64
import decimal
import heapq
import json
import math
import numbers
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

MAX_ELEMENTS = 2**20
MAX_ANSWER_BYTES = 2**20
MAX_FILE_BYTES = 4 * 2**20
MAX_DEPTH = 8  # lists in lists of an answer
VIEWS: tuple[Any, ...] = (type({}.keys()), type({}.values()))
SEQUENCES: tuple[Any, ...] = (list, tuple, range, *VIEWS)
DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class UnfitAnswer(Exception):
    """An answer of a kind or size that no exercise asks for."""


def plain(value: Any, depth: int = 0) -> Any:
    """Turn a value into what JSON knows: arrays become lists, bytes base64, NaN and infinity null.

    Raises:
        UnfitAnswer: it is of a kind that no exercise asks for, too large, or nested too deeply.
    """
    torch = sys.modules.get("torch")
    if depth > MAX_DEPTH:
        raise UnfitAnswer("Nested")
    if isinstance(value, np.ndarray) or (torch and isinstance(value, torch.Tensor)):
        if math.prod(value.shape) > MAX_ELEMENTS:
            raise UnfitAnswer("TooLarge")
        value = value.tolist()
    elif isinstance(value, np.generic):
        value = value.item()
    elif isinstance(value, bytes | bytearray):
        if len(value) > MAX_ANSWER_BYTES:
            raise UnfitAnswer("TooLarge")
        return base64.b64encode(value).decode()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, numbers.Real | decimal.Decimal):  # a fraction, too
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(entry, depth + 1) for key, entry in value.items()}
    if isinstance(value, Iterator):  # of a generator, or what `map` gives
        value = list(islice(value, MAX_ELEMENTS))
    if isinstance(value, SEQUENCES):
        return [plain(entry, depth + 1) for entry in value]
    raise UnfitAnswer("WrongKind")


def read_array(value: dict[str, Any]) -> Any:
    """Return a numpy array."""
    data = np.frombuffer(base64.b64decode(value["$array"]), dtype=value["dtype"])
    return data.reshape(value["shape"]).copy()  # a student's code may write into it


def read(value: Any, folder: Path) -> Any:
    """Return the object that one value of a request stands for."""
    if isinstance(value, list):
        return [read(entry, folder) for entry in value]
    if not isinstance(value, dict):
        return value
    kind = next(iter(value), "")
    if kind in ("$conv", "$norm", "$linear"):
        return read_module(kind, value)
    if kind == "$array":
        return read_array(value)
    if kind == "$service":
        return read_service(value)
    if kind == "$tuple":
        return tuple(read(entry, folder) for entry in value[kind])
    if kind == "$path":
        return folder / value[kind]
    return {key: read(entry, folder) for key, entry in value.items()}


def read_service(value: dict[str, Any]) -> Any:
    """Return a function that takes as long as a service with some instances would.

    Requests are computed in the order of arrival, each for the next of the given durations.
    """
    lock, durations, free = threading.Lock(), iter(value["$service"]), [0.0] * value["instances"]

    def send() -> None:
        with lock:
            end = max(time.perf_counter(), heapq.heappop(free)) + next(durations)
            heapq.heappush(free, end)
        time.sleep(max(0.0, end - time.perf_counter()))

    return send


def read_module(kind: str, value: dict[str, Any]) -> Any:
    """Return a convolution, a batch norm, or a network of one matrix product, in eval mode."""
    import torch
    from torch import nn

    if kind == "$norm":
        state = {name: torch.from_numpy(read_array(v)) for name, v in value["$norm"].items()}
        norm = nn.BatchNorm2d(len(state["weight"]), eps=value["eps"])
        norm.load_state_dict(state, strict=False)  # without the number of batches
        return norm.eval()
    weight = torch.from_numpy(read_array(value[kind]))
    if kind == "$conv":
        outputs, inputs, height, width = weight.shape
        conv = nn.Conv2d(inputs, outputs, (height, width), bias=False)
        conv.weight = nn.Parameter(weight)
        return conv.eval()
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.weight = nn.Parameter(weight)
    linear.bias = nn.Parameter(torch.from_numpy(read_array(value["bias"])))
    return nn.Sequential(nn.Flatten(), linear).eval()


def answer(request: dict[str, Any], names: dict[str, Any]) -> dict[str, Any]:
    """Call the function; return its value, the file that it wrote, or how it failed."""
    addresses = request.get("addresses", {})
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        names.update(made_for_it(request.get("given", ()), addresses))
        function = names.get(request["function"])
        if not callable(function) or isinstance(function, results()):
            # A later cell has given its name to something else, such as a result.
            function = names[request["function"]] = defined_again(request, names) or function
        if not callable(function):
            return {"error": "Undefined"}
        try:
            try:
                return called(function, request, folder)
            except UnfitAnswer:
                raise
            except Exception:
                # So may a later cell have done with the name of something that it needs.
                function = defined_again(request, names)
                if function is None:
                    raise
                return called(function, request, folder)
        except UnfitAnswer as error:
            return {"error": str(error)}
        except KeyboardInterrupt:
            return {"error": "TimeLimit"}
        except BaseException as error:  # SystemExit too: other cases are still to be called
            # The class only: a message could carry the hidden inputs out.
            return {"error": type(error).__name__}


def called(function: Any, request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Call a function with the arguments of a request; return its value, or the file it wrote.

    Raises:
        UnfitAnswer: see `plain`.
        Exception: what the function raises.
    """
    value = function(*[read(value, folder) for value in request["arguments"]])
    if request["asks"] == "file":
        file = folder / "model.onnx"
        if not file.is_file():
            return {"error": "NoFile"}
        content = file.read_bytes()
        if len(content) > MAX_FILE_BYTES:
            raise UnfitAnswer("TooLarge")
        return {"file": base64.b64encode(content).decode()}
    found = {"value": plain(value)}
    if len(json.dumps(found)) > MAX_ANSWER_BYTES:
        raise UnfitAnswer("TooLarge")
    return found


def parsed(source: str) -> ast.Module:
    """Parse a cell; where it is no Python, without the lines that are IPython's own."""
    try:
        return ast.parse(source)
    except SyntaxError:
        return ast.parse(re.sub(r"(?m)^\s*[%!].*$", "", source))


def results() -> tuple[type, ...]:
    """Return the kinds of things that can be called and are no function of a student's."""
    torch = sys.modules.get("torch")
    return (type, torch.nn.Module) if torch else (type,)


def defined_again(request: dict[str, Any], names: dict[str, Any]) -> Any:
    """Run imports and definitions up to the cell that defines the function, beside all names.

    What the last one assigns to the function's name counts, unless that cannot be called either.
    """
    name = request["function"]
    beside = dict(names)
    body: list[ast.stmt] = []
    for source in request["sources"]:
        try:
            body = parsed(source).body
        except SyntaxError:
            body = []
        for node in body:
            if isinstance(node, DEFINITIONS):
                run_statements([node], beside)
    for assigned in ((ast.Assign,), ()):
        again = dict(beside)
        own: list[ast.stmt] = [
            node
            for node in body
            if isinstance(node, (*DEFINITIONS, ast.If, ast.Try))
            or (isinstance(node, assigned) and name in map(ast.unparse, node.targets))
        ]
        found = again.get(name) if run_statements(own, again) else None
        if callable(found) and not isinstance(found, results()):
            return found
    return None


def run_statements(statements: list[ast.stmt], names: dict[str, Any]) -> bool:
    """Execute statements in a namespace; say whether that went well."""
    try:
        exec(compile(ast.Module(statements, []), "<exercise>", "exec"), names)
    except Exception:
        return False
    return True


def made_for_it(given: Any, addresses: dict[str, str]) -> dict[str, Any]:
    """Return variables of the notebook that are to be about the grader's server."""
    made: dict[str, Any] = {}
    if "server" in given:
        made["server"] = SimpleNamespace(**addresses)
    if "client" in given:
        from labkit.client import LabClient

        made["client"] = LabClient(addresses["http"])
    if "triton" in given:
        from tritonclient.http import InferenceServerClient

        made["triton"] = InferenceServerClient(addresses["http"])
    return made


def show(found: dict[str, Any]) -> None:
    """Send an answer to whoever runs the cells."""
    from IPython.core.getipython import get_ipython

    shell: Any = get_ipython()
    shell.display_pub.publish({"application/vnd.labkit.answer": json.dumps(found)})


if "REQUEST" in globals():
    from IPython.core.getipython import get_ipython

    _shell: Any = get_ipython()
    show(answer(json.loads(globals()["REQUEST"]), _shell.user_ns))
