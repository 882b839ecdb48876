from __future__ import annotations

from types import SimpleNamespace

import torch

from trainer_core import Signal
from trainer_core.agreement import Agreement
from trainer_core.phases import Phase
from trainer_core.state import Request

FIRST = Request(Signal.SAVE, "first", "it was there before")
LATE = Request(Signal.STOP, "SIGTERM", "it came meanwhile", interrupt=True)


def test_a_signal_that_comes_while_ranks_exchange_is_told_the_next_time():
    def gather(value):
        if FIRST in value[0]:
            agreement.requests.append(LATE)  # as the handler of a signal does
        return [value]

    told = []
    ranks = SimpleNamespace(max=lambda values: values, gather_objects=gather, device=torch.device("cpu"), world_size=2)
    loop = SimpleNamespace(
        ranks=ranks,
        bus=SimpleNamespace(members={}, failure=None),
        phase=Phase.EPOCH,
        state=SimpleNamespace(global_step=1),
        request=lambda signal, **more: told.append(signal),
    )
    agreement = Agreement(loop)
    agreement.requests.append(FIRST)
    agreement.reach()
    agreement.reach()
    assert told == [Signal.SAVE, Signal.STOP]
