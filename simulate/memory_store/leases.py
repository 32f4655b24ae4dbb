"""Leased rows as the batch that a claim returns."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from dispatcher.core.batches import Leased
from simulate.memory_store.database import MemoryDatabase
from simulate.memory_store.rows import Enrolment, Lead


def leased_rows(
    database: MemoryDatabase, rows: list[Enrolment], token: int, epoch: int, *, lead_fields: bool
) -> Leased:
    """The batch of ``rows``, all leased under ``token``; at least one."""
    leads = [database.leads.get(row.lead) if lead_fields else None for row in rows]
    return Leased(
        token=token,
        epoch=epoch,
        enrolment=np.array([row.id for row in rows], np.int64),
        lead=np.array([row.lead for row in rows], np.int64),
        visit=np.array([row.visit for row in rows], np.int32),
        generation=np.array([row.generation for row in rows], np.int32),
        attempt=np.array([row.attempt for row in rows], np.int32),
        retries=np.array([row.retries for row in rows], np.int32),
        device=np.array([row.device.number if row.device is not None else 0 for row in rows], np.int32),
        slot_us=np.array([row.slot_us for row in rows], np.int64),
        due_us=np.array([row.due_us for row in rows], np.int64),
        phone=[row.phone for row in rows],
        name=[None if lead is None else lead.name for lead in leads],
        attributes=[_as_text(lead) for lead in leads],
        step=[row.step for row in rows],
        resend_text=[row.resend_text for row in rows],
        resend_media_url=[row.resend_media_url for row in rows],
    )


def _as_text(lead: Lead | None) -> str | None:
    """Attributes as jsonb is written; None for none."""
    return None if lead is None or not lead.attributes else json.dumps(_ordered(lead.attributes), ensure_ascii=False)


def _ordered(value: Any) -> Any:
    """Keys as jsonb keeps them: shorter ones first."""
    if isinstance(value, dict):
        return {key: _ordered(value[key]) for key in sorted(value, key=lambda key: (len(key.encode()), key.encode()))}
    return [_ordered(each) for each in value] if isinstance(value, list) else value
