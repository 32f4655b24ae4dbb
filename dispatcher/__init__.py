"""Dripline without Ray: everything that decides, and everything that talks to PostgreSQL or to a gateway.

core      pure rules: triggers, sequence graph, transitions, outcomes, quotas, windows, backoff, routing, messages
ports     what the services need from outside: Store, Sender, Shards
store     PostgreSQL: statements in ``.sql``, migrations, the embedded server
sender    HTTP gateways
intake    lead files and sequence files on their way in
services  coordinator (enroller, rescuer, rebalancer), shard (slots, windows, completer): plain, with ``run_once(now)``
webhooks  what gateways tell afterwards, over HTTP
cli       the ``dripline`` command
"""
