"""Pure rules: no I/O, no clock, no randomness that is not an argument.

Business times are ``int`` (or numpy ``int64``) microseconds since the Unix epoch, named ``…_us``; spans of time are
seconds, named ``…_s``. Columns stand in numpy arrays or lists of equal length, one entry a contact.
"""
