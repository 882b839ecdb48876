import json
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_core import Signal, TrainerState
from trainer_core.state import Request

OF_THE_SETTINGS = {"max_steps", "num_train_epochs", "train_batch_size", "logging_steps", "eval_steps", "save_steps"}
OF_THE_PROCESS = {
    "is_local_process_zero",
    "is_world_process_zero",
    "is_hyper_param_search",
    "trial_name",
    "trial_params",
}

states = st.builds(
    TrainerState,
    epoch=st.floats(0, 100),
    global_step=st.integers(0, 10**6),
    epochs_done=st.integers(0, 100),
    batches_done=st.integers(0, 1000),
    epoch_is_open=st.booleans(),
    num_samples_seen=st.integers(0, 10**9),
    num_input_tokens_seen=st.integers(0, 10**12),
    best_metric=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    best_global_step=st.none() | st.integers(0, 10**6),
    best_model_checkpoint=st.none() | st.from_regex(r"checkpoint-[0-9]+", fullmatch=True),
    stopped_by=st.none() | st.fixed_dictionaries({"by": st.text(), "why": st.text()}),
    last_eval_step=st.integers(-1, 10**6),
    last_save_step=st.integers(-1, 10**6),
)


@given(states)
def test_counters_go_through_json_and_back(state):
    restored = TrainerState()
    restored.restore(json.loads(json.dumps(state.counters(), allow_nan=False)))
    assert restored == state


def test_counters_are_every_field_but_the_history_and_the_process():
    names = {entry.name for entry in fields(TrainerState)}
    assert TrainerState().counters().keys() == names - {"log_history"} - OF_THE_PROCESS


def test_the_settings_of_the_new_run_win_over_those_of_the_checkpoint():
    state = TrainerState(max_steps=10, eval_steps=2, logging_steps=3)
    state.restore(TrainerState(max_steps=99, eval_steps=99, logging_steps=99, global_step=5).counters())
    assert (state.max_steps, state.eval_steps, state.logging_steps, state.global_step) == (10, 2, 3, 5)


@pytest.mark.parametrize("name", sorted(OF_THE_SETTINGS | OF_THE_PROCESS | {"log_history", "of_a_later_version"}))
def test_what_is_not_a_counter_is_not_restored(name):
    state = TrainerState()
    state.restore({name: 7})
    assert state == TrainerState()


def test_the_log_history_is_neither_copied_nor_lost_when_the_counters_are_taken():
    history = [{"loss": 1.0, "step": 1}]
    state = TrainerState(log_history=history)
    assert "log_history" not in state.counters()
    assert state.log_history is history
    assert history == [{"loss": 1.0, "step": 1}]


def test_counters_share_nothing_with_the_state():
    state = TrainerState(stopped_by={"by": "a", "why": "b"})
    state.counters()["stopped_by"]["by"] = "changed"
    assert state.stopped_by == {"by": "a", "why": "b"}


def test_a_request_is_frozen_and_final_unless_it_interrupts():
    request = Request(Signal.STOP, by="early_stopping", why="no improvement")
    assert request.interrupt is False
    with pytest.raises(AttributeError):
        request.by = "somebody else"
