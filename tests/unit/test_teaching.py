"""docs/teaching.md against the project: what it names is there."""

import re
from pathlib import Path

from labkit.chain import PRACTICE, STAGES
from labkit.grading.exercises import EXERCISES

DOCS = Path(__file__).resolve().parents[2] / "docs"
TEXT = (DOCS / "teaching.md").read_text(encoding="utf-8")


def test_exercises_files_and_links_that_it_names_are_there() -> None:
    assert set(re.findall(r"`(ex-[\w-]+)`", TEXT)) <= set(EXERCISES)
    for link in re.findall(r"\]\(([^)#]+)", TEXT):
        assert (DOCS / link).exists(), link
    for path in re.findall(r"`(labkit/[\w/.]+)`", TEXT):
        assert (DOCS.parent / path).exists(), path


def test_the_goals_name_every_notebook() -> None:
    goals = TEXT[TEXT.index("Afterwards a student can") : TEXT.index("## Three timetables")]
    named = set(re.findall(r"\b(\d\d)\b", goals))
    assert named == {stage[:2] for stage in (*STAGES, *PRACTICE)}
