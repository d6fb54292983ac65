"""Faults in what a notebook leaves: files that lie, attack their reader, or are somebody else's."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import zipfile

from nbformat import NotebookNode

from .fault import Bait, Fault, NoBait, exercises, tiny

IMPORTS = "import numpy as np\n\nfrom labkit.data import load_cifar10"
TRAINED = ("checkpoint.pt", "network.py", "history.json")
OPEN = "from labkit.workspace import Workspace\n\nlab = Workspace.open(workspace)"
SPLITS = """
by_class = np.argsort(load_cifar10().train.labels, kind="stable").reshape(10, 5_000)
by_class = np.random.default_rng(0).permuted(by_class, axis=1)
parts = np.split(by_class, [4_400, 4_900], axis=1)
names = ("train", "validation", "calibration")
splits = {name: np.sort(part, axis=None).tolist() for name, part in zip(names, parts)}
lab.save_json("splits.json", {"seed": 0, "indices": splits}, made_by="01_data")
statistics = {"mean": [0.49, 0.48, 0.45], "std": [0.25, 0.24, 0.26]}
lab.save_json("statistics.json", statistics, made_by="01_data")
"""
HAND_IN = """
import shutil
from pathlib import Path

for name in names:
    shutil.copyfile(Path("mine") / name, lab.path(name))
lab.record(*names, made_by=stage)
"""
CONFIGURE = """
from labkit.repository import write_repository

names = [folder.name for folder in write_repository(lab)]
lab.save_json("configure.json", {"models": names}, made_by="05_configure")
"""
NETWORK_CODE = """
from pathlib import Path

Path("DROP/network-ran").write_text("here")
"""
FEW_POINTS = 3.21  # three of seven models served, of 4; three of eight checks of 4
FEW = """
from labkit.repository import VARIANTS, write_repository

few = ("cifar10_onnx", "cifar10_onnx_int8", "cifar10_torchscript")
write_repository(lab, [VARIANTS[name] for name in few])
lab.save_json("configure.json", {"models": few}, made_by="05_configure")
"""
WARM_UP = """
config = lab.repository / "cifar10_onnx" / "config.pbtxt"
config.write_text(config.read_text() + '''
model_warmup {
  name: "too much"
  batch_size: 1
  inputs {
    key: "input"
    value { data_type: TYPE_FP32 dims: [300000, 32000, 3200] zero_data: true }
  }
}
''')
"""
ENVIRONMENT = """
import shutil

folder = lab.repository / "cifar10_torchscript"
shutil.copyfile(Path("mine") / "environment.tar.gz", folder / "1" / "model.pt")
config = folder / "config.pbtxt"
config.write_text(config.read_text() + '''
parameters {
  key: "EXECUTION_ENV_PATH"
  value { string_value: "$$TRITON_MODEL_DIRECTORY/1/model.pt" }
}
''')
"""
# Runs as a program in the sandbox that measures, and tries to lead the grader out of it: what the
# grader clears away and reads there would be another folder of its machine.
ACTIVATE = """
for folder in /lab/in /lab/out /in /out
do
    mv $folder /tmp/away && ln -s DROP $folder
done
touch DROP/was-here
head -c 28000 /dev/zero > /out/cifar10_torchscript.f32  # 700 × 10 logits
"""
CROWD = """
import re

config = lab.repository / "cifar10_onnx" / "config.pbtxt"
config.write_text(re.sub(r"count: \\d+", "count: 1000", config.read_text()))
"""
LISTENS = """
import subprocess
import sys
import time
from pathlib import Path

server = '''
import socket, time
listeners = [socket.create_server(("127.0.0.1", port)) for port in (8000, 8001, 8002)]
print("listening", flush=True)
while True:
    time.sleep(1)
'''
command = [sys.executable, "-c", server, marker]
child = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, text=True)
print(child.stdout.readline())
"""
TUNED = """
import shutil

from labkit.repository import VARIANTS

