"""Tests of sequences: what leads are to get and what is to become of them, in YAML beside the sequences.

times         36h, day 2, day 2 10:30: as people write them, and as they are told
schema        every key of a file
reference     the keys as tables, for the documentation
load          files and folders -> checked tests; every mistake with its line
gateway       the sender: takes every message, unless a test says otherwise
world         one test played: the production services over the memory store, from moment to moment
expectations  what was expected and did not come true
command       ``dripline test``
"""
