"""Holding what a stage has made against what is true; student code and labels never meet."""

from labkit.grading.judge.base import Case, Judgement
from labkit.grading.judge.stages import MEASURES, judge_stage

__all__ = ["MEASURES", "Case", "Judgement", "judge_stage"]
