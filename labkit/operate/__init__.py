"""Operate what the lab serves: gateway, monitoring and failure drills, with the real programs."""

from labkit.operate.programs import MissingProgram, Program, ProgramError, find_program

__all__ = ["MissingProgram", "Program", "ProgramError", "find_program"]