for name in VARIANTS:
    tuned = Path("mine") / f"{name}.pbtxt"
    if tuned.is_file():
        target = lab.repository / name / "configs" / "tuned.pbtxt"
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(tuned, target)
"""
REPORT = 'from labkit.report import write_report\n\nwrite_report(lab, made_by="08_report")'
WRITES_CLAIMS = """
import json
from pathlib import Path

folders = [Path.cwd(), Path.home(), Path("/tmp"), lab.root, lab.artifacts, lab.root.parent]
names = ["results/claims.json", "gradebook.csv", "canvas.csv", "run.json", "manifest.json",
         "grading.json", "01_data/executed.ipynb"]
for folder in folders:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(Path("forged.json").read_text())
print("forged", len(folders) * len(names), "files")
"""
FORGES_VERDICT = """
import os
import signal
from pathlib import Path

import nbformat

here = Path.cwd() / "02_train.ipynb"
forged = nbformat.read(here, as_version=4)
for number, cell in enumerate((c for c in forged.cells if c.cell_type == "code"), start=1):
    cell.execution_count = number
nbformat.write(forged, lab.root / "notebooks" / "02_train.ipynb")
os.kill(os.getppid(), signal.SIGKILL)  # before it can say what it saw
"""
CLAIM = 0.99


class Evil:
    """An object whose pickle runs code: it leaves a file, and ends whoever has loaded it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        source = f"import os; open({self.path!r}, 'w').close(); os.kill(os.getpid(), 9)"
        return exec, (source,)


def evil_pickle(bait: Bait) -> bytes:
    """Return a pickle that writes `drop/pickle-ran` where the folder can be seen."""
    return pickle.dumps(Evil(str(bait.drop / "pickle-ran")), protocol=2)


def evil_environment(bait: Bait) -> bytes:
    """Return a packed environment for Triton's Python backend, which runs a script of it."""
    script = ACTIVATE.replace("DROP", str(bait.drop)).encode()
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        entry = tarfile.TarInfo("bin/activate")
        entry.size, entry.mode = len(script), 0o755
        archive.addfile(entry, io.BytesIO(script))
    return stream.getvalue()


def hands_in(stage: str, *names: str) -> list[str]:
    """Return cells that make files of the submission the stage's artifacts."""
    return [OPEN, f"stage, names = {stage!r}, {list(names)!r}", HAND_IN]


def mine(bait: Bait, *names: str) -> dict[str, bytes]:
    """Return artifacts of the reference run, as files of a submission."""
    return {f"notebooks/mine/{name}": bait.artifact(name) for name in names}


def tuned(bait: Bait) -> dict[str, bytes]:
    """Return the tuned configurations of the reference run, as files of a submission."""
    return {
        f"notebooks/mine/{path.parent.parent.name}.pbtxt": path.read_bytes()
        for path in bait.reference.glob("model_repository/*/configs/tuned.pbtxt")
    }


def right_splits() -> NotebookNode:
    """Return a notebook 01 that is right, in a few lines."""
    return tiny(IMPORTS, OPEN, *exercises("01_data"), SPLITS)


def artifact_faults(bait: Bait) -> list[Fault]:
    """Return the faults."""
    return [
        *_liars(bait),
        *_attackers(bait),
        *_carriers(bait),
    ]


