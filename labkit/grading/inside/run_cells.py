"""Inside the sandbox: run a notebook's cells in a kernel, and call functions in it afterwards.

Reads requests from standard input, a JSON object a line, and answers each with lines of JSON. This
process keeps nothing that a student's code may not know, and cannot be read or traced by it. It
says what it saw itself: which cells it gave to a kernel that lived, and what the kernel sent back.

Requests:
    {"do": "start", "folder": …, "imports": […]} → {} when a kernel has started, and imported these
    {"do": "cells", "sources": […], "output_bytes": …}
    {"do": "cell", "cell": n, "limit_s": …, "limit_cpu_s": …}, for each of them in turn
        → {"cell": n, "ended": …, "count": …, "outputs": […], "stop": whether no other can run}
        "ended" is "ok", "error", "late" (interrupted at its limit), "lost" (the kernel ended) or
        "flood" (it showed too much).
    {"do": "alive"} → {"lives": whether the kernel does}
    {"do": "revive", "limit_s": …, "limit_cpu_s": … of a cell} → {"lives": whether there is a
        kernel in which the cells have run}
    {"do": "call", "code": …, "limit_s": …} → {"ended": …, "answer": text, null without one}
    {"do": "serve", "program": …, "network": …} → {"addresses": {…}} or {"failure": …}
    {"do": "counted"} → {"sizes": {images in a request: number of such requests}}
"""

import contextlib
import ctypes
import json
import os
import queue
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

PR_SET_DUMPABLE = 4  # linux/prctl.h
MIME = "application/vnd.labkit.answer"
START_S = 90.0  # for a kernel; it takes a second or two where nothing else runs
PATIENCE_S = 3.0  # after an interrupt, for code that swallows it
REPLY_S = 60.0  # from the last of what a cell shows to the reply, which is sent before
SERVER_START_S = 100.0
POLL_S = 0.2
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
MOST_REVIVALS = 4
# No file beside the notebook takes the place of what the kernel is made of; its cells find them.
LAUNCH = "import sys; sys.path.remove(''); from ipykernel import kernelapp as app; "
LAUNCH += "app.launch_new_instance()"
TOO_LARGE = "[not kept: too large, or after too much else]"
KINDS = ("stream", "display_data", "execute_result", "error")
Json = dict[str, Any]


class Kernel:
    """A kernel in a process group of its own."""

    def __init__(self, folder: str) -> None:
        from jupyter_client import BlockingKernelClient
        from jupyter_client.connect import write_connection_file

        self._place = Path(tempfile.mkdtemp(prefix="kernel-", dir="/tmp"))  # a short path, for IPC
        path, _ = write_connection_file(
            str(self._place / "kernel.json"), ip=str(self._place / "ipc"), transport="ipc"
        )
        command = [sys.executable, "-c", LAUNCH, "-f", path]
        command += ["--log-level=ERROR"]
        self.process = subprocess.Popen(
            command,
            env={**os.environ, "JPY_PARENT_PID": str(os.getpid())},  # it ends with this process
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=2,
            stderr=2,
            start_new_session=True,
        )
        self.client = BlockingKernelClient(connection_file=path)
        self.client.load_connection_file()
        self.client.start_channels(hb=False)
        self._wait_for_ready()

    def _wait_for_ready(self) -> None:
        """Wait until it answers and is heard, however slowly a busy machine starts it.

        Raises:
            RuntimeError: it ends, or takes too long.
        """
        deadline = time.monotonic() + START_S
        answered = heard = False
        while not (answered and heard):
            if not self.lives() or time.monotonic() > deadline:
                raise RuntimeError("the kernel did not start")
            self.client.kernel_info()
            with contextlib.suppress(queue.Empty):
                answered |= bool(self.client.get_shell_msg(timeout=POLL_S))
            with contextlib.suppress(queue.Empty):
                heard |= bool(self.client.get_iopub_msg(timeout=POLL_S))

    def lives(self) -> bool:
        """Say whether its process runs."""
        return self.process.poll() is None

    def signal(self, number: int) -> None:
        """Send a signal to it and to what it has started in its group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)

    def cpu_s(self) -> float:
        """Return CPU seconds of the kernel itself, with its threads and ended children."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return sum(map(int, fields[11:15])) / TICKS_PER_S

    def end(self) -> None:
        """Kill it."""
        self.signal(signal.SIGKILL)
        self.process.wait()
        self.client.stop_channels()
        shutil.rmtree(self._place, ignore_errors=True)

    def execute(self, source: str, take: Any, limit_s: float, cpu_s: float = float("inf")) -> str:
        """Run a source, give what it shows to `take`; return how it ended, see the module."""
        if not self.lives():
            return "lost"
        ask = self.client.execute(
            source, store_history=take is not None, allow_stdin=False, stop_on_error=False,
            user_expressions={"leaves": "get_ipython().exit_now"},
        )  # fmt: skip
        begin, burnt = time.monotonic(), self.cpu_s()
        interrupted = 0.0
        while True:
            try:
                message = self.client.get_iopub_msg(timeout=POLL_S)
            except queue.Empty:
                message = None
            now = time.monotonic()
            if message and message["parent_header"].get("msg_id") == ask:
                kind, content = message["msg_type"], message["content"]
                if kind == "status" and content.get("execution_state") == "idle":
                    break
                if take and not take(kind, content):
                    return "flood"
            elif message is None and not self.lives():
                return "lost"
            if interrupted and now > interrupted + PATIENCE_S:
                self.end()
                return "late"
            if not interrupted and (now > begin + limit_s or self.cpu_s() - burnt > cpu_s):
                self.signal(signal.SIGINT)
                interrupted = now
        reply = self._reply(ask)
        if reply is None:
            return "late" if interrupted else "lost"
        status, self.count = reply["status"], reply.get("execution_count")
        if interrupted:
            return "late"
        leaves = reply.get("user_expressions", {}).get("leaves", {}).get("data", {})
        asks = [entry.get("source") for entry in reply.get("payload", ())]
        # By exit(), also before an error; or as hosted notebooks restart a kernel.
        if "ask_exit" in asks or leaves.get("text/plain") == "True":
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(PATIENCE_S)
            self.end()
            return "lost"
        return "ok" if status == "ok" else "error"

    def _reply(self, ask: str) -> Json | None:
        """Return the kernel's own word on a request that it has done; None when it has died."""
        deadline = time.monotonic() + REPLY_S
        while time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                reply = self.client.get_shell_msg(timeout=POLL_S)
                if reply["parent_header"].get("msg_id") == ask:
                    return dict(reply["content"])
                continue
            if not self.lives():
                return None
        return None

    count: Any = None


