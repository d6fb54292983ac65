"""Answers of a student's functions: asked for in their kernel, kept, held against the oracles."""

import base64
import builtins
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from labkit.grading import inside
from labkit.grading.confined_process import ConfinedProgram, Stopped
from labkit.grading.exercises.case import HiddenCase, generator
from labkit.grading.exercises.catalogue import CATALOGUE, SPLIT, Exercise
from labkit.grading.exercises.models import linear_network
from labkit.grading.limits import Limits
from labkit.grading.results import Measurement
from labkit.grading.untrusted import UnfitFile, parse_json, read_plain, short_line
from labkit.workspace import write_text

MAX_ANSWER_MIB = 8  # of one file; the largest right one has some 100 kB
PATIENCE_S = 100.0  # beyond a call's own limit, on a busy machine
CALLS_S = 200.0  # for the calls of a notebook's exercises, also of CPU time
GIVEN_UP = ("TimeLimit", "KernelEnded")  # after which an exercise is not called again
GIVEN = ["server", "client", "triton"]  # of the notebook; they lead to the grader's server then
FOLDER = Path(inside.__file__).parent
MAX_ERROR_CHARACTERS = 160
# What a call came to, told by its class: a message could carry the hidden inputs out.
TOLD = {
    "Undefined": "the notebook defines no function `{function}`",
    "NoFile": "the function wrote no file to its path",
    "TimeLimit": "it took too long",
    "KernelEnded": "the kernel ended",
    "Nested": "the answer has too many lists in each other",
    "TooLarge": "the answer is too large",
    "WrongKind": "the answer is neither numbers, text, a list nor an array",
    "NoAnswer": "what came back could not be read",
    "NoOnnx": "the file that it wrote is no ONNX model that can be run",
}
LIBRARIES = frozenset({"AxisError", "LinAlgError", "ClientError", "InferenceServerException",
                       "RepositoryError", "ParseError", "LabError"})  # fmt: skip
Json = dict[str, Any]
LookInto = Callable[[bytes, Any], Json]  # a written model file and images → what it answers


def ask_exercises(
    program: ConfinedProgram,
    stage: str,
    seed: int,
    wanted: Iterable[str],
    limits: Limits,
    look_into: LookInto,
    cells: Sequence[str] = (),
) -> dict[str, Any]:
    """Call the exercises of a notebook whose cells have run.

    Each hidden input is sent when its turn comes, and what should come back is never sent.

    Args:
        program: It has run the cells, see `inside.run_cells`.
        stage: Such as `03_export`.
        seed: Chooses the inputs.
        wanted: The exercises that count.
        limits: Of the notebook; those that hold when a kernel has ended and cells run once more.
        look_into: Asks a model file that a function has written, in another sandbox.
        cells: Sources of the notebook's cells: where a later one has given a name to something else
            that a function needs, definitions up to the last one of it are run again.

    Returns:
        Exercise id → `{"answers": […], "cases": which}`, or `{"failure": …}` where the grader could
        not ask. With `"starved": True` where a call was late for want of CPU time.
    """
    exercises = [e for e in CATALOGUE if e.stage == stage and e.id in set(wanted)]
    asker = _Asker(program, limits, look_into, cells)
    program.extend(CALLS_S, CALLS_S)
    with suppress(Stopped):  # what was answered until then counts
        if any(exercise.asks == "requests" for exercise in exercises):
            asker.serve(seed)
        for exercise in exercises:
            asker.ask(exercise, seed)
    return asker.found


def _which(cases: Iterable[HiddenCase]) -> str:
    """Return a checksum of what is asked: answers are to these inputs, and to no others."""
    asked = json.dumps([[case.arguments, case.probe] for case in cases])
    return hashlib.sha256(asked.encode()).hexdigest()


def start_server(program: ConfinedProgram, seed: int) -> Json:
    """Start the grader's own server beside the kernel; return its addresses, or a failure."""
    weight, bias = linear_network(generator(seed, SPLIT))
    network = {"weight": [float(value) for value in weight.ravel()], "bias": bias.tolist()}
    text = (FOLDER / "serve_network.py").read_text(encoding="utf-8")
    program.tell(do="serve", program=text, network=network)
    program.hear(PATIENCE_S)
    return _counted(program)


def _counted(program: ConfinedProgram) -> Json:
    program.tell(do="counted")
    return program.hear(2 * PATIENCE_S)


