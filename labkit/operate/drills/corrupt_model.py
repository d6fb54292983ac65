"""A new version with a damaged model file is loaded: the old version must go on serving."""

import http.client
import json
import re

from labkit.operate.drills.drill import Drill
from labkit.operate.drills.environment import DrillEnvironment, newest_version
from labkit.operate.drills.outcome import Moment, Number, Outcome
from labkit.operate.load import Load, LoadProfile, Record
from labkit.operate.replicas import Replica

LIMIT_S = 120.0
# The server loads only what it is told to, over HTTP.
EXPLICIT = ("--model-control-mode=explicit", "--load-model=*")


def run(lab: DrillEnvironment) -> Outcome:
    """Put a damaged version 2 beside version 1 and load it; then a sound version 3."""
    ask = 200 if lab.short else 600
    repository = lab.repository()
    model = repository / lab.name
    with lab.replicas(repository, ("one",), EXPLICIT) as replicas:
        one = replicas["one"]
        with Load(lab.target(one.http), LoadProfile(clients=2, seconds=LIMIT_S)) as load:
            load.reached(ask, LIMIT_S)
            damaged_s = load.now_s
            lab.say("loading a version with a damaged file")
            for file in newest_version(model).iterdir():
                (model / "2").mkdir(exist_ok=True)
                (model / "2" / file.name).write_bytes(file.read_bytes()[: file.stat().st_size // 2])
            status, said = load_model(one, lab.name)
            after = ready_versions(one, lab.name)
            load.reached(len(load.answers) + ask, LIMIT_S)
            lab.say("loading a sound version")
            sound_s = load.now_s
            (model / "2").rename(model / "3")
            for file in (model / "1").iterdir():
                (model / "3" / file.name).write_bytes(file.read_bytes())
            sound_status, _ = load_model(one, lab.name)
            load.reached(len(load.answers) + ask, LIMIT_S)
            record = load.record()
        versions = ready_versions(one, lab.name)
    return _outcome(record, (damaged_s, sound_s), (status, said), after, sound_status, versions)


def load_model(replica: Replica, model: str) -> tuple[int, str]:
    """Ask a server to load what its repository holds now; return status and words."""
    return _ask(replica, f"/v2/repository/models/{model}/load")


def ready_versions(replica: Replica, model: str) -> list[str]:
    """Return the versions of a model that answer."""
    _, text = _ask(replica, "/v2/repository/index")
    return [
        entry.get("version", "")
        for entry in json.loads(text)
        if entry["name"] == model and entry.get("state") == "READY"
    ]


def _ask(replica: Replica, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(replica.http, timeout=60)
    try:
        connection.request("POST", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def _outcome(
    record: Record,
    at_s: tuple[float, float],
    refusal: tuple[int, str],
    after: list[str],
    sound_status: int,
    versions: list[str],
) -> Outcome:
    status, said = refusal
    words = json.loads(said).get("error", "") if said.startswith("{") else said
    return Outcome(
        done="a version 2 whose file is cut in half is loaded under load, then a sound version 3",
        client=f"{len(record.answered):,} answers, {len(record.failed)} errors; whoever asked for "
        f"the load got {status}: {_first_line(words)}",
        metrics=f"versions that are ready after the damaged one: {', '.join(after)}; after the "
        f"sound one: {', '.join(versions)}",
        lost="nothing: a version that does not load never replaces one that serves",
        cause="Triton loads the new version beside the old one, and unloads the old one only when "
        "the new one is ready. That takes the memory of both for a moment.",
        numbers=[
            Number("failed requests", len(record.failed), at_most=0, n=len(record.answers)),
            Number("status of loading the damaged version", status, at_least=400, at_most=599),
            Number("status of loading the sound version", sound_status, at_most=299),
            Number("version 1 ready afterwards", float(after == ["1"]), at_least=1),
            Number("version 3 ready at the end", float(versions == ["3"]), at_least=1),
            Number("longest time without an answer", record.longest_gap_s(), "s", at_most=5),
        ],
        moments=[Moment(at_s[0], "damaged version"), Moment(at_s[1], "sound version")],
        evidence={"errors": record.errors, "words": _first_line(words)},
    )


def _first_line(text: str) -> str:
    """Return the beginning of a message, files without their folders."""
    lines = re.sub(r"/\S*/", "", text).strip().splitlines()
    return lines[0][:240] if lines else "no words"


DRILL = Drill("corrupt-model", "A new model version has a damaged file", run)
