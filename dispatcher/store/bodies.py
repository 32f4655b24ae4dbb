"""What messages say, packed: one column a hand-over instead of one row a message."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence

import numpy as np

from dispatcher.core.batches import Coded, Int64s

_LEVEL = 1


def packed(enrolment: Int64s, texts: Sequence[str | None], media_urls: Sequence[str | None]) -> bytes:
    """Text and media URL of each enrolment; those without a text are left out.

    A line of JSON with what is said, then enrolments and codes, 8 bytes each: all first bytes, all second bytes and so
    on, which zlib packs faster and better than numbers as they stand.
    """
    text, media_url = Coded.of(texts), Coded.of(media_urls)
    rows = np.flatnonzero(text.where(lambda said: said is not None))
    head = {"texts": list(text.values), "media_urls": list(media_url.values)}
    columns = np.array([enrolment[rows], text.code[rows], media_url.code[rows]], "<i8")
    planes = columns.view(np.uint8).reshape(3, len(rows), 8).transpose(0, 2, 1)
    line = json.dumps(head, ensure_ascii=False, separators=(",", ":")).encode()
    return zlib.compress(line + b"\n" + planes.tobytes(), _LEVEL)


def unpacked(bodies: bytes) -> list[tuple[int, str, str | None]]:
    """Enrolment, text and media URL of everything in ``packed`` bodies, also of those packed as one JSON list."""
    line, _, planes = zlib.decompress(bodies).partition(b"\n")
    head = json.loads(line)
    if isinstance(head, list):
        return [(id_, text, media_url) for id_, text, media_url in head]
    columns = np.frombuffer(planes, np.uint8).reshape(3, 8, -1).transpose(0, 2, 1).copy().view("<i8")[..., 0]
    said = zip(*columns.tolist(), strict=True)
    return [(id_, head["texts"][text], head["media_urls"][media_url]) for id_, text, media_url in said]
