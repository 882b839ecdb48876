from itertools import combinations, pairwise
from pathlib import Path

import pytest

from trainer_core import Phase, Signal, TransitionError
from trainer_core.phases import EXITS, LOWERED_ON_ENTRY, check_exit, exits_diagram, exits_table, next_phase

README = Path(__file__).parents[1] / "README.md"
RAISABLE = [signal for signal in Signal if signal is not Signal.READY]
RAISED = [set(chosen) for size in range(len(RAISABLE) + 1) for chosen in combinations(RAISABLE, size)]
SITUATIONS = [(phase, raised) for phase in Phase for raised in RAISED]


def test_every_phase_has_a_row_and_every_combination_is_enumerated():
    assert list(EXITS) == list(Phase)
    assert len(SITUATIONS) == 6 * 2**4


@pytest.mark.parametrize(("phase", "raised"), [one for one in SITUATIONS if one[0] is not Phase.STOP])
def test_every_combination_of_phase_and_signals_has_a_successor(phase, raised):
    target, signal = next_phase(phase, raised)
    assert target is EXITS[phase][signal]
    assert signal in raised | {Signal.READY}
    before = list(Signal)[: list(Signal).index(signal)]
    assert not [other for other in before if other in raised and other in EXITS[phase]]


@pytest.mark.parametrize("raised", RAISED)
def test_stop_is_final_whatever_is_raised(raised):
    with pytest.raises(TransitionError) as caught:
        next_phase(Phase.STOP, raised)
    assert str(caught.value) == "phase STOP: has no exit, it is the end of a run. Start a new run."


def test_every_row_lists_its_exits_in_the_order_of_the_signals():
    order = list(Signal)
    for exits in EXITS.values():
        assert all(order.index(one) < order.index(next_one) for one, next_one in pairwise(exits))


def test_evaluation_precedes_a_save_which_precedes_a_stop():
    assert list(Signal)[:3] == [Signal.EVAL, Signal.SAVE, Signal.STOP]


def test_a_phase_that_can_be_left_can_be_left_when_nothing_is_raised():
    assert all(Signal.READY in exits for exits in EXITS.values() if exits)


def test_without_step_and_epoch_the_graph_has_no_cycle():
    left = {phase: set(exits.values()) - {Phase.STEP, Phase.EPOCH} for phase, exits in EXITS.items()}
    del left[Phase.STEP], left[Phase.EPOCH]
    while ends := [phase for phase, targets in left.items() if not targets & left.keys()]:
        for phase in ends:
            del left[phase]
    assert left == {}


@pytest.mark.parametrize("raised", RAISED)
@pytest.mark.parametrize("start", [Phase.STEP, Phase.EPOCH])
def test_between_two_updates_there_is_one_evaluation_and_one_save_at_most(start, raised):
    phase, left, walk = start, set(raised), []
    while True:
        phase, _ = next_phase(phase, left)
        left.discard(LOWERED_ON_ENTRY.get(phase))
        walk.append(phase)
        if phase in (Phase.STEP, Phase.STOP):
            break
    assert walk.count(Phase.EVAL) == (Signal.EVAL in raised)
    assert walk.count(Phase.SAVE) == (Signal.SAVE in raised)
    assert walk[-1] is (Phase.STOP if Signal.STOP in raised else Phase.STEP)


def test_every_phase_is_reached_from_init_and_reaches_stop():
    def reached(start):
        found, waiting = set(), [start]
        while waiting:
            targets = set(EXITS[waiting.pop()].values()) - found
            found |= targets
            waiting += targets
        return found

    assert reached(Phase.INIT) == set(Phase) - {Phase.INIT}
    assert all(Phase.STOP in reached(phase) for phase in Phase if phase is not Phase.STOP)


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("target", Phase)
def test_an_exit_that_the_table_lacks_is_refused_and_changes_nothing(phase, target):
    rows = {one: dict(exits) for one, exits in EXITS.items()}
    if target in EXITS[phase].values():
        check_exit(phase, target)
    else:
        with pytest.raises(TransitionError, match=rf"^phase {phase.name}: cannot be followed by {target.name}\. "):
            check_exit(phase, target)
    assert rows == EXITS


def test_the_refusal_names_what_is_allowed():
    with pytest.raises(TransitionError) as caught:
        check_exit(Phase.SAVE, Phase.EVAL)
    assert str(caught.value) == "phase SAVE: cannot be followed by EVAL. The table allows EPOCH, STEP."
    with pytest.raises(TransitionError, match=r"The table allows none\.$"):
        check_exit(Phase.STOP, Phase.INIT)


def test_a_walk_that_the_table_refuses_leaves_the_run_in_its_phase(make_trainer, acting):
    def break_out(trainer):
        trainer.running.loop.phase = Phase.STOP
        with pytest.raises(TransitionError):
            next_phase(trainer.running.loop.phase, {Signal.EVAL})
        assert trainer.running.loop.phase is Phase.STOP

    make_trainer(given={"plugins": [acting("on_train_end", break_out)]}).train()


def test_the_diagram_has_every_exit_of_the_table():
    lines = [line.strip() for line in exits_diagram().splitlines()]
    assert lines[:2] == ["stateDiagram-v2", "[*] --> INIT"]
    assert lines[-1] == "STOP --> [*]"
    drawn = set()
    for line in lines[2:-1]:
        phase, _, rest = line.partition(" --> ")
        target, _, signals = rest.partition(": ")
        drawn |= {(phase, signal, target) for signal in signals.split(", ")}
    assert drawn == {(p.name, s.name, t.name) for p, exits in EXITS.items() for s, t in exits.items()}


def test_the_table_shows_every_exit_in_its_cell():
    head, rule, *rows = exits_table().splitlines()
    signals = [cell.strip() for cell in head.strip("|").split("|")][1:]
    assert signals == [signal.name for signal in Signal]
    assert rule == "|---" * (len(Signal) + 1) + "|"
    for row, (phase, exits) in zip(rows, EXITS.items(), strict=True):
        name, *cells = [cell.strip() for cell in row.strip("|").split("|")]
        found = {signal: cell for signal, cell in zip(signals, cells, strict=True) if cell not in ("", "*final*")}
        assert (name, found) == (phase.name, {signal.name: target.name for signal, target in exits.items()})


def test_the_table_in_the_readme_is_the_table():
    text = README.read_text(encoding="utf-8")
    assert text.partition("<!-- machine -->")[2].partition("<!-- /machine -->")[0].strip() == exits_table()
