"""What gateways tell, in any order and any number of times."""

from __future__ import annotations

from functools import reduce

from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.receipts import Heard, Receipt

MOMENTS = st.none() | st.integers(0, 5)
FAILURES = st.just((None, None)) | st.tuples(st.integers(0, 2), st.none() | st.sampled_from(["a", "b"]))
RECEIPTS = st.builds(
    lambda moments, failure, id_: Receipt(*moments[:3], failure[0], moments[3], failure[1], id_),
    st.tuples(MOMENTS, MOMENTS, MOMENTS, MOMENTS),
    FAILURES,
    st.none() | st.sampled_from(["x", "y"]),
)


@given(st.lists(RECEIPTS, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_whatever_order_and_however_often_receipts_come_the_same_is_known(told, random):
    again = told + random.choices(told, k=2)
    random.shuffle(again)
    assert reduce(Receipt.merged, again, Receipt()) == reduce(Receipt.merged, told)


def test_the_earliest_moment_counts_and_of_not_sent_the_latest():
    early = Receipt(accepted_us=1, delivered_us=5, failed_us=3, error="early", not_sent_us=2)
    late = Receipt(accepted_us=4, read_us=9, failed_us=7, error="late", not_sent_us=6, message_id="m")
    assert late.merged(early) == Receipt(1, 5, 9, 3, 6, "early", "m")


def test_what_one_request_tells_of_a_message_is_one_row():
    heard = Heard(skipped=3)
    heard.add_receipt("m", Receipt(delivered_us=2))
    heard.add_receipt("m", Receipt(delivered_us=1))
    heard.add_opt_out("60123456789", 5)
    heard.add_opt_out("60123456789", 4)
    assert (heard.receipts, heard.opt_outs, heard.events) == ({"m": Receipt(delivered_us=1)}, {"60123456789": 5}, 2)
