"""Chaos on the real stack: a live engine on several Ray nodes, real PostgreSQL, a real gateway, and a seeded storm.

plan     how large a run is, and how short its hours are
world    devices, leads, and how far their messages are
nodes    the Ray cluster under attack
engine   ``dripline run``, started again whenever it has ended
proxy    between engine and PostgreSQL: cuts, stalls, answers that get lost
stage    everything there is to strike at, started and ended together
faults   what may strike, by name
storm    which fault strikes when, drawn from the seed
run      one run from population to verdict
verdict  what the gateway's log and the database say
outcome  the figures a run ends with: JSON and terminal
"""