class _Asker:
    """Asks the exercises of one notebook, in its kernel.

    Args:
        program: It has run the cells.
        limits: See `ask_exercises`.
        look_into: See `ask_exercises`.
        cells: See `ask_exercises`.

    Attributes:
        found: Exercise id → what came of it, see `ask_exercises`.
    """

    def __init__(
        self, program: ConfinedProgram, limits: Limits, look_into: LookInto, cells: Sequence[str]
    ) -> None:
        self._program, self._limits, self._look_into = program, limits, look_into
        self._cells = cells
        self._served: Json = {}
        self.found: dict[str, Json] = {}

    def serve(self, seed: int) -> None:
        """Start the grader's own server, where the exercises' requests go."""
        try:
            self._served = start_server(self._program, seed)
        except Stopped as error:
            if self._program.breach is not None:
                raise
            self._served = {"failure": f"the program that starts it gave {error}"}

    def ask(self, exercise: Exercise, seed: int) -> None:
        """Send every hidden case of an exercise, and note the answers."""
        if exercise.asks == "requests" and "addresses" not in self._served:
            why = str(self._served.get("failure", "no server"))
            self.found[exercise.id] = {"failure": why}
            return
        cases = exercise.cases(seed)
        answers: list[Json] = []
        found = self.found[exercise.id] = {"answers": answers, "cases": _which(cases)}
        for case in cases:
            if answers and answers[-1].get("error") in GIVEN_UP:
                answers.append(answers[-1])  # the others would only take their time, or a kernel
            elif not self._revive():
                answers.append({"error": "KernelEnded"})
            else:
                begin = self._program.used
                try:
                    answers.append(self._answer(exercise, case))
                finally:
                    late = self._program.used[0] - begin[0] >= exercise.limit_s
                    if late and self._program.starved_since(begin):
                        found["starved"] = True

    def _revive(self) -> bool:
        """Say whether there is a kernel to call; where one has ended, the cells run once more."""
        program = self._program
        program.tell(do="alive")
        if program.hear(PATIENCE_S).get("lives"):
            return True
        program.extend(self._limits.wall_s, self._limits.cpu_s)
        cell_s, cell_cpu_s = self._limits.of_cell(0, 0) or (0, 0)
        program.tell(do="revive", limit_s=cell_s, limit_cpu_s=cell_cpu_s)
        lives = program.hear().get("lives") is True
        program.extend(CALLS_S, CALLS_S)
        return lives

    def _definition(self, function: str) -> list[str]:
        """Return the sources of cells up to the last one that defines a function, if one does."""
        starts = re.compile(
            rf"^(?:(?:async +)?def +{function}\b|{function}\s*=\s*lambda\b)", re.MULTILINE
        )
        found = [number for number, source in enumerate(self._cells, 1) if starts.search(source)]
        return list(self._cells[: found[-1]]) if found else []

    def _answer(self, exercise: Exercise, case: HiddenCase) -> Json:
        """Return the answer to one hidden case."""
        requests = exercise.asks == "requests"
        request = {
            "function": exercise.function,
            "sources": self._definition(exercise.function),
            "arguments": case.arguments,
            "given": GIVEN if requests else [],
            "addresses": self._served.get("addresses", {}),
            "asks": "file" if exercise.asks == "onnx" else "value",
        }
        counted = _counted(self._program) if requests else {}
        self._program.tell(do="call", code=_code(request), limit_s=exercise.limit_s)
        answer = _parsed(self._program.hear(exercise.limit_s + PATIENCE_S))
        if exercise.asks == "onnx" and "file" in answer:
            return self._look_into(_bytes(answer["file"]), case.probe)
        if requests and "value" in answer:
            images = case.arguments[0]["shape"][0]
            sizes = _requests_since(self._program, counted, images)
            return {"value": {"value": answer["value"], "requests": sizes}}
        return answer


def _code(request: Json) -> str:
    """Return the source that calls a function in the kernel."""
    text = (FOLDER / "call_function.py").read_text(encoding="utf-8")
    names = {"__name__": "labkit_call", "REQUEST": json.dumps(request)}
    own = "__import__('builtins')"  # a notebook may have a `compile` of another library
    return f"{own}.exec({own}.compile({text!r}, '<labkit>', 'exec'), {names!r})"


def _parsed(said: Json) -> Json:
    """Return what a call has answered; untrusted, and so read as a stranger's JSON."""
    if said.get("ended") == "late":
        return {"error": "TimeLimit"}
    if not isinstance(said.get("answer"), str):
        return {"error": "KernelEnded" if said.get("ended") == "lost" else "NoAnswer"}
    try:
        answer = parse_json(said["answer"].encode(errors="replace"), "the answer")
    except UnfitFile:
        return {"error": "NoAnswer"}
    return answer if isinstance(answer, dict) else {"error": "NoAnswer"}


