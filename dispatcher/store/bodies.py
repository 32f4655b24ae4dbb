"""What messages say, packed: one column a hand-over instead of one row a message."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence

from dispatcher.core.batches import Int64s

_LEVEL = 1


def packed(enrolment: Int64s, texts: Sequence[str | None], media_urls: Sequence[str | None]) -> bytes:
    """Text and media URL of each enrolment; those without a text are left out."""
    columns = zip(enrolment.tolist(), texts, media_urls, strict=True)
    said = [(id_, text, media_url) for id_, text, media_url in columns if text is not None]
    return zlib.compress(json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode(), _LEVEL)


def unpacked(bodies: bytes) -> list[tuple[int, str, str | None]]:
    """Enrolment, text and media URL of everything in ``packed`` bodies."""
    return [(id_, text, media_url) for id_, text, media_url in json.loads(zlib.decompress(bodies))]
