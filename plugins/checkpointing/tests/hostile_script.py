"""Hostile checkpoints, and a program that resumes from each in a process of its own and tells what that did.

    python hostile_script.py FOLDER     prints one line of JSON for each case and way to come to the checkpoint

A process is forked after everything that a resume needs has been imported; what it then imports, compiles, executes,
unpickles or writes outside its output folder is seen by an audit hook. Its memory is limited.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import re
import resource
import shutil
import signal
import socket
import struct
import sys
import time
import warnings
import zipfile
from pathlib import Path

import torch

HERE = Path(__file__).parent
MEMORY_BYTES = 1_000_000_000
"""What a resume may take on top of what the process has, as address space."""
SECONDS = 60
"""After these a case has hung."""
PICKLED = [
    "optimizer.bin",
    "optimizer.pt",
    "pytorch_model.bin",
    "random_states_0.pkl",
    "rng_state.pth",
    "rng_state_0.pth",
    "scaler.pt",
    "scheduler.bin",
    "scheduler.pt",
    "training_args.bin",
    "adapter_model.bin",
    "custom_checkpoint_0.pkl",
]
THEIRS = [*PICKLED, "trainer_state.json", "config.py", "modeling_evil.py", "pytorch_model.bin.index.json"]
OURS = [
    "log_history.jsonl",
    "model.safetensors",
    "rank-00000.json",
    "rank-00000.safetensors",
    "state.json",
    "state.safetensors",
]


class Bomb:
    """What runs a command when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def containers(target):
    """Gives the content of files that run a command when they are unpickled, by the way they are packed."""
    raw = pickle.dumps(Bomb(target))
    zipped, torches = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("archive/data.pkl", raw)
        archive.writestr("archive/version", "3\n")
    torch.save({"weight": Bomb(target)}, torches)
    return {
        "pickle": raw,
        "protocol 0": pickle.dumps(Bomb(target), 0),
        "zip": zipped.getvalue(),
        "torch": torches.getvalue(),
        "gzip": gzip.compress(raw),
    }


PACKINGS = ["pickle", "torch", "protocol 0", "zip", "gzip"]


def zip_bomb():
    """Gives a small archive that unpacks to a hundred megabytes."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(10):
            archive.writestr(f"archive/data/{number}", bytes(10_000_000))
    return packed.getvalue()


def tensors(header, data=b"", length=None):
    """Gives a file of tensors with this header, honest or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape=(1,), offsets=(0, 4), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


