"""PostgreSQL's twin in memory: the same tables, the same ports, one process, no waiting.

database            tables, what people do to them, and what the schema's triggers do then
rows                one class a table
ledger              the attempts: one row each, append-only
epochs              who may act, and the ``Seat`` port
enrolling           queued lead changes become enrolments and ends
ending              ends of attempts and of leases
fleet               rows of devices as columns
usage               what devices have sent, or may have
replying            what leads write back
coordinator_store   the ``CoordinatorStore`` port
shard_store         the ``ShardStore`` port
evidence            what the checker judges by

Every call is one transaction and runs without a break. Nothing here reads a clock, draws at random or depends on the
order of a hash: the same calls have the same effects.
"""

from simulate.memory_store.coordinator_store import MemoryCoordinatorStore
from simulate.memory_store.database import MemoryDatabase
from simulate.memory_store.evidence import evidence
from simulate.memory_store.rows import BreachError
from simulate.memory_store.shard_store import MemoryShardStore

__all__ = ["BreachError", "MemoryCoordinatorStore", "MemoryDatabase", "MemoryShardStore", "evidence"]
