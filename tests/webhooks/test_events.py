"""What gateways and Meta tell, and what is known of messages and leads then."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

from dispatcher.store.connect import connect

KEY = "4f6f0f0e-5b0c-5d0a-9a52-3d6a5e0f9f1b"
NINE = datetime(2026, 1, 5, 9, tzinfo=UTC)
RECEIPT = "SELECT message, accepted_at, delivered_at, read_at, failed_at, not_sent_at, error FROM message_receipts"


def at(minute: int) -> datetime:
    return NINE + timedelta(minutes=minute)


def clock(minute: int) -> str:
    return f"2026-01-05T09:{minute:02}:00Z"


async def test_delivered_read_and_failed_come_in_every_order_and_twice(hooks, event):
    found = set()
    for number, order in enumerate(itertools.permutations(("delivered", "read", "failed"))):
        events = {
            "delivered": event("delivered", at=clock(1), message_id=f"m-{number}"),
            "read": event("read", at=clock(5), message_id=f"m-{number}"),
            "failed": event("failed", at=clock(3), message_id=f"m-{number}", error="131026: undeliverable"),
        }
        for name in (*order, order[0]):
            assert (await hooks.tell(events[name])).json() == {"taken": 1, "skipped": 0}
    for row in await hooks.rows(f"{RECEIPT} ORDER BY message"):
        found.add(row[1:])
    assert found == {(None, at(1), at(5), at(3), None, "131026: undeliverable")}
    assert await hooks.rows("SELECT count(*) FROM message_receipts") == [(6,)]


async def test_one_request_tells_many_things_and_unknown_ones_are_skipped(hooks, event):
    answer = await hooks.tell(
        event("accepted", message_id="wire-7", idempotency_key=KEY.upper(), at=clock(0)),
        event("read", message_id="wire-7", idempotency_key=KEY, at=clock(4)),
        event("typing", from_="+60123456789"),
        event("reply", from_="+60123456789", text="Yes \0please", message_id="r-1", at=clock(2), color="blue"),
        event("reply", from_="60999", message_id="r-2", at="2999-01-05T09:02:00+08:00"),
    )
    assert answer.json() == {"taken": 3, "skipped": 1}
    assert await hooks.rows(f"{RECEIPT}") == [(KEY, at(0), at(4), at(4), None, None, None)]
    assert await hooks.rows("SELECT gateway_message_id FROM message_receipts") == [("wire-7",)]
    [known, stranger] = await hooks.rows(
        "SELECT phone, text, received_at, gateway_message_id, received_at <= now() FROM replies ORDER BY id"
    )
    assert known == ("60123456789", "Yes \ufffdplease", at(2), "r-1", True)
    assert (stranger[0], stranger[1], stranger[4]) == ("60999", "", True)


async def test_what_is_told_twice_counts_once(hooks, event):
    told = [event("reply", from_="60123456789", text="Yes"), event("delivered")]
    for _ in range(2):
        assert (await hooks.tell(*told)).status_code == 200
    assert await hooks.rows("SELECT count(*) FROM replies") == [(1,)]
    assert await hooks.rows("SELECT count(*) FROM message_receipts") == [(1,)]


async def test_an_opt_out_opts_the_lead_out_and_an_old_one_takes_no_opt_in_back(hooks, event, connection):
    stop = event("opted_out", from_="+60123456789", at=clock(1))
    assert (await hooks.tell(stop, event("opted_out", from_="60999"))).json() == {"taken": 2, "skipped": 0}
    assert await hooks.rows("SELECT opted_out_at FROM leads") == [(at(1),)]
    assert await hooks.rows("SELECT leads, opted_out FROM lead_changes") == [([1], True)]
    await connection.execute("UPDATE leads SET opted_out_at = NULL, opted_in_at = $1", at(2))
    await hooks.tell(stop)
    assert await hooks.rows("SELECT opted_out_at FROM leads") == [(None,)]
    await hooks.tell(event("opted_out", from_="60123456789", at=clock(3)))
    assert await hooks.rows("SELECT opted_out_at FROM leads") == [(at(3),)]


async def test_an_opt_out_waits_for_nobody(hooks, event, database_url):
    holder = await connect(database_url)
    async with holder.transaction():
        await holder.execute("SELECT FROM leads FOR UPDATE")
        assert (await hooks.tell(event("opted_out", from_="60123456789", at=clock(1)))).status_code == 200
    await holder.close()
    assert await hooks.rows("SELECT lead_id, at FROM opt_outs") == [(1, at(1))]


async def test_a_connection_that_was_lost_is_made_again(hooks, event, connection):
    for _ in range(2):
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'dripline webhooks'"
        )
        answers = [(await hooks.tell(event("delivered"))).status_code for _ in range(3)]
        assert answers[-1] == 200


async def test_a_person_is_told_how_much_has_come(serve, database_url, event):
    async with serve(database_url) as hooks:
        await hooks.tell(event("delivered"), event("read"), event("typing"))
        await hooks.client.post("/webhooks/gateway")
    assert hooks.said == ["webhooks: 2 events taken, 1 skipped, 1 requests refused with 415"]


# The WhatsApp Cloud API ---------------------------------------------------------------------------------------------


async def test_meta_registers_the_webhook(hooks):
    asked = {"hub.mode": "subscribe", "hub.verify_token": "verify-token-hush", "hub.challenge": "1158201444"}
    answer = await hooks.client.get("/webhooks/whatsapp", params=asked)
    assert (answer.status_code, answer.text) == (200, "1158201444")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


def status(kind: str, id_: str, seconds: int, **others: object) -> dict[str, object]:
    return {"id": id_, "status": kind, "timestamp": str(seconds), "recipient_id": "60123456789", **others}


async def test_metas_statuses(hooks):
    nine = int(NINE.timestamp())
    answer = await hooks.tell_as_meta({
        "metadata": {"display_phone_number": "15550783881", "phone_number_id": "106540352242922"},
        "statuses": [
            status("sent", "wamid.1", nine, conversation={"id": "c"}, pricing={"billable": True}),
            status("delivered", "wamid.1", nine + 60),
            status("read", "wamid.1", nine + 240),
            status("failed", "wamid.2", nine, errors=[{"code": 131026, "title": "Message undeliverable"}]),
            status("sent", "wamid.3", nine, biz_opaque_callback_data=KEY),
            status("failed", "wamid.4", nine, errors=[{"code": 131050, "title": "Stopped"}]),
            status("deleted", "wamid.5", nine),
            status("sent", "wamid.6", nine) | {"timestamp": "soon"},
            {"status": "sent"},
        ],
    })  # fmt: skip
    assert answer.json() == {"taken": 5, "skipped": 3}
    assert await hooks.rows(f"{RECEIPT} ORDER BY message") == [
        (KEY, at(0), None, None, None, None, None),
        ("wamid.1", at(0), at(1), at(4), None, None, None),
        ("wamid.2", None, None, None, at(0), None, "131026: Message undeliverable"),
        ("wamid.4", None, None, None, at(0), None, "131050: Stopped"),
    ]
    assert await hooks.rows("SELECT opted_out_at FROM leads") == [(at(0),)]


async def test_what_people_write_on_whatsapp(hooks):
    def message(kind: str, part: object, **others: object) -> dict[str, object]:
        told = {"from": "60123456789", "timestamp": str(int(NINE.timestamp())), "type": kind, kind: part}
        return told | {"id": f"wamid.{next(numbers)}"} | others

    numbers = itertools.count(1)
    answer = await hooks.tell_as_meta({
        "contacts": [{"profile": {"name": "Ann"}, "wa_id": "60123456789"}],
        "messages": [
            message("text", {"body": "Hello \ud83d\ude00"}),
            message("button", {"text": "Stop promotions", "payload": "stop"}, context={"id": "wamid.0"}),
            message("interactive", {"type": "button_reply", "button_reply": {"id": "1", "title": "Yes"}}),
            message("interactive", {"type": "list_reply", "list_reply": {"id": "1", "title": "Tuesday"}}),
            message("image", {"id": "1", "mime_type": "image/jpeg", "caption": "Look"}),
            message("audio", {"id": "1", "voice": True}),
            message("reaction", {"message_id": "wamid.0", "emoji": "x"}),
            message("system", {"body": "user changed number"}),
            message("text", None),
            message("text", {"body": "from nobody"}, **{"from": ["60123456789"]}),
        ],
    })  # fmt: skip
    assert answer.json() == {"taken": 6, "skipped": 4}
    assert await hooks.rows("SELECT text FROM replies ORDER BY gateway_message_id") == [
        ("Hello \U0001f600",), ("Stop promotions",), ("Yes",), ("Tuesday",), ("Look",), ("",)
    ]  # fmt: skip
    assert await hooks.rows("SELECT DISTINCT phone, received_at FROM replies") == [("60123456789", at(0))]


async def test_who_stops_marketing_on_whatsapp_has_opted_out_and_to_resume_is_no_opt_in(hooks):
    stop = {"wa_id": "60123456789", "category": "marketing_messages", "value": "stop", "timestamp": 1767603600}
    stopped = await hooks.tell_as_meta({"user_preferences": [stop]}, "user_preferences")
    resumed = await hooks.tell_as_meta({"user_preferences": [stop | {"value": "resume"}]}, "user_preferences")
    other = await hooks.tell_as_meta({"event": "APPROVED"}, "message_template_status_update")
    answers = [answer.json() for answer in (stopped, resumed, other)]
    assert answers == [{"taken": 1, "skipped": 0}, {"taken": 0, "skipped": 1}, {"taken": 0, "skipped": 1}]
    assert await hooks.rows("SELECT opted_out_at FROM leads") == [(at(0),)]