HEADERS = {
    "empty": b"",
    "seven bytes": b"\0" * 7,
    "no header": tensors(b"", length=0),
    "a header longer than the file": tensors({}, length=1_000),
    "a header of 2**63 bytes": tensors({}, length=2**63),
    "a header of 2**64-1 bytes": b"\xff" * 8,
    "a header of 90 million brackets": tensors(b"[" * 90_000_000),
    "a header of 30 million values": tensors(b'{"a":[' + b"0," * 30_000_000 + b"0]}"),
    "a header that is a list": tensors([]),
    "a header that is no text": tensors(b"\xff\xfe" * 8),
    "a name twice": tensors(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":1}', b"\0" * 4),
    "an entry that is a number": tensors({"a": 1}),
    "an entry without a shape": tensors({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, b"\0" * 4),
    "overlapping tensors": tensors({"a": entry(), "b": entry()}, b"\0" * 4),
    "nested tensors": tensors({"a": entry((2,), (0, 8)), "b": entry((1,), (4, 8))}, b"\0" * 8),
    "a gap": tensors({"a": entry(offsets=(4, 8))}, b"\0" * 8),
    "bytes of nobody": tensors({"a": entry()}, b"\0" * 8),
    "out of the file": tensors({"a": entry((2,), (0, 8))}, b"\0" * 4),
    "far out of the file": tensors({"a": entry((2**40,), (0, 2**42))}, b"\0" * 4),
    "negative offsets": tensors({"a": entry(offsets=(-4, 0))}),
    "reversed offsets": tensors({"a": entry(offsets=(4, 0))}, b"\0" * 4),
    "a negative shape": tensors({"a": entry((-1, -1))}, b"\0" * 4),
    "a shape of fractions": tensors({"a": entry((1.0,))}, b"\0" * 4),
    "a shape of truth values": tensors({"a": entry((True,))}, b"\0" * 4),
    "a shape that overflows to nothing": tensors({"a": entry((2**33, 2**33), (0, 0))}),
    "a huge shape of nothing": tensors({"a": entry((2**62, 2**62, 0), (0, 0))}),
    "a thousand dimensions": tensors({"a": entry((1,) * 1000)}, b"\0" * 4),
    "an unknown type": tensors({"a": entry(dtype="PICKLE")}, b"\0" * 4),
    "a type that is a list": tensors({"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4),
    "tensors of other names": tensors({"a": entry(), "os.system": entry(offsets=(4, 8))}, b"\0" * 8),
    "300 thousand tensors of nothing": tensors({str(number): entry((0,), (0, 0)) for number in range(300_000)}),
}

TEXTS = {
    "no JSON": b"os.system('true')",
    "empty": b"",
    "null": b"null",
    "a number": b"1",
    "no text": b"\xff\xfe\x00",
    "a hundred thousand deep": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "150 deep": b'{"counters":' + b"[" * 150 + b"]" * 150 + b"}",
    "ten million values": b"[" + b"0," * 10_000_000 + b"0]",
    "60 million empty lists": b"[" + b"[]," * 20_000_000 + b"[]]",
    "a number of a million digits": b'{"counters":' + b"9" * 1_000_000 + b"}",
    "70 million bytes": b'"' + b"a" * 70_000_000 + b'"',
    "NaN": b'{"counters":NaN}',
    "Infinity": b'{"counters":-Infinity}',
    "a number that is too large": b'{"counters":1e999}',
    "a key twice": b'{"counters":{},"counters":{}}',
    "a long name above many values": b'{"' + b"a" * 30_000_000 + b'":[' + b"{}," * 500_000 + b'"\\ud800"]}',
    "an object of ours that is unknown": b'{"__object__":"os.system"}',
    "a number of ours without an end": b'{"__number__":"0x' + b"f" * 30_000_000 + b'"}',
    "a tensor that is not there": b'{"__tensor__":"missing"}',
    "a tensor of no name": b'{"__tensor__":["a"]}',
    "a mapping with a list as key": b'{"__dict__":[[[1],2]]}',
    "a mapping with a key twice": b'{"__dict__":[[1,2],[1,3]]}',
}

MANIFEST_NAMES = {
    "above": "../state.json",
    "far above": "../" * 40 + "etc/passwd",
    "absolute": "/etc/passwd",
    "backslashes": "..\\state.json",
    "a drive": "C:\\state.json",
    "NUL": "state\0.json",
    "very long": "a" * 5000,
    "very many folders": "a/" * 500 + "a",
    "nothing": "",
    "a point": ".",
    "two points inside": "a/../../b",
    "two slashes": "a//b",
    "a control sequence": "\x1b[2J\x1b]0;evil\x07",
    "the manifest": "manifest.json",
    "half of a sign": "\ud800",
}


def reseal(folder, change=None):
    """Makes the manifest anew, as an attacker would: with the right checksums of the files that are there."""
    from trainer_core_checkpointing.manifest import FORMAT, MANIFEST, SCHEMA, _text, checksum

    body = json.loads((folder / MANIFEST).read_text())
    grows = {"log_history.jsonl"}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name != MANIFEST and path.is_file() and not path.is_symlink():
            size = path.stat().st_size
            if name in body["files"] and size == body["files"][name]["size"] and name in grows:
                continue
            sha256 = checksum(path, size) if size < 2**32 else "0" * 64  # that of a sparse file takes an hour
            body["files"][name] = {"size": size, "sha256": sha256, "grows": name in grows}
    for name in [*body["files"]]:
        if not os.path.lexists(folder / name):
            del body["files"][name]
    body = {"format": FORMAT, "schema": SCHEMA} | {name: value for name, value in body.items() if name != "sha256"}
    if change is not None:
        change(body)
    (folder / MANIFEST).write_bytes(_text(body))


def replaced(name, content):
    """Gives a case in which a file has this content and the manifest says so."""

    def make(folder, outside):
        target = folder / name
        target.unlink(missing_ok=True)  # the history is shared with other checkpoints
        target.write_bytes(content(outside) if callable(content) else content)
        reseal(folder)

    return make


def added(name, content):
    def make(folder, outside):
        (folder / name).write_bytes(content(outside))

    return make


def manifested(change):
    def make(folder, outside):
        reseal(folder, change)

    return make


def edited(name, *path, value):
    """Gives a case in which one value of a JSON file is another; deleted where `value` is `...`."""

    def make(folder, outside):
        tree = json.loads((folder / name).read_text())
        inner = tree
        for key in path[:-1]:
            inner = inner[key]
        if value is ...:
            del inner[path[-1]]
        else:
            inner[path[-1]] = value
        text = json.dumps(tree)
        (folder / name).write_text(text)
        reseal(folder)

    return make


def in_place(name, put):
    """Gives a case in which something else than a regular file bears the name."""

    def make(folder, outside):
        (outside / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, outside / name)
        (folder / name).unlink()
        put(folder / name, outside / name)

    return make


def a_socket(path, other):
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(path.name)
    os.chdir(here)


def a_sparse_file(path, other):
    header = json.dumps({"a": entry((2**40,), (0, 2**40), "U8")}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(path, 8 + len(header) + 2**40)
    reseal(path.parent)


COUNTERS = {
    "epoch": [-1.0, "1", True, {"__number__": "nan"}, {"__number__": "inf"}, None, [1.0]],
    "global_step": [-6, 12.0, "12", True, 7, 2**64, {"__number__": "0x1ffffffffffffffff"}, None],
    "epochs_done": [-1, "0", 0.5],
    "batches_done": [-1, 2**63, "3", None],
    "epoch_is_open": [1, "yes", None],
    "num_samples_seen": [-1, "44"],
    "best_metric": ["0.5", [0.5]],
    "best_global_step": [13, -1, "6"],
    "best_model_checkpoint": ["../checkpoint-6", "/etc", "..", ".", "", "a/b", "a\\b", "a\0b", 6, ["a"]],
    "stopped_by": ["me", {"by": 1, "why": "x"}, {"by": "x"}, []],
    "last_eval_step": [13, -2, "6", None],
    "last_save_step": [99, -2, 6.5],
}
STATES = {
    ("counters",): [..., [], None, "x"],
    ("optimizer",): [..., [], None, "x"],
    ("optimizer", "param_groups"): [{}, [1], [], [{"lr": 0.1}], "x"],
    ("optimizer_type",): [..., 1, None],
    ("lr_scheduler",): [[], "x", 1, ...],
    ("scaler",): [[], "x", ...],
    ("settings",): [[], "x", 1, {}, {"values": 1, "sources": {}}],
    ("pending",): [[], "x", {"by": 1}],
    ("plugin_versions",): [[], {"logging": "1"}, {"logging": 0.5}],
}
OF_THE_OPTIMIZER = {
    "betas": ["x", [0.9], None],
    "amsgrad": ["x", 1],
    "eps": [None, "x", True],
    "weight_decay": [None, [0.1]],
    "lr": [{"__number__": "nan"}, "0.1", None],
}
RANKS = {
    ("losses",): [..., [], None, {}],
    ("losses", "total"): ["1", None, [1.0]],
    ("losses", "updates"): [-1, "1", 0.5],
    ("parts",): [0, -1, "1", 2**40, ...],
    ("plugins",): [[], None, ...],
    ("random_states",): [..., [], {}, None],
    ("random_states", "python"): [[], None, {"__tuple__": [3, {"__tuple__": [1, 2]}, None]}],
    ("random_states", "torch"): ["x", None],
    ("random_states", "numpy", "state", "pos"): [10**9, -1, 625, "1", None, 0.5],
    ("random_states", "numpy", "state", "key"): [[0] * 623, [-1] * 624, [2**32] * 624, ["a"] * 624, None],
    ("random_states", "numpy", "bit_generator"): ["PCG64", None, 5],
}


def _pickle_cases():
    for place, packing in enumerate(PACKINGS):
        for name in [*(THEIRS if place < 2 else THEIRS[:2]), *OURS, "manifest.json"]:
            content = lambda outside, packing=packing: containers(outside / "ran")[packing]  # noqa: E731
            if name in THEIRS:
                yield f"{name} is a {packing}", added(name, content)
                yield f"{name} is a {packing} of the manifest", replaced(name, content)
            elif name in OURS:
                yield f"{name} is a {packing} of the manifest", replaced(name, content)
            else:
                yield f"{name} is a {packing}", added(name, content)
    for name in [*PICKLED[:3], *OURS]:
        yield f"{name} is a zip bomb of the manifest", replaced(name, lambda outside: zip_bomb())


def _file_cases():
    for told, content in HEADERS.items():
        for name in ("model.safetensors", "state.safetensors", "rank-00000.safetensors"):
            if name == "model.safetensors" or len(content) < 10_000_000:
                yield f"{name}: {told}", replaced(name, content)
    for told, content in TEXTS.items():
        for name in ("state.json", "rank-00000.json", "model.safetensors.index.json", "log_history.jsonl"):
            is_row = name == "log_history.jsonl" and told in ("empty", "150 deep")  # no rows, and a strange one
            if not is_row and (name == "state.json" or len(content) < 10_000_000):
                yield f"{name}: {told}", replaced(name, content)
    yield "log_history.jsonl: rows that are lists", replaced("log_history.jsonl", b"[]\n" * 10)
    yield "log_history.jsonl: 30 million rows", replaced("log_history.jsonl", b"{}\n" * 30_000_000)
    index = {"weight_map": {"a": "../../checkpoint-6/model.safetensors"}}
    yield (
        "model.safetensors.index.json: shards above",
        replaced("model.safetensors.index.json", json.dumps(index).encode()),
    )
    index = {"weight_map": {"a": "pytorch_model.bin"}}
    yield "model.safetensors.index.json: a pickle", replaced("model.safetensors.index.json", json.dumps(index).encode())


def _state_cases():
    for name, values in COUNTERS.items():
        for value in values:
            yield f"counters.{name} is {value!r}"[:90], edited("state.json", "counters", name, value=value)
        yield f"counters.{name} is not there", edited("state.json", "counters", name, value=...)
    for name, values in OF_THE_OPTIMIZER.items():
        for value in values:
            yield (
                f"optimizer {name} is {value!r}",
                edited("state.json", "optimizer", "param_groups", 0, name, value=value),
            )
    yield "a schedule with a method", edited("state.json", "lr_scheduler", "get_last_lr", value=5)
    for name, table in (("state.json", STATES), ("rank-00000.json", RANKS)):
        for path, values in table.items():
            for value in values:
                yield f"{name} {'.'.join(path)} is {value!r}"[:90], edited(name, *path, value=value)


def _manifest_cases():
    for told, name in MANIFEST_NAMES.items():
        extra = {name: {"size": 1, "sha256": "0" * 64, "grows": False}}
        yield f"manifest.json names {told}", manifested(lambda body, extra=extra: body["files"].update(extra))
    for key, value in (("size", -1), ("size", True), ("size", "1"), ("size", 2**70), ("size", 1.5), ("sha256", 1),
                       ("sha256", "x"), ("sha256", "A" * 64), ("grows", 1), ("grows", None)):  # fmt: skip
        yield (
            f"manifest.json: {key} of a file is {value!r}",
            manifested(lambda body, key=key, value=value: body["files"]["state.json"].update({key: value})),
        )
    for key, value in (("step", -1), ("step", True), ("step", "12"), ("step", 2**70), ("step", 6), ("generation", -1),
                       ("world_size", 0), ("world_size", 10**9), ("world_size", 1000), ("batch_size", 0),
                       ("is_resumable", 1), ("run", 1), ("files", []), ("files", {"a": 1}), ("settings", []),
                       ("versions", {"a": 1}), ("schema", 10**400), ("schema", True), ("schema", -5),
                       ("format", "x"), ("saved_at", None), ("seed", "1")):  # fmt: skip
        change = lambda body, key=key, value=value: body.update({key: value})  # noqa: E731
        yield f"manifest.json: {key} is {value!r}"[:80], manifested(change)

    def deep(body):
        for _ in range(900):
            body["settings"] = {"a": body["settings"]}

    yield "manifest.json: settings are deep", lambda folder, outside: _raw_manifest(folder, deep)
    large = lambda body: body["settings"].update({"a": "x" * 5_000_000})  # noqa: E731
    yield "manifest.json: is large", manifested(large)
    many = lambda body: body["settings"].update({"a": [0] * 1_300_000})  # noqa: E731
    yield "manifest.json: has many values", lambda folder, outside: _raw_manifest(folder, many)


def _raw_manifest(folder, change):
    body = json.loads((folder / "manifest.json").read_text())
    change(body)
    sys.setrecursionlimit(20_000)
    (folder / "manifest.json").write_text(json.dumps(body, separators=(",", ":")))
    sys.setrecursionlimit(1000)


def _place_cases():
    for name in ("manifest.json", "state.json", "model.safetensors", "log_history.jsonl"):
        yield f"{name} is a link to a file outside", in_place(name, lambda path, other: path.symlink_to(other))
        yield f"{name} is a link to /dev/zero", in_place(name, lambda path, other: path.symlink_to("/dev/zero"))
        yield f"{name} is a link to itself", in_place(name, lambda path, other: path.symlink_to(path.name))
        yield f"{name} is a pipe", in_place(name, lambda path, other: os.mkfifo(path))
        yield f"{name} is a socket", in_place(name, a_socket)
        yield f"{name} is a folder", in_place(name, lambda path, other: path.mkdir())
    yield "model.safetensors is of 2**40 bytes", in_place("model.safetensors", a_sparse_file)
    yield "a pipe beside", lambda folder, outside: os.mkfifo(folder / "pipe")
    yield "a link to / beside", lambda folder, outside: (folder / "root").symlink_to("/")
    yield "a link that leads nowhere beside", lambda folder, outside: (folder / "no").symlink_to("/nowhere")
    yield "forty folders beside", lambda folder, outside: (folder / "/".join("a" * 40)).mkdir(parents=True)


def _harmless_cases():
    def hard_link(folder, outside):
        os.link(folder / "state.json", outside / "state.json")

    yield "state.json is a hard link to a file outside", hard_link
    evil = lambda outside: f"import os\nos.system('touch {outside / 'ran'}')\n".encode()  # noqa: E731
    config = {"auto_map": {"AutoModel": "modeling_evil.Evil", "AutoConfig": "modeling_evil.Evil"}, "torch_dtype": "x"}

    def remote_code(folder, outside):
        (folder / "modeling_evil.py").write_bytes(evil(outside))
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["modeling_evil.E"]}}))
        (folder / "tokenizer.json").write_bytes(b"[" * 100_000)
        reseal(folder)

    yield "config and tokenizer name code beside them", remote_code


OF_THE_RUN = [f"optimizer {name} is {value!r}" for name in ("betas", "amsgrad") for value in OF_THE_OPTIMIZER[name]]
OF_THE_RUN += ["optimizer eps is True", "a schedule with a method"]
"""Cases that the optimizer and the schedule of the run find, not the checkpoint alone."""
ANOTHER = ["model.safetensors: tensors of other names", "model.safetensors: 300 thousand tensors of nothing"]
REFUSED = dict([*_pickle_cases(), *_file_cases(), *_state_cases(), *_manifest_cases(), *_place_cases()])
INERT = [name for name in REFUSED if name.endswith("of the manifest") and name.split()[0] not in OURS]
"""Files of no meaning here: they are hashed and never read."""
HARMLESS = dict(_harmless_cases()) | {name: REFUSED.pop(name) for name in INERT}
OF_ANOTHER_MODEL = {name: REFUSED.pop(name) for name in ANOTHER}
OF_ANOTHER_RUN = {name: REFUSED.pop(name) for name in OF_THE_RUN}
CASES = REFUSED | HARMLESS | OF_ANOTHER_MODEL | OF_ANOTHER_RUN
WAYS = ("named", "newest", "best")


def trainer_of(output_dir):
    """Gives the trainer of a finished run of 12 updates, whose best model is that of update 6."""
    sys.path.insert(0, str(HERE))
    import conftest

    class PeakAtSix:
        def on_evaluate(self, trainer, metrics):
            metrics["eval_loss"] = float(trainer.state.global_step)

    return conftest.Small().trainer(
        output_dir,
        PeakAtSix(),
        max_steps=12,
        save_steps=6,
        eval_strategy="steps",
        eval_steps=6,
        load_best_model_at_end=True,
    )


class Watch:
    """What a process does that a resume must not do."""

    def __init__(self, allowed):
        self.allowed = str(allowed)
        self.is_on = False
        self.seen = []
        sys.addaudithook(self.hear)

    def hear(self, event, arguments):
        if not self.is_on:
            return
        if event in RUNS or event.startswith(
            ("subprocess", "os.exec", "os.spawn", "socket", "ctypes.dlopen", "urllib")
        ):
            self.seen.append(re.sub("[0-9]+", "0", f"{event} {arguments!r}"[:300]))
        elif (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES) or event in CHANGES:
            self.check(event, arguments[0])

    def check(self, event, path):
        if isinstance(path, str | bytes | os.PathLike):
            whole = os.path.realpath(os.fsdecode(path))
            if not whole.startswith(self.allowed + os.sep) and whole not in (self.allowed, "/dev/null"):
                self.seen.append(f"{event} {whole}"[:300])


RUNS = {"pickle.find_class", "exec", "compile", "os.system", "import", "os.fork", "pty.spawn", "marshal.loads"}
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
           "shutil.rmtree", "shutil.move", "shutil.copyfile"}  # fmt: skip
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def attempt(work, way):
    """Resumes and gives what happened."""
    from trainer_core import CheckpointError

    trainer = trainer_of(work / "run")
    source = True if way == "newest" else work / "run" / "checkpoint-12"
    try:
        trainer.train(resume_from_checkpoint=source)
    except CheckpointError as error:
        return {"error": str(error), "kind": "CheckpointError"}
    except BaseException as error:
        return {"error": str(error), "kind": type(error).__name__}
    best = None if trainer.loaded_best_from is None else trainer.loaded_best_from.name
    return {"error": "", "resumed": trainer.resumed_from.name, "best": best, "step": trainer.state.global_step}


