"""What only a fresh process can tell: the price of imports, of the first forward, and of memory.

`python -m benchmarks.probes <name> <argument>…` prints one JSON object. Nothing is imported here that would hide the
price of what is probed.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

Result = dict[str, Any]


def imports(contender: str) -> Result:
    """Gives CPU seconds of `import torch`, of the contender's import after it, and from there to the first forward."""
    library, run = FIRST_FORWARDS[contender]
    started = process_time()
    import torch

    torch_seconds = process_time() - started
    torch.set_num_threads(1)
    from benchmarks.workloads import Clock, Recipe

    recipe = Recipe(updates=2, warm_updates=0)
    model, _ = recipe.model(), recipe.dataset()
    model.clock = Clock(first=0)
    before = set(sys.modules)
    started = process_time()
    __import__(library)
    imported = process_time()
    num_imported = len(set(sys.modules) - before)
    run(model, recipe)
    return {
        "torch_seconds": torch_seconds,
        "import_seconds": imported - started,
        "forward_seconds": model.clock.begin - imported,
        "modules_imported": num_imported,
        "modules_at_the_end": len(set(sys.modules) - before),
        "has_dynamo": "torch._dynamo" in sys.modules,
        "peak_mb": _peak_mb(),
    }


def _bare(model: Any, recipe: Any) -> None:
    for x, labels in zip(*(tensor.split(32) for tensor in recipe.dataset().tensors), strict=True):
        model(x, labels)["loss"].backward()


def _ours(model: Any, recipe: Any, block_plugins: Sequence[str] = ("logging", "console", "checkpointing")) -> None:
    """As a user's script: our names are looked up here for the first time, so that their import counts."""
    from tempfile import TemporaryDirectory

    from trainer_core import Trainer, TrainingArguments

    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=recipe.updates,
            per_device_train_batch_size=recipe.batch_size,
            use_cpu=True,
            block_plugins=list(block_plugins),
        )
        Trainer(model, arguments, train_dataset=recipe.dataset()).train()


def _accelerate(model: Any, recipe: Any) -> None:
    from accelerate import Accelerator
    from torch.optim import AdamW
    from torch.utils.data import DataLoader

    loader: Any = DataLoader(recipe.dataset(), batch_size=recipe.batch_size)
    prepared, _, loader = Accelerator(cpu=True).prepare(model, AdamW(model.parameters()), loader)
    for x, labels in loader:
        prepared(x, labels)


def _transformers(model: Any, recipe: Any) -> None:
    from benchmarks.peers import with_transformers  # imports our own package too, a tenth of what is measured here

    with_transformers(model, recipe)


FIRST_FORWARDS: dict[str, tuple[str, Callable[[Any, Any], None]]] = {
    "plain loop": ("torch", _bare),
    "trainer_core": ("trainer_core", _ours),
    "trainer_core, all plugins": ("trainer_core", partial(_ours, block_plugins=())),
    "accelerate": ("accelerate", _accelerate),
    "transformers": ("transformers", _transformers),
}
"""Each contender, what it imports, and how it comes to a first forward."""


def evaluation_memory(kind: str, classes: str, num_samples: str) -> Result:
    """Gives by how much the memory in use rises at its peak while `num_samples` are evaluated, over logits' size."""
    import torch

    torch.set_num_threads(1)
    from benchmarks import evaluation
    from benchmarks.workloads import TinyNetwork, samples

    evaluate = {"plain": evaluation.plain, "kept": evaluation.keeping, "streamed": evaluation.streaming}[kind]
    model = TinyNetwork(int(classes))
    samples(int(num_samples), classes=int(classes))
    evaluate(model, int(classes), 320)
    if not _forget_peak():
        return {"over_logits": None, "rise_mb": None}
    before = _status_kb("VmRSS")
    evaluate(model, int(classes), int(num_samples))
    rise = _status_kb("VmHWM") - before
    logits_kb = int(classes) * int(num_samples) * 4 / 1024
    return {"over_logits": rise / logits_kb, "rise_mb": rise / 1024}


def _forget_peak() -> bool:
    """Resets the peak that Linux keeps; tells whether it could."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _status_kb(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name)))


def _peak_mb() -> float:
    """Gives the peak of this process; `ru_maxrss` begins with that of the process that started it."""
    if Path("/proc/self/status").exists():
        return _status_kb("VmHWM") / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Memory:
    """The peak of this process's memory over what it had when the peak was forgotten, where Linux keeps it."""

    def __init__(self) -> None:
        self.before = 0

    def forget_peak(self) -> None:
        """Begins anew."""
        self.before = _status_kb("VmRSS") if _forget_peak() else 0

    def rise_mb(self) -> float:
        """Gives the rise in MB; 0 where it is not known."""
        return (_status_kb("VmHWM") - self.before) * 1024 / 1e6 if self.before else 0.0


def saves(million_parameters: str, rounds: str) -> Result:
    """Gives what saves cost."""
    from benchmarks.saves import measure

    return measure(int(million_parameters), int(rounds), Memory())


PROBES: dict[str, Callable[..., Result]] = {
    "imports": imports,
    "evaluation_memory": evaluation_memory,
    "saves": saves,
}

if __name__ == "__main__":
    print(json.dumps(PROBES[sys.argv[1]](*sys.argv[2:])))
