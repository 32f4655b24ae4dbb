"""Deterministic simulation: the production services event by event in virtual time, under faults drawn from a seed.

One process, no Ray, no PostgreSQL: the services run on the in-memory store, on an event loop whose clock jumps from
event to event, and on a network, a database connection and a gateway that misbehave as a seed says. The same seed does
the same, to the byte.
"""
