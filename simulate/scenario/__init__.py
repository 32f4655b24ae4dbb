"""Scenario files: what a rehearsal is about, in YAML.

schema     every key of a file, with its unit, bounds and default
sender     those below ``sender``
events     those of an event
keys       what all of them have in common
reference  the keys as tables, for the documentation
load       a file and what was set over it -> a checked scenario; every mistake with its line
overrides  ``--set a.b=value`` and flags over the file
planned    a scenario as the plan of a rehearsal
"""