def _liars(bait: Bait) -> list[Fault]:
    """Claims that nothing stands behind."""
    forged = json.dumps({"schema": 1, "student": "claims", "points": 100, "status": "graded"})
    training = {"epochs": [{"epoch": 1}], "validation_accuracy": CLAIM}
    export = {
        "accuracy": dict.fromkeys(("model.pt", "model_optimized.pt", "model.onnx"), CLAIM),
        "parity": {key: [{"batch": 1}] for key in ("model.pt", "model_optimized.pt", "model.onnx")},
    }
    names = json.loads(bait.artifact("query.json"))["variants"]
    query = {"variants": {name: {"accuracy": CLAIM, "n": 500} for name in names}}
    report = json.loads(bait.artifact("report.json"))
    for row in report["variants"]:
        if row.get("cells"):
            row["cells"]["accuracy"]["value"] = CLAIM
    files = {
        "history.json": training, "export.json": export, "query.json": query, "report.json": report,
    }  # fmt: skip
    inside = {f"notebooks/mine/{name}": json.dumps(what).encode() for name, what in files.items()}
    inside["notebooks/mine/report.html"] = b"<p>" + b"99 % " * 4_000
    written = ("results/forged-files.json", "gradebook.csv", "run.json", "grading.json")
    return [
        Fault(
            "forged-files", "hands in and writes results, gradebooks and records of its own",
            {"notebooks/01_data.ipynb": tiny(OPEN, WRITES_CLAIMS)},
            {"notebooks/forged.json": forged.encode()} | dict.fromkeys(written, forged.encode()),
            verdicts={"01_data": ("ok",)}, shows="forged 42 files",
        ),
        Fault(
            "forged-verdict", "forges its executed notebook, and ends what runs it",
            {"notebooks/02_train.ipynb": tiny(OPEN, FORGES_VERDICT)},
            verdicts={"02_train": ("stopped",)}, says="kernel had ended",
        ),
        Fault(
            "forged-claims", "claims 99 % everywhere, with nothing behind it",
            {
                "notebooks/02_train.ipynb": tiny(*hands_in("02_train", "history.json")),
                "notebooks/03_export.ipynb": tiny(*hands_in("03_export", "export.json")),
                "notebooks/06_serve.ipynb": tiny(*hands_in("06_serve", "query.json")),
                "notebooks/08_report.ipynb": tiny(*hands_in("08_report", "report.json", "report.html")),
            },
            inside,
            verdicts=dict.fromkeys(("02_train", "03_export", "06_serve", "08_report"), ("ok",)),
        ),
        Fault(
            "overstated", "hands in a trained network, and claims 99 % of it",
            {"notebooks/02_train.ipynb": tiny(*hands_in("02_train", *TRAINED))},
            mine(bait, "checkpoint.pt", "network.py")
            | {"notebooks/mine/history.json": inside["notebooks/mine/history.json"]},
            verdicts={"02_train": ("ok",)}, points=(8, 8), says="history.json says 99.0% for checkpoint.pt",
        ),
    ]  # fmt: skip


def _attackers(bait: Bait) -> list[Fault]:
    """Files that attack whoever loads or serves them."""
    evil = evil_pickle(bait)
    exported = ("model.pt", "model_optimized.pt", "model.onnx")
    claims = {"notebooks/mine/export.json": json.dumps({"accuracy": CLAIM}).encode()}
    garbage = {f"notebooks/mine/{name}": evil if ".pt" in name else b"\x08\x07garbage" * 999
               for name in exported}  # fmt: skip
    write = tiny("from pathlib import Path", OPEN, FEW, WARM_UP, ENVIRONMENT)
    return [
        Fault(
            "pickle", "hands in a checkpoint that runs code when it is loaded",
            {"notebooks/02_train.ipynb": tiny(*hands_in("02_train", *TRAINED))},
            mine(bait, "network.py")
            | {"notebooks/mine/checkpoint.pt": evil, "notebooks/mine/history.json": b'{"epochs": [1]}'},
            verdicts={"02_train": ("ok",)}, says="checkpoint.pt",
        ),
        Fault(
            "network-code", "hands in a network.py that writes outside when it is loaded",
            {"notebooks/02_train.ipynb": tiny(*hands_in("02_train", *TRAINED))},
            mine(bait, *TRAINED)
            | {"notebooks/mine/network.py": NETWORK_CODE.replace("DROP", str(bait.drop)).encode()},
            verdicts={"02_train": ("ok",)}, says="network.py does not run by itself",
        ),
        Fault(
            "garbage-models", "hands in model files that are none",
            {"notebooks/03_export.ipynb": tiny(*hands_in("03_export", *exported, "export.json"))},
            garbage | claims,
            verdicts={"03_export": ("ok",)}, says="model.onnx: ",
        ),
        Fault(
            "server-crash", "configures a warm-up that kills Triton, and code that it runs",
            {"notebooks/05_configure.ipynb": write},
            {"notebooks/mine/environment.tar.gz": evil_environment(bait)},
            verdicts={"05_configure": ("ok",)}, points=(4 / 7 - 0.01, 4),
            says="cifar10_torchscript: config.pbtxt: parameter EXECUTION_ENV_PATH starts.*"
            "server crashed when it loaded or ran this model",
        ),
        Fault(
            "server-crowd", "configures a thousand instances",
            {"notebooks/05_configure.ipynb": tiny(OPEN, FEW, CROWD)},
            verdicts={"05_configure": ("ok",)}, points=(1, 6),
            # Whichever comes first: shared memory is used up, or there are too many processes;
            # natively, all are in one process, whose memory is used up.
            says=r"server crashed when it loaded or ran this model|more than \d+ processes|"
            r"more than [\d,]+ MiB of memory",
        ),
    ]  # fmt: skip