def one(work, way, report):
    """In a forked process: limits memory, watches, resumes, and writes down what happened."""
    signal.alarm(SECONDS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    watch, begin = Watch(work / "run"), time.perf_counter()
    watch.is_on = True
    told = attempt(work, way)
    watch.is_on = False
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    told |= {"seconds": round(time.perf_counter() - begin, 2), "megabytes": round(peak), "seen": watch.seen}
    records = [json.loads(line) for line in (work / "run" / "journal.jsonl").read_text().splitlines()]
    told["records"] = [record for record in records if record.get("kind") == "checkpoint_passed_over"]
    report.write_text(json.dumps(told))


def tried(made, work, name, way):
    """Makes one hostile checkpoint and gives what a resume did."""
    (work / "outside").mkdir(parents=True)
    shutil.copytree(made, work / "run")
    hostile = work / "run" / ("checkpoint-6" if way == "best" else "checkpoint-12")
    CASES[name](hostile, work / "outside")
    outside = snapshot(work / "outside")
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            one(work, way, work / "report")
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    report = work / "report"
    told = json.loads(report.read_text()) if report.is_file() else {"kind": f"ended with status {status}", "error": "?"}
    told["outside"] = snapshot(work / "outside") == outside
    shutil.rmtree(work)
    return told


def snapshot(folder):
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def ways_of(name, place):
    """Gives the ways that are tried: each case is named, and every tenth is come to in the other ways as well."""
    return WAYS if place % 10 == 0 and name in REFUSED | HARMLESS else WAYS[:1]


def main(folder):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    made = folder / "made"
    trainer_of(made).train()
    for warm in ("named", "newest"):  # everything that a resume imports, by a good end and by an error
        shutil.copytree(made, folder / "warm" / "run")
        attempt(folder / "warm", warm)
        if warm == "newest":
            edited("state.json", "counters", "epoch", value="x")(folder / "warm" / "run" / "checkpoint-12", folder)
            attempt(folder / "warm", "named")
        shutil.rmtree(folder / "warm")
    CASES["nothing"] = lambda folder, outside: None
    for way in WAYS:
        print(json.dumps({"case": "nothing", "way": way, **tried(made, folder / "work", "nothing", way)}), flush=True)
    del CASES["nothing"]
    for place, name in enumerate(CASES):
        for way in ways_of(name, place):
            print(json.dumps({"case": name, "way": way, **tried(made, folder / "work", name, way)}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
