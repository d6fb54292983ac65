"""The grader's side of a sandboxed measurement: hand files in, ask, take raw numbers out."""

import builtins
import re
import shutil
import tempfile
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.grading import inside as inside_
from labkit.grading.confined_process import ConfinedProgram, Stopped
from labkit.grading.limits import Limits
from labkit.grading.results import SHORTAGE
from labkit.grading.sandbox import BUBBLEWRAP, HOME, LAB, TMP, Isolation
from labkit.grading.untrusted import UnfitFile, read_plain
from labkit.grading.workdir import open_workdir, remove
from labkit.server.engine import STAND_IN

CLASSES = 10
START_S = 60.0
IMAGES, IN, OUT = "/images", "/in", "/out"  # as seen from inside
LIMITS = Limits(wall_s=24 * 3_600, cpu_s=24 * 3_600, memory_mib=4_000)
Floats = NDArray[np.float32]


# All that is told of an error beside network.py: it sees the images, and can say anything.
KINDS = "|".join(
    sorted((name for name, kind in vars(builtins).items()
            if isinstance(kind, type) and issubclass(kind, BaseException)), key=len, reverse=True)
)  # fmt: skip
OWN_WORDS = re.compile(
    rf"it raised (an error of its own|{KINDS}) when it was run|no answer after [\d.]{{1,9}} s"
    r"|the process that ran it ended without an answer|NetworkError: (there is no (checkpoint\.pt"
    r"|network\.py)|checkpoint\.pt (is damaged or not a checkpoint|holds no `config` and `weights`"
    r"|does not fit the CifarNet of network\.py)|network\.py does not run by itself "
    rf"\(({KINDS})(: name '\w{{1,12}}' is not defined)?)",
    re.ASCII,
)


class NotMeasured(UnfitFile):
    """A model file, or a repository, could not be measured; the message says why."""


