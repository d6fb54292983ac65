"""How much work a run does: three presets, chosen by name."""

import os
from dataclasses import dataclass, replace

from labkit.errors import UsageError


class UnknownProfile(UsageError):
    """A profile name that is none of the presets."""


@dataclass(frozen=True)
class Profile:
    """The amount of work of each step; what is measured is the same in every profile.

    Attributes:
        name: `smoke`, `standard` or `full`.
        train_images: Images of the training split used in 02; None means all of them.
        validation_images: Images on which choices are made (02, 03, 04).
        calibration_images: Images that the quantizers see (04).
        test_images: Test images sent through the server, per variant (06).
        bench_seconds: Length of one load measurement, in seconds.
        bench_repeats: How often each load measurement is repeated, interleaved.
        seed: Seeds the weights, the order of the images and the augmentation.
        threads: Threads of training and of in-process evaluation.
    """

    name: str
    train_images: int | None
    validation_images: int
    calibration_images: int
    test_images: int
    bench_seconds: float
    bench_repeats: int
    seed: int = 0
    threads: int = 2


PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        # A check that everything works: minutes for the whole chain, numbers of little worth.
        Profile("smoke", 6_000, 1_000, 64, 500, 0.4, 1),
        # What a student runs: a quarter of an hour for the whole chain, numbers to report.
        Profile("standard", None, 5_000, 512, 10_000, 2.0, 3),
        # For an evening: the best accuracy and the tightest intervals.
        Profile("full", None, 5_000, 1_000, 10_000, 5.0, 5),
    )
}


def available_cores() -> int:
    """Return how many CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def preset(name: str) -> Profile:
    """Return a preset by name, whatever the environment says.

    Raises:
        UnknownProfile: there is no such preset.
    """
    try:
        return PROFILES[name]
    except KeyError:
        known = ", ".join(PROFILES)
        raise UnknownProfile(f"profile {name!r} does not exist; choose one of: {known}") from None


def get_profile(name: str = "standard") -> Profile:
    """Return the preset that a notebook names.

    Args:
        name: `smoke`, `standard` or `full`. The environment variable `LABKIT_PROFILE` overrides
            it, so that CI can step through the notebooks as they are.

    Returns:
        The preset, with no more threads than there are cores: threads that take turns on a core
        wait for each other in loops (measured: a training in bf16 then takes twenty times as long).

    Raises:
        UnknownProfile: there is no such preset.
    """
    profile = preset(os.environ.get("LABKIT_PROFILE") or name)
    return replace(profile, threads=min(profile.threads, available_cores()))
