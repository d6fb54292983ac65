"""Holding what a stage has made against what is true; student code and labels never meet."""

from labkit.grading.measure.base import Case, StageMeasurements
from labkit.grading.measure.stages import MEASURES, measure_patiently, measure_stage

__all__ = ["MEASURES", "Case", "StageMeasurements", "measure_patiently", "measure_stage"]
