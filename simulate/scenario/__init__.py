"""Scenario files: what a rehearsal is about, in YAML.

schema     every key, with its unit, bounds and default
load       a file and what was set over it -> a checked scenario; every mistake with its line
overrides  ``--set a.b=value`` and flags over the file
planned    a scenario as the plan of a rehearsal
"""