def _bytes(encoded: Any) -> bytes:
    """Decode base64 of a stranger; empty where it is none."""
    try:
        return base64.b64decode(encoded, validate=True)
    except (ValueError, TypeError):
        return b""


def _requests_since(program: ConfinedProgram, before: Json, images: int) -> list[int]:
    """Return the images in each request since `before`, once that many images are counted."""
    sizes: list[int] = []
    for _ in range(40):  # Triton may count a request a moment after it has answered it
        now = _counted(program).get("sizes", {})
        earlier = before.get("sizes", {})
        sizes = [int(s) for s, n in now.items() for _ in range(n - earlier.get(s, 0))]
        if sum(sizes) >= images:
            break
        program.pause()
    return sizes


def keep_answers(folder: Path, answers: Mapping[str, Any]) -> None:
    """Write the answers, for measuring them again."""
    for name, answer in answers.items():
        write_text(folder / f"{name}.json", json.dumps(answer, separators=(",", ":")))


def read_answers(folder: Path) -> dict[str, Any]:
    """Read the answers that a grading has kept.

    Returns:
        Exercise id → what its file says. A file that is missing, a link, no regular file, too
        large or not JSON is left out.
    """
    answers = {}
    for exercise in CATALOGUE:
        name = f"{folder.name}/{exercise.id}.json"  # the folder may have become a link, too
        with suppress(UnfitFile, OSError):
            answers[exercise.id] = parse_json(read_plain(folder.parent, name, MAX_ANSWER_MIB), name)
    return answers


def measure_exercises(seed: int, outputs: Mapping[str, Any]) -> dict[str, Measurement]:
    """Hold answers against the oracles.

    Args:
        seed: The one of the request.
        outputs: What `read_answers` returned; untrusted.

    Returns:
        One measurement per exercise: the share of right cases in [0, 1], and a sentence for the
        student about the first wrong one. None where the sandbox had no server to ask. An exercise
        whose hidden cases are others since it was asked is left out: it keeps what was measured.
    """
    found = {e.id: _measure(e, seed, outputs.get(e.id)) for e in CATALOGUE}
    return {name: measured for name, measured in found.items() if measured is not None}


def _measure(exercise: Exercise, seed: int, output: Any) -> Measurement | None:
    """Measure one exercise; None where it was asked something else."""
    if not isinstance(output, dict):
        return Measurement(0.0, f"nothing came back from calling `{exercise.function}`")
    if failure := output.get("failure"):
        why = short_line(str(failure), MAX_ERROR_CHARACTERS)
        return Measurement(None, f"the grader had no server to ask: {why}")
    cases = exercise.cases(seed)
    if output.get("cases", _which(cases)) != _which(cases):
        return None
    came = output.get("answers")
    answers = [a if isinstance(a, dict) else {} for a in came] if isinstance(came, list) else []
    answers = (answers + [{}] * len(cases))[: len(cases)]
    rights = [
        "value" in answer and case.right(answer["value"])
        for case, answer in zip(cases, answers, strict=True)
    ]
    if all(rights):
        return Measurement(1.0, f"all {len(cases)} hidden cases right")
    if _constant(answers):
        return Measurement(0.0, f"`{exercise.function}` gives the same answer in every hidden case")
    first = rights.index(False)
    label, answer = cases[first].label, answers[first]
    wrong = f"wrong where {label}"  # and not what would be right
    if "value" not in answer:
        wrong = f"no answer where {label}: {_why(exercise, str(answer.get('error', '')))}"
    found = f"{sum(rights)} of {len(cases)} hidden cases right; {wrong}"
    return Measurement(sum(rights) / len(cases), found)


def _constant(answers: list[Json]) -> bool:
    """Say whether every call returned the same: some case may be right by accident then."""
    try:
        return all("value" in a and a["value"] == answers[0]["value"] for a in answers)
    except RecursionError:  # lists in lists in lists, of a hostile answer
        return False


def _why(exercise: Exercise, error: str) -> str:
    """Say why there is no answer, in the grader's own words."""
    if error in TOLD:
        return TOLD[error].format(function=exercise.function)
    kind = getattr(builtins, error, None)
    if error in LIBRARIES or (isinstance(kind, type) and issubclass(kind, BaseException)):
        return error
    return "an error of a class of its own" if error else "the call did not end"
