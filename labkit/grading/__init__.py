"""Grading a class: release, run in a sandbox, measure, score, give back.

A submission walks through these modules, in this order:

1. `find_submissions`: who handed in what;
2. `submission`: unpacked and read (`unpack`, `find_notebooks`, `notebook`);
3. `run_notebook`: its cells run in a kernel in the sandbox (`workdir`, `sandbox`,
   `confined_process`, `inside.run_cells`), what they made is taken out, and its `exercises` are
   called in that kernel;
4. `carry_forward`: what the next notebook is given;
5. `measure`: what was made is held against what is true, in a second sandbox;
6. `results`: measurements and the `rubric` become points;
7. `publish`: `gradebook`, `feedback`, `class_page`.

`grade` is one submission on its way, `session` a grading and its settings, `classroom` all of them,
`commands` what the instructor types. Points come from measurements only: that a notebook claims to
have run earns nothing.
"""
