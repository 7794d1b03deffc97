"""Every parser of sriovd against bytes that nobody meant.

Rule: table.py names each parser with the errors that it documents; any other exception is a defect, and so
is an input that takes too long or too much memory. mutate.py makes inputs, run.py judges them, __main__.py
is for long runs: `python -m tests.fuzz [ENTRY ...] --inputs N --seed S`, with --atheris guided by coverage.
"""
