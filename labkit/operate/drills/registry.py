"""All drills in their order, and how one is performed: whatever happens, a result comes back."""

import logging
import time
from collections.abc import Sequence

from labkit.errors import LabError, UsageError
from labkit.operate.drills import (
    corrupt_model,
    graceful_exit,
    overload,
    replica_killed,
    rolling_update,
)
from labkit.operate.drills.drill import Drill
from labkit.operate.drills.environment import DrillEnvironment
from labkit.operate.drills.outcome import FAILED, NOT_MEASURED, NotMeasured, Result
from labkit.operate.programs import MissingProgram
from labkit.server import TritonNotFound

logger = logging.getLogger(__name__)

DRILLS: tuple[Drill, ...] = tuple(
    module.DRILL
    for module in (replica_killed, overload, corrupt_model, rolling_update, graceful_exit)
)


class UnknownDrill(UsageError):
    """A name that is no drill's."""


def find_drills(names: Sequence[str] = ()) -> list[Drill]:
    """Return the drills of these names; all when none is named.

    Raises:
        UnknownDrill: there is no such drill.
    """
    known = {drill.name: drill for drill in DRILLS}
    if unknown := [name for name in names if name not in known]:
        raise UnknownDrill(f"got {', '.join(unknown)}, expected drills among: {', '.join(known)}")
    return [known[name] for name in names] or list(DRILLS)


def perform(drill: Drill, lab: DrillEnvironment) -> Result:
    """Do one drill in a folder of its own, and judge it.

    Returns:
        Its result. A drill that this machine cannot do, or that broke off, has one too; the reason
        says why.
    """
    begin = time.monotonic()

    def without(status: str, reason: object) -> Result:
        return Result(drill.name, drill.title, status, time.monotonic() - begin, reason=str(reason))

    try:
        outcome = drill.run(lab.for_drill(drill.name))
    except (NotMeasured, MissingProgram, TritonNotFound) as error:
        return without(NOT_MEASURED, error)
    except LabError as error:
        return without(FAILED, error)
    except Exception as error:  # a fault of ours must not lose the results of the other drills
        logger.exception("drill %s", drill.name)
        return without(FAILED, f"the drill broke off: {type(error).__name__}: {error}")
    return Result.of(drill.name, drill.title, time.monotonic() - begin, outcome)
