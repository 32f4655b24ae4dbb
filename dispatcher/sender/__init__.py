"""Handing messages over: the generic HTTP gateway.

contract  what an answer, or its absence, proves (pure)
http      ``HttpSender``: one request a message, outcomes as they become known
"""
