"""Ray: a process and a name for each service, and nothing that decides.

shard        ``DeviceShard``: one shard's process
coordinator  ``Coordinator``: the coordinator's process, which also watches over the shards
loops        tasks of an actor that must not break off unnoticed
shards       the coordinator's way to its shards (the ``Shards`` port)
cluster      composition root: connect to Ray, start, wait, drain
preflight    what must hold before a live run
live         one live installation from start to drain
screen       what it tells a person
preflight    what must hold before it may start
screen       what it tells the person who watches
command      ``dripline run``
"""
