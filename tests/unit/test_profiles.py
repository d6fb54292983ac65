import dataclasses

import pytest

from labkit.profiles import PROFILES, UnknownProfile, available_cores, get_profile


def test_the_three_presets() -> None:
    assert list(PROFILES) == ["smoke", "standard", "full"]
    assert get_profile("standard").test_images == 10_000  # the whole test set
    assert get_profile("standard").train_images is None


def test_unknown_profile_lists_the_known() -> None:
    with pytest.raises(UnknownProfile, match=r"'fast' does not exist; .*smoke, standard, full"):
        get_profile("fast")


def test_environment_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_PROFILE", "smoke")
    assert get_profile("standard").name == "smoke"


def test_profiles_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_profile("smoke").seed = 1  # type: ignore[misc]


def test_cores_are_counted() -> None:
    assert available_cores() >= 1
