"""Deterministic simulation: seeds hold, repeat themselves to the byte, and catch builds that are broken."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dispatcher.core.moments import SECOND_US, span_us
from dispatcher.core.outcomes import Outcome
from dispatcher.errors import InputError
from simulate.prove.campaign import Totals, catch, reduced, run
from simulate.prove.canaries import CANARIES, released
from simulate.prove.case import play
from simulate.prove.command import app
from simulate.prove.dice import Dice
from simulate.prove.faults import KINDS, Fault, plan
from simulate.prove.gateway import Gateways, Request
from simulate.prove.leads import Leads
from simulate.prove.regressions import Regression, append, read
from simulate.prove.screen import LEAST_USE
from simulate.prove.stage import Member, Stage
from simulate.prove.virtual_loop import Process, VirtualLoop
from simulate.prove.world import START_US, draw

REGRESSIONS = Path(__file__).with_name("regressions.txt")
QUICK = ("quota off by one", "epoch not read", "resend to a gateway without keys", "delay before the step")
"""Canaries of the quick tests."""
NEAR = {
    "restart forgets what was in flight": 64,
    "epoch not read": 310,
    "hand-over not recorded": 64,
    "a lost commit counts as done": 50,
    "refusal after unknown taken as failed": 191,
}
"""Canaries that few seeds catch, and one that does: the search begins there."""


def failures(totals: Totals) -> dict[int, list[str]]:
    """What was broken, by seed."""
    return {result.seed: result.findings for result in totals.failed}


def nothing(_: Totals) -> None:
    """Nobody watches."""


def test_a_dozen_seeds_hold():
    totals = Totals()
    run(range(1, 13), 1, totals, nothing)
    assert failures(totals) == {}
    assert totals.seeds == 12
    assert len(totals.injected) >= 30


@pytest.mark.slow
def test_many_seeds_hold_and_use_a_saturated_fleet():
    totals = Totals()
    run(range(1, 121), 2, totals, nothing)
    assert failures(totals) == {}
    assert sum(totals.injected.values()) >= 6_000
    assert set(totals.injected) == set(KINDS)
    assert totals.used >= LEAST_USE * totals.usable > 0


@pytest.mark.parametrize("regression", read(REGRESSIONS), ids=str)
def test_what_failed_once_holds(regression):
    assert play(regression.seed, regression.without).findings == []


@pytest.mark.parametrize("name", QUICK)
def test_broken_builds_are_caught(name):
    number = [canary.name for canary in CANARIES].index(name)
    assert catch(number, 200, NEAR.get(CANARIES[number].name, 1)).seed is not None


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(CANARIES)), ids=[canary.name for canary in CANARIES])
def test_every_broken_build_is_caught(number):
    assert catch(number, 200, NEAR.get(CANARIES[number].name, 1)).seed is not None


def test_what_leaves_after_its_trigger_was_taken_off_is_found():
    with released(CANARIES[[canary.name for canary in CANARIES].index("trigger removed not read again")]):
        failed = next(result for result in map(play, range(1, 200)) if result.violations)
    assert list(failed.violations) == ["after_opt_out"]
    assert all(each.startswith("rule 4, after_opt_out: after the trigger was taken off") for each in failed.findings)


def test_a_canary_leaves_the_build_whole():
    before = play(3).trace
    with released(CANARIES[0]):
        assert play(3).trace != before
    assert play(3).trace == before


TRACES = """from simulate.prove.case import play
for seed in (1, 2, 7, 25):
    for line in play(seed).trace:
        print(*line)"""


def trace(python: str, hash_seed: str) -> bytes:
    """The traces of some seeds, as another process prints them."""
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([python, "-c", TRACES], capture_output=True, env=environment, check=True)
    return done.stdout


def test_the_same_seed_does_the_same_to_the_byte_whatever_hashes_are():
    first = trace(sys.executable, "1")
    assert first.count(b"\n") > 5000
    assert trace(sys.executable, "2") == first


def other_pythons() -> list[str]:
    """Other versions of Python that have what the simulation needs."""
    named = os.environ.get("DRIPLINE_OTHER_PYTHONS", "").split(os.pathsep)
    found = [*named, *(shutil.which(f"python3.{minor}") or "" for minor in range(11, 15))]
    needs = (
        "import numpy, asyncpg, jinja2, pydantic_settings, rich, typer, phonenumbers, sys; print(sys.version_info[:2])"
    )
    mine = str(sys.version_info[:2])
    versions = {
        python: subprocess.run([python, "-c", needs], capture_output=True, text=True, check=False).stdout.strip()
        for python in found
        if python
    }
    return [python for python, version in versions.items() if version not in ("", mine)]


def test_the_same_seed_does_the_same_on_other_versions_of_python():
    others = other_pythons()
    if not others:
        pytest.skip("no other Python with the dependencies: name some in DRIPLINE_OTHER_PYTHONS")
    first = trace(sys.executable, "1")
    assert {python: trace(python, "3") == first for python in others} == dict.fromkeys(others, True)


def test_a_failing_seed_is_reduced_to_the_faults_it_takes(tmp_path):
    with released(CANARIES[[canary.name for canary in CANARIES].index("resend to a gateway without keys")]):
        failed = next(result for result in map(play, range(30, 200)) if "duplicate" in result.violations)
        without, best = reduced(failed)
        assert "duplicate" in best.violations
        assert 0 < len(best.faults) < len(failed.faults)
        assert "duplicate" in play(failed.seed, without).violations
    assert len(without) + len(best.faults) == len(plan(failed.seed, draw(failed.seed)))
    regression = Regression(failed.seed, without, "duplicate")
    append(tmp_path / "r.txt", regression)
    append(tmp_path / "r.txt", regression)
    assert read(tmp_path / "r.txt") == [regression]


def test_a_line_that_names_no_seed_is_named(tmp_path):
    (tmp_path / "r.txt").write_text("# why\n\nseed 4  # lost\nseeed 5\n")
    with pytest.raises(InputError, match=r"r\.txt:4: 'seeed 5' names no seed"):
        read(tmp_path / "r.txt")


def test_dice_depend_on_their_labels_only():
    dice = Dice(7, "world")
    assert dice.of("a").uniform() == Dice(7, "world").of("a").uniform() != dice.of("b").uniform()
    drawn = [dice.uniform() for _ in range(1000)]
    assert 0.45 < sum(drawn) / 1000 < 0.55
    assert {Dice(7).of(n).whole(1, 3) for n in range(50)} == {1, 2, 3}


def test_a_stopped_process_misses_nothing_and_a_dead_one_cleans_nothing_up():
    loop = VirtualLoop()
    done: list[tuple[str, float]] = []

    async def work(name: str) -> None:
        import asyncio

        try:
            await asyncio.sleep(1)
            done.append((name, loop.time()))
            await asyncio.sleep(10)
        finally:
            done.append((f"{name} ends", loop.time()))

    stopped, killed = Process(loop, "stopped"), Process(loop, "killed")
    stopped.start(work("stopped"))
    killed.start(work("killed"))
    loop.call_at(0.5, stopped.stop)
    loop.call_at(2.0, killed.kill)
    loop.call_at(5.0, stopped.go_on)
    loop.run_until(lambda: False, 100)
    assert done == [("killed", 1.0), ("stopped", 5.0), ("stopped ends", 15.0)]
    loop.close()


def nobody(_: Request) -> None:
    """Hears nothing."""


def test_a_trigger_counts_as_off_from_when_the_engine_has_seen_it_until_it_comes_back():
    stage = Stage(7, draw(7))
    leads, database = Leads(stage), stage.database
    lead = database.add_lead("9990000", "fit")

    def strike(kind: str) -> None:
        leads.acts[kind](Dice(1), Fault(0, kind, 0.0, 0.0, 1.0))

    def enrolled(taken: int) -> None:
        del database.queue[:taken]
        stage.done("enrol")

    stage.at(1, strike, "trigger removed")
    stage.at(2, enrolled, 1)  # the change that brought the lead in: the other one waits
    stage.at(3, enrolled, 1)
    stage.at(5, strike, "trigger comes back")
    stage.at(6, strike, "trigger removed")
    stage.at(7, strike, "trigger comes back")
    stage.at(8, enrolled, 3)
    stage.loop.run_until(lambda: False, 9)
    assert leads.untriggered == {(lead, "fit"): [(START_US + 3 * SECOND_US, START_US + 5 * SECOND_US)]}
    stage.loop.close()


def test_a_gateway_goes_by_its_own_word_on_keys_and_by_its_own_clock_on_deadlines():
    world = replace(draw(7), check_not_after=True)
    stage, told = Stage(7, world), list[Outcome]()
    gateways = Gateways(stage, nobody)
    gateways.honour_keys(1, True)

    def ask(late: bool = False) -> None:
        deadline_us = stage.true_us() + (0 if late else span_us(10))
        request = Request(1, stage.true_us(), deadline_us, 1, 1, "9990000", "Welcome", "fit", b"k" * 16, 0)
        reply = stage.loop.create_future()
        reply.add_done_callback(lambda done: told.append(done.result().outcome))
        gateways.receive(request, reply)

    stage.at(1, ask)
    stage.at(2, ask)
    stage.at(3, gateways.honour_keys, 1, False)
    stage.at(4, ask)
    stage.at(5, ask, True)
    stage.loop.run_until(lambda: False, 9)
    assert told == [Outcome.ACCEPTED, Outcome.REPEAT, Outcome.ACCEPTED, Outcome.EXPIRED]
    stage.loop.close()


def test_no_two_clocks_differ_by_more_than_the_skew_and_hardly_any_is_right():
    offs = []
    for seed in range(1, 60):
        world = draw(seed)
        stage = Stage(seed, world)
        machine = Member(stage, "shard 0.1")
        offs += [
            (us - stage.true_us()) / span_us(world.settings.skew_s)
            for us in (stage.database_us(), machine.machine_us())
        ]
        stage.loop.close()
    assert -0.45 <= min(offs) < -0.4 < 0.4 < max(offs) <= 0.45


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trace"], "--trace, --without: they are about one seed - say which with --seed"),
        (["--seed", "1", "--without", "x"], "--without: 'x' is no list of numbers - write them like 3,7,12"),
        (["--seed", "1", "--canaries"], "--canaries: it plays seeds of its own - leave --seed out"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, message):
    done = CliRunner().invoke(app, arguments)
    assert str(done.exception) == message


def test_the_command_reports_a_seed_and_a_campaign(tmp_path):
    one = CliRunner().invoke(app, ["--seed", "3", "--trace"])
    assert one.exit_code == 0
    assert "fault 0: " in one.output
    assert "faults are over" in one.output
    assert one.output.endswith("Every invariant held.\n")
    figures, regressions = tmp_path / "figures.json", tmp_path / "r.txt"
    many = CliRunner().invoke(
        app, ["--seeds", "4", "--jobs", "1", "--json", str(figures), "--regressions", str(regressions), "--quiet"]
    )
    assert many.exit_code == 0
    assert "4 seeds in" in many.output
    assert '"failed": []' in figures.read_text()
    assert not regressions.exists()