class Outputs:
    """What one cell shows: the kernel's messages as a notebook keeps them."""

    def __init__(self, room: list[int]) -> None:
        self.list: list[Json] = []
        self._room, self._clear = room, False
        self._shown: dict[str, Json] = {}
        self._kept = 0  # bytes of what this cell has taken of the room, and can give back

    def __call__(self, kind: str, content: Json) -> bool:
        """Take a message; False when too much has been shown."""
        if kind == "clear_output":
            self._clear = True
            return True
        size = len(json.dumps(content, default=str))
        if "data" in content and size > self._room[0] > 0:
            content = {**content, "data": {"text/plain": TOO_LARGE}}
            size = len(json.dumps(content["data"]))
        if kind == "update_display_data":
            kept = self._shown.get(str(content.get("transient", {}).get("display_id")))
            if kept is not None:
                self._give_back(len(json.dumps(kept["data"], default=str)))
                kept["data"] = content.get("data", {})
        elif kind in KINDS:
            if self._clear:
                self.list.clear()
                self._shown.clear()
                self._give_back(self._kept)
                self._clear = False
            self._add(kind, content)
        self._room[0] -= size
        self._kept += size
        return self._room[0] > 0

    def _give_back(self, size: int) -> None:
        """Make room again for what was cleared or has been replaced."""
        self._kept -= size
        self._room[0] += size

    def _add(self, kind: str, content: Json) -> None:
        if kind == "stream":
            name, text = str(content.get("name")), str(content.get("text"))
            print(text, end="", file=sys.stderr, flush=True)  # the log
            last = self.list[-1] if self.list else {}
            if last.get("name") == name:
                last["text"] += text
            else:
                self.list.append({"output_type": kind, "name": name, "text": text})
            return
        if kind == "error":
            entry = {key: content.get(key) for key in ("ename", "evalue", "traceback")}
        else:
            entry = {"data": content.get("data", {}), "metadata": {}}
            if name := content.get("transient", {}).get("display_id"):
                self._shown[str(name)] = entry
        self.list.append({"output_type": kind, **entry})