class ModelSandbox(AbstractContextManager["ModelSandbox"]):
    """A sandbox that runs model files; a context manager. See `inside.measure_files`.

    It starts with the first question, or before: then its imports overlap with whatever the caller
    does meanwhile. When it dies, the next question starts another.

    Args:
        isolation: How to confine it.
        profile: The lab's profile.
        parent: Where its folder is made.
        images: Folder with the images that questions may name, without labels.
        limits: What it may use, over all questions together.
        runtime: What serves repositories, `stand-in` or `native`.
    """

    def __init__(
        self,
        isolation: Isolation,
        profile: str,
        parent: Path,
        images: Path,
        limits: Limits = LIMITS,
        runtime: str = STAND_IN,
    ) -> None:
        self._isolation, self._profile, self._parent = isolation, profile, parent
        self._images, self._limits, self._runtime = images, limits, runtime
        self._stack = ExitStack()
        self._program: ConfinedProgram | None = None
        self._ready = False
        self._mounted: set[Path] = set()  # such as an environment below /tmp: nothing is left there
        self.cpu_s = 0.0
        self.forget_trouble()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def forget_trouble(self) -> None:
        """Begin anew with what `starved` and `trouble` say."""
        self.starved = False  # whether an answer was late for want of CPU time
        self.trouble = ""  # why the grader itself could not measure: no student's fault

    def start(self) -> None:
        """Start the sandbox where none runs."""
        if self._program is not None:
            return
        self._ready = False
        self._workdir = self._stack.enter_context(open_workdir(self._parent, self._isolation))
        # Mounts of their own: what runs inside can put no link in the place of one of them.
        self._in, self._out = self._workdir.writable / "in", self._workdir.writable / "out"
        for folder in (self._in, self._out):
            folder.mkdir()
        self._workdir.hand_over()
        folders = {IMAGES: self._images, IN: self._in}
        sandbox = self._workdir.sandbox(self._profile, folders, data=False, runtime=self._runtime)
        if self._isolation.kind == BUBBLEWRAP:
            own = {path: sandbox.read_write[path] for path in (TMP, HOME)}
            lab = {LAB: sandbox.read_write[LAB]}  # nothing is written there
            sandbox = replace(
                sandbox, read_write={**own, OUT: self._out}, read_only={**sandbox.read_only, **lab}
            )
        folder = Path(inside_.__file__).parent
        sources = [folder / "count_weights.py", folder / "measure_files.py"]
        writable, log = self._workdir.writable, self._workdir.log
        self._program = self._stack.enter_context(
            ConfinedProgram(sources, self._isolation, sandbox, self._limits, writable, log)
        )

    def stop(self) -> None:
        """End the sandbox and remove its files."""
        if self._program is not None:
            self._program.watch.breach()  # the last look at its CPU time
            self.cpu_s += self._program.watch.cpu_s
        self._program = None
        self._stack.close()

    def put(self, source: Path, name: str) -> str:
        """Copy a file or folder in; return its path as seen from inside."""
        self.start()
        target = self._in / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copyfile(source, target)
        return self._seen(IN, self._in, name)

    def clear(self) -> None:
        """Remove what was put in, came out or was left, so that no file can learn from another."""
        if self._program is None:
            return
        try:
            # Each is a mount of its own, so that no link can have taken its place.
            for folder in (self._in, self._out, self._workdir.home, self._workdir.tmp):
                folder.chmod(0o755)
                for path in set(folder.iterdir()) - self._mounted:
                    if path.is_dir() and not path.is_symlink():
                        remove(path)
                    else:
                        path.unlink(missing_ok=True)
        except OSError:  # hidden from us: the next question gets another sandbox
            self.stop()

    @property
    def outbox(self) -> str:
        """The folder for answers, as seen from inside."""
        return self._seen(OUT, self._out)

    def images(self, name: str) -> str:
        """Return the path of a file of images as seen from inside."""
        return self._seen(IMAGES, self._images, name)

    def _seen(self, inside: str, folder: Path, name: str = "") -> str:
        """Return a path in one of the folders as seen from inside."""
        return str(Path(inside if self._isolation.kind == BUBBLEWRAP else folder) / name)

    def logits(
        self, files: dict[str, Path], file: str, images: str, slices: list[list[int]]
    ) -> Floats:
        """Run one model file.

        Args:
            files: Name → file of everything that the model consists of.
            file: The name to load.
            images: Name of the file of images.
            slices: First and last (exclusive) image of each call.

        Returns:
            float32 (N, 10), the slices one after the other.

        Raises:
            NotMeasured: it cannot be loaded or run, or its answer is not finite or of that shape.
        """
        for name, path in files.items():
            self.put(path, name)
        try:
            self.ask(
                do="logits", file=self._seen(IN, self._in, file), images=self.images(images),
                slices=slices, out=f"{self.outbox}/logits.f32",
            )  # fmt: skip
            return self.take("logits.f32", sum(last - first for first, last in slices))
        finally:
            self.clear()

    def take(self, name: str, count: int) -> Floats:
        """Return logits (count, 10) that a request has left.

        Raises:
            NotMeasured: the file is missing, of another size, or holds NaN or infinities.
        """
        try:
            content = read_plain(self._out, name, 1 + count * CLASSES * 4 / 2**20)
        except UnfitFile as error:
            raise NotMeasured(f"it gave no answer ({error})") from None
        if len(content) != 4 * CLASSES * count:
            raise NotMeasured(
                f"it gave {len(content) / 4:g} numbers, expected {count} × {CLASSES} logits"
            )
        logits = np.frombuffer(content, np.float32).reshape(count, CLASSES)
        if not np.isfinite(logits).all():
            raise NotMeasured("its logits hold NaN or infinities")
        return logits

    def ask(self, limit_s: float = 120.0, **request: Any) -> Any:
        """Send one request and return its result.

        Raises:
            NotMeasured: it failed, took too long, or used too much; the message says which.
        """
        self.start()
        assert self._program is not None
        program, begin = self._program, self._program.used
        try:
            if not self._ready:
                self._program.hear(START_S)
                self._ready = True
                places = (self._workdir.home, self._workdir.tmp)
                self._mounted = {path for place in places for path in place.iterdir()}
            alone = self._isolation.kind == BUBBLEWRAP
            self._program.tell(**request, limit_s=limit_s, alone=alone)
            answer = self._program.hear(limit_s + START_S)
        except Stopped as error:
            if not self._ready or program.outcome.verdict == SHORTAGE:
                self.trouble = f"the program that measures was stopped: {error}"
            self.starved |= program.breach is None and program.starved_since(begin)
            self.stop()  # whatever happened to it, the next question gets a new one
            raise NotMeasured(f"the program that measures it was stopped: {error}") from None
        if "result" in answer:
            return answer["result"]
        late = program.used[0] - begin[0] >= limit_s
        self.starved |= late and program.starved_since(begin)
        said = str(answer.get("error", "no reason was given"))[:500]
        if str(request.get("file", "")).endswith("checkpoint.pt"):
            known = OWN_WORDS.match(said)
            said = known[0] + ")" * ("(" in known[0]) if known else "it failed in words of its own"
        raise NotMeasured(said)

    def look_into(self, content: bytes, images: Any) -> dict[str, Any]:
        """Ask a model file that an exercise has written; returns an answer of that exercise."""
        try:
            with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
                file.write(content)
                file.flush()
                inside = self.put(Path(file.name), "exercise.onnx")
            return {"value": self.ask(do="look_into", file=inside, images=images)}
        except NotMeasured:
            return {"error": "NoOnnx"}
        finally:
            self.clear()
