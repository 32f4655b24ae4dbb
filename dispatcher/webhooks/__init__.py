"""Webhooks: where gateways tell what became of messages, and what leads wrote back.

listening     the socket
server        what serves on it, and what runs beside
app           the routes; nothing of a request is written, and nothing of it is logged, unless it is genuine and whole
bodies        a request's body and the JSON in it, within bounds
signatures    who may tell us anything
gateway       events of the generic gateway contract
whatsapp      webhooks of the WhatsApp Cloud API
refusals      why a request is refused
settler       applies receipts to attempts in doubt
"""
