"""The conformance suite: the same operations on a real kernel and on the simulated host, and one transcript.

operations.py says what is done, transcript.py does it and writes down what happened, compare.py tells two
transcripts apart. `python3 -m tests.conformance --help` runs it on this machine or on a simulated one.
"""
