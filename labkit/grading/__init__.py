"""Grading a class: release, run in a sandbox, measure, score, give back.

A submission passes through four steps, each of which leaves files and can be repeated alone:

1. *run*: the student's notebooks, in the sandbox, one after the other (`execute`);
2. *measure*: what the notebooks made is held against what is true, by programs that the student
   can neither see nor edit (`judge`);
3. *score*: measurements and a rubric become points, without touching any file (`rubric`);
4. *give back*: gradebook, feedback pages, the class at a glance (`gradebook`, `feedback`).

Points come from measurements only. That a notebook claims to have run earns nothing.
"""
