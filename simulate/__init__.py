"""The rehearsal: production code against a mock sender and virtual time. Imported by nothing.

command     ``dripline simulate``
rehearsal   one run from population to verdict
driver      virtual time: tick by tick, from moment to moment at which something can happen
scratch     the embedded server of a run
pacing      how devices spread their messages over an hour
population  devices and leads by COPY
referee     the mock gateway, a process of its own: judges from what reaches it
sender      a shard's thin client of the referee
http_referee  the referee behind a socket, as a gateway that speaks the generic HTTP contract
http_sender  a shard's way to it: the sender of production, in virtual time
contract    that contract from the gateway's side: connections, requests, answers
speed       virtual time beside the wall clock
receipts    what the referee saw, as columns
evidence    what else a run is judged by: ledger and the seed's tables, read in one snapshot
checker     the invariants, from receipts, ledger and the seed's tables only
timelines   slots of many devices under pacing and rolling windows, on arrays
waits       what messages of devices waited for: pacing, a quota, room in flight
ideal       the schedule nobody can beat, for the optimality gap
axis        virtual time in buckets
model       the whole schedule on arrays: every message of every enrolment, with no latency
outcome     the figures a run ends with: JSON and terminal
frame       when and on what a run took place
publish     what a run leaves in files: report and run data
report      the report: one HTML file
run_data    the run as Parquet tables
compare     ``dripline compare``: two runs side by side
watcher     progress on the screen
circumstances  when, with which versions and on how many cores figures were made
memory      the peak of all processes
examples    the built-in sequences
timetable   what the world does on the way, at tick borders: leads come, devices go, people decide
scenario    scenario files, and what is set over them, as the plan of a rehearsal
forecast    ``dripline forecast``: finish, limits and devices needed, on arrays
gateway     a real HTTP gateway process for tests
gateway_events  what it tells a webhook afterwards
gateway_receipts  its log as receipts, so that one checker judges both worlds
chaos       the live engine on the real stack through a storm of faults
prove       ``dripline prove``: the same services event by event in virtual time, thousands of seeds
memory_store  PostgreSQL's twin in memory, which prove and test run on
sequence_test  ``dripline test``: what is expected of sequences, in files, played on the same services
"""