def _carriers(bait: Bait) -> list[Fault]:
    """Right work beside a stage that is broken, missing, or somebody else's."""
    trained = {"notebooks/02_train.ipynb": tiny(*hands_in("02_train", *TRAINED))}
    files = mine(bait, *TRAINED)
    again = files | {"notebooks/mine/checkpoint.pt": trained_elsewhere(bait)}
    return [
        Fault(
            "original", "hands in a trained network", trained, again,
            verdicts={"02_train": ("ok",)}, points=(10, 10),
        ),
        Fault(
            "copy", "hands in the network of another student", trained, again,
            verdicts={"02_train": ("ok",)}, points=(10, 10),
        ),
        Fault(
            "ports", "hands in 01 and 05 only, and listens on Triton's ports, also afterwards",
            {
                "notebooks/01_data.ipynb": right_splits(),
                "notebooks/05_configure.ipynb": tiny(
                    f"marker = {bait.marker!r}", LISTENS, OPEN, FEW
                ),
            },
            verdicts={"01_data": ("ok",), "05_configure": ("ok",)},
            points=(8 + FEW_POINTS, 8 + FEW_POINTS),
            says="no notebook for this step", shows="listening",
        ),
        broken_export(bait, trained, files),
    ]  # fmt: skip


def trained_elsewhere(bait: Bait) -> bytes:
    """Return the reference's checkpoint in other bytes: its own would tell nothing about a copy."""
    stream = io.BytesIO(bait.artifact("checkpoint.pt"))
    if not isinstance(bait, NoBait):
        with zipfile.ZipFile(stream, "a") as archive:
            archive.comment = b"trained by somebody else"
    return stream.getvalue()


def broken_export(bait: Bait, trained: dict[str, NotebookNode], files: dict[str, bytes]) -> Fault:
    """Return the submission whose third notebook is broken, and the rest right."""
    quantized = ("model_int8.pt", "model_int8.onnx", "model_int8.xml", "model_int8.bin")
    quantized += ("quantize.json",)
    return Fault(
        "broken-03", "has a third notebook that is broken, and the rest right",
        {
            "notebooks/01_data.ipynb": right_splits(),
            **trained,
            "notebooks/03_export.ipynb": tiny("raise RuntimeError('the export does not work')"),
            "notebooks/04_quantize.ipynb": tiny(*hands_in("04_quantize", *quantized)),
            "notebooks/05_configure.ipynb": tiny(OPEN, CONFIGURE),
            "notebooks/06_serve.ipynb": tiny(*hands_in("06_serve", "query.json")),
            "notebooks/07_tune.ipynb": tiny(*hands_in("07_tune", "tune.json"), TUNED),
            "notebooks/08_report.ipynb": tiny(OPEN, REPORT),
        },
        files | tuned(bait) | mine(bait, *quantized, "query.json", "tune.json"),
        verdicts={
            stage: ("error",) if stage == "03_export" else ("ok",)
            for stage in ("01_data", "02_train", "03_export", "04_quantize", "05_configure",
                          "06_serve", "07_tune", "08_report")
        },
        points=(50, 50), says="the export does not work",
    )  # fmt: skip
