"""``bench.profile``: a flame graph that is an image, and PostgreSQL's functions by what they are for."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from bench import profile
from bench.bench import Bench
from bench.flame import tidied

SVG = "{http://www.w3.org/2000/svg}"
WRITTEN = """<?xml version="1.0" standalone="no"?><svg version="1.1" width="1200" height="200" onload="init(evt)"
 viewBox="0 0 1200 200" xmlns="http://www.w3.org/2000/svg" xmlns:fg="http://github.com/jonhoo/inferno">
<defs><linearGradient id="background"/></defs><style>text { fill: red }</style><script>alert()</script>
<rect fill="url(#background)"/><text id="title">py-spy record --pid 7</text><svg id="frames" x="10" width="1180">
<g><title>all (1,000 samples, 100%)</title><rect x="0%" width="100%" fill="red" fg:x="0"/><text x="0%">..l</text></g>
<g><title>Shard.hand_over (dispatcher/shard.py:188) (500 samples, 50.00%)</title><rect fill="red"/><text/></g>
<g><title>_Ending._advance (dispatcher/store/ends.py:9) (20 samples, 6.00%)</title><rect fill="red"/><text/></g>
<g><title>Connection.execute (asyncpg/connection.py:1) (10 samples, 1.00%)</title><rect fill="red"/><text/></g>
<g><title>sliver (numpy/core.py:1) (2 samples, 0.20%)</title><rect fill="red"/><text/></g>
</svg></svg>"""
STACKS = """postgres
\t          5cb284 hash_search_with_hash_value
\t          2cc468 _bt_search
\t          2cb484 btinsert
\t          2d3150 ExecInsertIndexTuples
\t          2d3150 heap_update

postgres
\t          5cb284 XLogInsertRecord
\t          2cc468 XLogInsert
\t          2cb484 btinsert

postgres
\tffffffff93848484 copy_folio_from_iter_atomic
\t          2cc468 XLogWrite

postgres
\t          5cb284 pfree
\t          2cc468 [unknown]
"""


def test_a_flame_graph_becomes_an_image():
    root = ElementTree.fromstring(tidied(WRITTEN))
    assert "script" not in "".join(each.tag for each in root.iter())
    assert "onload" not in root.attrib
    frames = next(child for child in root if child.get("id") == "frames")
    seen = [(frame[0].text, frame[1].get("fill"), frame[2].text) for frame in frames]
    assert seen == [
        ("all", "#b9b9b9", "all"),
        ("Shard.hand_over (dispatcher/shard.py) 50.0 %", "#e58a4e", "Shard.hand_over"),
        ("_Ending._advance (dispatcher/store/ends.py) 6.0 %", "#e3b23c", "_advance"),
        ("Connection.execute (asyncpg/connection.py) 1.0 %", "#7fb56b", None),
    ]
    legend = [child.text for child in root if child.tag == f"{SVG}text"]
    assert legend == ["store", "services and core", "the benchmark", "asyncpg", "numpy", "others"]
    assert tidied(WRITTEN) == tidied(WRITTEN)


def test_stacks_are_grouped_by_what_postgresql_was_at():
    assert profile.by_group(STACKS) == dict.fromkeys(
        ("WAL", "index entries", "executor, types, memory", "kernel"), 25.0
    )


@pytest.mark.slow
async def test_the_profile_part_leaves_out_what_cannot_be_had(tmp_path):
    part = await profile.measure(Bench(1, 0.01, tmp_path, lambda _: None))
    assert [measure.name for measure in part.measures[:2]] == ["Python, everything", "PostgreSQL, everything"]
    shares = [measure.median for measure in part.measures if measure.unit == "%"]
    assert set(part.skipped) <= {profile.PYTHON, profile.POSTGRESQL}
    assert sum(shares) == pytest.approx(0 if profile.POSTGRESQL in part.skipped else 100, abs=3)
    assert bool(part.files) == bool(part.remarks) == (profile.PYTHON not in part.skipped)
    for graph in part.files.values():
        names = [title.text or "" for title in ElementTree.fromstring(graph).iter(f"{SVG}title")]
        assert any("(dispatcher/" in name for name in names)
        assert len(graph) < 150_000
