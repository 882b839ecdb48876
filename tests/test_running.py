from __future__ import annotations

import multiprocessing
import signal
import time


def test_a_process_that_the_user_forks_in_a_run_can_be_ended(make_trainer, acting):
    ended = []

    def fork(trainer):
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        time.sleep(0.2)
        child.terminate()
        child.join(20)
        ended.append(child.exitcode)

    trainer = make_trainer(given={"plugins": [acting("on_step_end", fork, times=1)]})
    trainer.train()
    assert (ended, trainer.outcome) == ([-signal.SIGTERM], "completed")
