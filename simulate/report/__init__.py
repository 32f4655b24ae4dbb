"""The report of a rehearsal: one HTML file that needs nothing else.

run        the run as the parts below look at it
pace       what left when beside the fleet's limits, and the backlog
lateness   percentiles of lateness, and how far behind the ideal schedule
limits     what limited the fleet when
funnel     how far enrolments came in each sequence
devices    use, lateness and health of each device
outcomes   what became of the attempts, by time
series     all of that as one JSON document for the charts
page       the document as HTML: template, styles, charts, and the vendored chart library
html       what pages share: inlining, the browser's policy, how values are said
"""
