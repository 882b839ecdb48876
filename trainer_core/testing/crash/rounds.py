"""A round: a run that is killed, as plans say, and started again until it ends; and what must then hold."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from errno import EROFS, errorcode
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, Final

from trainer_core.testing.crash import findings
from trainer_core.testing.crash.calls import FLUSHES, RENAMES, Call
from trainer_core.testing.crash.disk_model import Disk, Survival
from trainer_core.testing.crash.server import Ended, Job, Server
from trainer_core.testing.crash.supervisor import Account, Plan

_LOST: Final = "load_best_model_at_end: the model keeps the weights of the last step"
_OUR_ERROR: Final = r"trainer_core\.errors\.\w+: "


@dataclass
class Figures:
    """What was done.

    Attributes:
        points: places that were tried.
        rounds: those of them that needed a run; a power cut that leaves what another left needs none.
        kills: processes that were killed.
        faults: processes of which a call failed.
        starts: processes.
        failures: rounds that found something wrong.
    """

    points: int = 0
    rounds: int = 0
    kills: int = 0
    faults: int = 0
    starts: int = 0
    failures: int = 0


class Rounds:
    """Makes rounds of one run.

    Args:
        server: of the children.
        name: of the run.
        place: folders are made in it.
        figures: are counted up.
        target: that runs it, as in `Job`.
        options: of that function, by name.
    """

    def __init__(
        self,
        server: Server,
        name: str,
        place: Path,
        figures: Figures,
        *,
        target: str,
        options: Mapping[str, Any] = {},
    ) -> None:
        self.server = server
        self.name = name
        self.place = place
        self.figures = figures
        self.job = Job(target, place, dict(options))
        self._numbers = count()
        self._cut: set[tuple[str, tuple[str, ...]]] = set()

    @cached_property
    def whole(self) -> tuple[Ended, dict[str, Any]]:
        """The run that nobody kills, with the bytes of its calls, and what is in its folder."""
        ended = self.start(self.kept, Plan(records=True))
        if ended.result is None:
            raise RuntimeError(f"{self.name}: the run that nobody kills fails.\n{ended.error or 'It hangs.'}")
        return ended, findings.content(self.kept)

    @cached_property
    def kept(self) -> Path:
        """The folder of that run."""
        return self.fresh()

    @cached_property
    def seconds(self) -> float:
        """How long that run takes."""
        started = time.monotonic()
        self.start(self.fresh(), Plan())
        return time.monotonic() - started

    @property
    def account(self) -> Account:
        """What the run that nobody kills asks the disk for."""
        return self.whole[0].account

    @cached_property
    def disk(self) -> Disk:
        """The model of the disk on which that run writes."""
        return Disk(self.account.calls)

    @cached_property
    def num_calls(self) -> int:
        """How many calls that run makes."""
        return len(self.numbered())

    def fresh(self) -> Path:
        """Gives a folder that is not there yet."""
        return self.place / f"{self.name.replace(' ', '-')}-{next(self._numbers)}"

    def start(self, folder: Path, plan: Plan) -> Ended:
        """Starts the run in `folder`, which resumes what is there."""
        self.figures.starts += 1
        ended = self.server.run(replace(self.job, folder=folder, plan=plan))
        self.figures.kills += ended.account.ending == "killed"
        self.figures.faults += ended.account.acted is not None and ended.account.ending != "killed"
        return ended

    def killed(self, *plans: Plan) -> list[str]:
        """Kills a run as `plans` say, one start each, then lets it end; gives what is wrong."""
        folder, announced = self.fresh(), 0
        told: list[str] = []
        self.figures.points += 1
        self.figures.rounds += 1
        for plan in [*plans, Plan()]:
            ended = self.start(folder, plan)
            told.append(_in_words(ended))
            problems = list(self._of_a_start(ended, announced, is_last=plan == Plan()))
            announced = max([announced, *_announced(ended.account)])
            if problems or ended.account.ending == "ended":
                break
        problems = problems or list(self.of_the_end(ended, folder))
        shutil.rmtree(folder, ignore_errors=bool(problems))
        return self._failed(", then ".join(told), problems)

    def _failed(self, what: str, problems: list[str]) -> list[str]:
        self.figures.failures += bool(problems)
        return [f"{self.name}: {what}: {problem}" for problem in problems]

    def _of_a_start(self, ended: Ended, announced: int, *, is_last: bool) -> Iterator[str]:
        if ended.error:
            yield f"a person is needed: {ended.error.strip().splitlines()[-1]}"
        elif ended.account.ending == "hung" or (is_last and ended.account.ending != "ended"):
            yield "it hangs"
        elif ended.result is not None:
            resumed_from = ended.result["did"]["resumed_from"]
            if (0 if resumed_from is None else findings.step_of(resumed_from)) < announced:
                yield f"checkpoint-{announced} was announced, and it began at {resumed_from}"

    def of_the_end(self, ended: Ended, folder: Path, *, told: str = "") -> Iterator[str]:
        """Gives what differs from the run that nobody killed.

        Args:
            ended: the last start.
            folder: of the run.
            told: of a disk that failed: rows that could not be written, a checkpoint that could not be deleted, a best
                model that could not be saved when it was there.
        """
        (whole, expected), content = self.whole, findings.content(folder)
        wanted, end = whole.result["end"], ended.result["end"]
        if _LOST in told:
            yield from findings.differences(_without_best(wanted), _without_best(end), "the run")
            return
        yield from findings.differences(wanted, end, "the run")
        if "Rows are no longer written" in told:
            content["rows"] = expected["rows"]
        for name in re.findall(r"\.del-(checkpoint-\d+)-\d+: could not be deleted", told):
            if name not in expected["checkpoints"]:
                content["checkpoints"].pop(name, None)
        yield from findings.differences(expected, content, "the folder")

    def power_cut(self, at: int, survival: Survival) -> list[str]:
        """Cuts the power just before call `at` of the run that nobody kills; gives what is wrong with what is left."""
        tree, announced = self.disk.after(at, survival), self.announced_before(at)
        self.figures.points += 1
        if (tree.digest, announced) in self._cut:
            return []
        self._cut.add((tree.digest, announced))
        self.figures.rounds += 1
        folder = self.fresh()
        tree.make(folder)
        problems = [*_broken(folder, announced)]
        ended = self.start(folder, Plan())
        problems += self._of_a_start(ended, max(map(findings.step_of, announced), default=0), is_last=True)
        problems += [] if ended.result is None else self.of_the_end(ended, folder)
        shutil.rmtree(folder, ignore_errors=True)
        return self._failed(f"power cut before call {at}, {self.account.calls[at - 1]}", problems)

    def announced_before(self, at: int) -> tuple[str, ...]:
        """Gives the checkpoints that were announced before call `at` and not yet given up by then."""
        return _alive(self.account.calls[:at])

    def disturbed(self, plan: Plan) -> list[str]:
        """Lets a call of the run fail, then starts it again if that ended it; gives what is wrong."""
        folder = self.fresh()
        self.figures.points += 1
        self.figures.rounds += 1
        ended = self.start(folder, plan)
        account, announced = ended.account, _alive(ended.account.calls)
        problems = [*_of_a_fault(ended, plan, folder), *_broken(folder, announced)]
        is_flush = account.acted is not None and account.acted.name in FLUSHES
        if _is_silent(ended, plan) and (is_flush or any(self.of_the_end(ended, folder))):
            problems.append("nothing is said")
        again = self.start(folder, Plan())
        problems += self._of_a_start(again, max(map(findings.step_of, announced), default=0), is_last=True)
        if again.result is not None:
            problems += self.of_the_end(again, folder, told=ended.said)
        shutil.rmtree(folder, ignore_errors=True)
        return self._failed(f"{plan.action} with {errorcode.get(plan.errno)} at {plan.at}, {account.acted}", problems)

    def resumed_when_finished(self) -> list[str]:
        """Resumes the finished run that nobody killed; gives what it did."""
        folder, before = self.fresh(), self.whole[1]
        shutil.copytree(self.kept, folder)
        self.figures.points += 1
        self.figures.rounds += 1
        ended = self.start(folder, Plan())
        problems = list(self._of_a_start(ended, 0, is_last=True))
        if ended.result is not None:
            did = ended.result["did"]
            problems += [f"trains {did['updates']}"] if did["updates"] else []
            problems += [f"saves {did['saves']}"] if did["saves"] else []
            problems += findings.differences(before, findings.content(folder), "the folder")
            problems += findings.differences(self.whole[0].result["end"], ended.result["end"], "the run")
        return self._failed("resumed when it was finished", problems)

    def points(self) -> list[Plan]:
        """Gives a plan for each place at which a run can be killed: before each call, and in the middle of writes."""
        plans = [Plan("kill", at) for at, _ in self.numbered()]
        return plans + [Plan("kill in the middle", at) for at, call in self.numbered() if call.can_split]

    def numbered(self) -> list[tuple[int, Call]]:
        """Gives the calls of the run that nobody kills, each with the number by which a plan names it."""
        return list(enumerate(call for call in self.account.calls if call.name != "announce"))


def _broken(folder: Path, names: Sequence[str]) -> Iterator[str]:
    for name in names:
        yield from (f"{name} was announced and is not whole: {flaw}" for flaw in findings.flaws(folder / name))


def _without_best(end: Mapping[str, Any]) -> dict[str, Any]:
    """Gives what a run came to but the model that it keeps, which the state of the optimizer stands for."""
    counters = {name: value for name, value in end["counters"].items() if name != "best_model_checkpoint"}
    return {**end, "counters": counters, "model": None, "best": None}


def _alive(calls: Sequence[Call]) -> tuple[str, ...]:
    """Gives the checkpoints that `calls` announce and do not take away again."""
    alive: list[str] = []
    for call in calls:
        if call.name == "announce" and call.data is not None:
            alive += call.data.decode().split()
        elif call.name in RENAMES and call.paths[0] in alive:
            alive.remove(call.paths[0])
    return tuple(alive)


def _is_silent(ended: Ended, plan: Plan) -> bool:
    """Tells whether a run ended well and without a word after a call failed."""
    is_told = re.search("^(WARNING|ERROR) ", ended.said, re.MULTILINE) is not None
    return plan.action == "fail" and ended.result is not None and not is_told


def _of_a_fault(ended: Ended, plan: Plan, folder: Path) -> Iterator[str]:
    """Gives what is wrong with the way a run took a call that failed."""
    if ended.account.ending != "ended":
        yield "it hangs" if ended.account.ending == "hung" else "it kills itself"
        return
    if ended.account.acted is None:
        yield "no such call was made"
    last = ended.error.strip().splitlines()[-1:]
    if ended.error and not any(re.match(_OUR_ERROR, line) for line in ended.error.splitlines()):
        yield f"it ends with an error that is not ours: {last[0]}"
    if ended.error and plan.action == "shorten":
        yield f"a write that took less ends it: {last[0]}"
    stays = plan.lasts and plan.errno == EROFS
    if left := [name for name in findings.leftovers(folder) if name.startswith(".tmp-") and not stays]:
        yield f"{left} is left"


def _announced(account: Account) -> Sequence[int]:
    told = [call.data.decode() for call in account.calls if call.name == "announce" and call.data is not None]
    return [findings.step_of(name) for text in told for name in text.split()]


def _in_words(ended: Ended) -> str:
    account = ended.account
    if account.ending == "killed":
        return f"killed at call {sum(call.name != 'announce' for call in account.calls) - 1}, {account.acted}"
    return account.ending
