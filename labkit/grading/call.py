"""Call a submission's exercises in a sandbox of their own, beside the notebooks."""

import json
import shutil
import sys
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from labkit.grading import probes
from labkit.grading.box import PROBES, open_box
from labkit.grading.exercises import make_request, read_answers
from labkit.grading.limits import Limits
from labkit.grading.plan import Plan
from labkit.grading.sandbox import BUBBLEWRAP, Confined
from labkit.workspace import write_text

LIMITS = Limits(wall_s=300, cpu_s=300)
PROGRAM = "call_exercises.py"


class ExerciseRun:
    """The exercises of one submission, called while its notebooks run; a context manager.

    In no sandbox there is a student's function together with a grader's model file or with what
    it should answer.

    Args:
        plan: Profile, seed, isolation.
        notebooks: Stage → the submission's notebook.
        work: Where its box is made.
        keep: Where the answers are kept, for grading them again.
    """

    def __init__(self, plan: Plan, notebooks: Mapping[str, Path], work: Path, keep: Path) -> None:
        self._plan, self._notebooks, self._work, self._keep = plan, notebooks, work, keep
        self._stack = ExitStack()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        isolation = self._plan.confinement
        self._box = self._stack.enter_context(open_box(self._work, isolation))
        folder = self._box.lab / "notebooks"
        for stage, path in self._notebooks.items():
            shutil.copyfile(path, folder / f"{stage}.ipynb")
        inside = {
            stage: Path(self._box.seen(folder / f"{stage}.ipynb")) for stage in self._notebooks
        }
        request, answers = self._box.lab / "request.json", self._box.lab / "answers"
        request.write_text(make_request(self._plan.seed, inside))
        answers.mkdir()
        self._box.hand_over()
        program = Path(probes.__file__).parent
        where = PROBES if isolation.kind == BUBBLEWRAP else str(program)
        command = [sys.executable, f"{where}/{PROGRAM}"]
        command += [self._box.seen(request), self._box.seen(answers)]
        sandbox = self._box.sandbox(self._plan.profile, {PROBES: program})
        # Started here: the kernel ends a child with the thread that started it.
        self._program = self._stack.enter_context(
            Confined(isolation, sandbox, command, LIMITS, self._box.writable, self._box.log)
        )
        if isolation.kind == BUBBLEWRAP:
            self._thread = threading.Thread(target=self._program.wait, daemon=True)
            self._thread.start()
        else:  # without a sandbox, what one program started cannot be told from another's
            self._program.wait()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._program.stop()
        if self._thread is not None:
            self._thread.join()
        self._stack.close()

    def outputs(self) -> dict[str, Any]:
        """Wait for the answers, keep them, and return them: exercise → what its file says."""
        if self._thread is not None:
            self._thread.join()
        answers = read_answers(self._box.lab / "answers")
        keep_answers(self._keep, answers)
        return answers


def keep_answers(folder: Path, answers: Mapping[str, Any]) -> None:
    """Write the answers that could be read, in no more room than they came in."""
    for name, answer in answers.items():
        write_text(folder / f"{name}.json", json.dumps(answer, separators=(",", ":")))