class Notebook:
    """The cells of one notebook, in a kernel that is started again when a cell has ended it."""

    def __init__(self, folder: str, kernel: Kernel, request: Json) -> None:
        self._folder, self._sources = folder, request["sources"]
        self._limits: Json = {}
        self._room = [int(request["output_bytes"])]
        self._kernel: Kernel | None = kernel
        self._bad: set[int] = set()  # cells that are not run a second time
        self._revivals = 0

    def kernel(self, before: int) -> Kernel | None:
        """Return a kernel in which the cells before one have run; None when there is none."""
        if self._kernel is not None and self._kernel.lives():
            return self._kernel
        if self._kernel is not None:
            self._kernel.end()
            self._revivals += 1
            if self._revivals > MOST_REVIVALS:
                return None
        self._kernel = Kernel(self._folder)
        for number in range(before):
            if number not in self._bad and self._run(number, lambda *message: True) == "lost":
                self._bad.add(number)
                return self.kernel(before)
        return self._kernel

    def _run(self, number: int, take: Any) -> str:
        assert self._kernel is not None
        limits = self._limits
        return self._kernel.execute(
            self._sources[number], take, limits["limit_s"], limits["limit_cpu_s"]
        )

    def run(self, request: Json) -> None:
        """Run one cell, and say how it ended."""
        number, self._limits = request["cell"], request
        outputs, kernel = Outputs(self._room), self.kernel(number)
        ended = "lost" if kernel is None else self._run(number, outputs)
        if ended in ("late", "lost"):
            self._bad.add(number)
        count = kernel.count if kernel and ended in ("ok", "error", "late") else None
        stop = ended == "flood" or kernel is None
        say({"cell": number, "ended": ended, "count": count, "outputs": outputs.list, "stop": stop})

    def alive(self) -> None:
        """Say whether the kernel lives."""
        say({"lives": self._kernel is not None and self._kernel.lives()})

    def revive(self, request: Json) -> None:
        """See that there is a kernel in which the cells have run."""
        self._limits = request
        say({"lives": self.kernel(len(self._sources)) is not None})

    def call(self, request: Json) -> None:
        """Run a source after the last cell, and say what it has answered."""
        answers: list[str] = []

        def take(kind: str, content: Json) -> bool:
            if kind == "display_data" and MIME in content.get("data", {}):
                answers.append(str(content["data"][MIME]))
            return True

        kernel = self._kernel
        if kernel is None or not kernel.lives():
            ended = "lost"
        else:
            kernel.signal(signal.SIGCONT)
            ended = kernel.execute(request["code"], take, request["limit_s"])
        say({"ended": ended, "answer": answers[-1] if answers else None})


class Server:
    """A Triton that a program of its own starts, and stops when it ends."""

    def __init__(self, request: Json) -> None:
        self._folder = tempfile.mkdtemp()
        Path(self._folder, "network.json").write_text(json.dumps(request["network"]))
        command = [sys.executable, "-I", "-c", request["program"], self._folder]
        with Path(self._folder, "log.txt").open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log
            )
        self._deadline = time.monotonic() + SERVER_START_S
        self._found: Json = {}

    def addresses(self) -> Json:
        """Wait for the server's three addresses, or for why there is none."""
        output = self._process.stdout
        if not self._found and output is not None:
            wait_s = max(0.0, self._deadline - time.monotonic())
            line = output.readline() if select.select([output], [], [], wait_s)[0] else b""
            log = Path(self._folder, "log.txt").read_text(errors="replace").strip().splitlines()
            why = log[-1] if log else "Triton was not ready in time"
            self._found = {"addresses": json.loads(line)} if line else {"failure": why}
        return self._found

    def sizes(self) -> Json:
        """Return its counters: images in a request → number of such requests."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        url = f"http://{self.addresses()['addresses']['http']}/v2/models/cifar10_onnx/stats"
        with opener.open(url, timeout=10) as reply:
            stats = json.load(reply)["model_stats"][0].get("batch_stats", [])
        return {str(int(e["batch_size"])): int(e["compute_infer"]["count"]) for e in stats}


def say(answer: Json) -> None:
    """Answer with one line."""
    ANSWERS.write(json.dumps(answer, default=str) + "\n")
    ANSWERS.flush()


def start(folder: str, imports: list[str]) -> Kernel:
    """Return a kernel that has imported all of this, into no namespace of a notebook, or nothing.

    A library that was imported by half, for want of memory say, cannot be imported again.
    """
    kernel = Kernel(folder)
    source = "\n".join(f"exec({statement!r}, {{}})" for statement in imports)
    if kernel.execute(source, None, START_S) == "ok":
        return kernel
    kernel.end()
    return Kernel(folder)


def main() -> None:
    """Answer requests until standard input ends."""
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    folder, kernel = "", None
    notebook: Notebook | None = None
    server: Server | None = None
    say({"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "start":
                folder = request["folder"]
                kernel = start(folder, request["imports"])
                say({})
            elif request["do"] == "cells" and kernel is not None:
                notebook = Notebook(folder, kernel, request)
            elif request["do"] == "cell" and notebook is not None:
                notebook.run(request)
            elif request["do"] == "alive" and notebook is not None:
                notebook.alive()
            elif request["do"] == "revive" and notebook is not None:
                notebook.revive(request)
            elif request["do"] == "call" and notebook is not None:
                notebook.call(request)
            elif request["do"] == "serve":
                server = Server(request)
                say({})
            elif server is not None:
                found = server.addresses()
                say({**found, "sizes": server.sizes() if "addresses" in found else {}})
            else:
                raise ValueError(f"got {request['do']} before there is what it is about")
        except Exception as error:  # of a kernel that says what no kernel says
            said = {"failure": f"{type(error).__name__}: {error}"[:300], "stop": True}
            if request["do"] == "cell":  # then it had one, and the cell has made it say that
                said |= {"cell": request["cell"], "count": None, "outputs": []}
            say({**said, "ended": "lost"})


ANSWERS = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace")
os.dup2(2, 1)  # whatever is printed goes to the log

if __name__ == "__main__":
    main()
