"""When will it finish, what limits it, how many devices would do: the schedule on arrays, played without a database.

world     what a forecast starts from: steps, devices, who gets messages and when
planned   the world of a scenario
live      the world of a database as it stands
course    what becomes of every message, from one event to the next
openings  send windows open and shut
turns     events: devices lost, sequences paused, opt-outs, further triggers
tally     what is counted on the way
outlook   one forecast, and the devices that a deadline takes
shown     the figures for people and as JSON
command   ``dripline forecast``
"""
