"""Handing messages over to gateways, over HTTP.

contract        the generic HTTP contract: requests, and what an answer, or its absence, proves (pure)
whatsapp        the same of the official WhatsApp Cloud API (pure)
whatsapp_codes  what its error codes mean, as a table
hosts           which machines requests may go to
http            ``HttpSender``: one request a message, outcomes as they become known
"""
