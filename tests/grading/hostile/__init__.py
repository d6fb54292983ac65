"""A class of submissions with one fault each, for `labkit grade`: made here, graded for real.

`fault` says what a fault is, and how small notebooks are made; `machine`, `curious`, `claims`,
`packages` and `whole` hold the faults; `faults` is the table of all of them; `make_class` writes
them into a folder.
"""
