"""PostgreSQL, which holds all truth.

embedded      a server of our own, for rehearsals and small installations
connect       connections and pools by libpq URL, with errors a person can read
migrate       forward-only ``migrations/NNNN_name.sql``
stamp         live or rehearsal, for good
statements    named SQL from ``sql/*.sql``
session       named statements on a pool; what passes by itself is told from bugs
seats         leadership and epochs
registry      sequences and devices, cached by version
columns       numpy columns as PostgreSQL's binary arrays
receipts      what gateways tell afterwards
coordinator_store, shard_store    what the two services ask
"""
