from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from tests import distributed_cases
from tests.toys import Classifier

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("distributed_cases.py")
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def launch(folder, *names, **environment):
    """Runs the cases on two ranks; gives what each rank saw."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    clean = {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"}
    process = subprocess.run(
        [*command, str(SCRIPT), str(folder), *names],
        env={**clean, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr
    return [json.loads((folder / f"results-rank{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return launch(tmp_path_factory.mktemp("two"), ACCELERATE_USE_CPU="true")


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """What one process gives, with the same global batch."""
    AcceleratorState._reset_state(reset_partial_state=True)
    folder = tmp_path_factory.mktemp("one")
    distributed_cases.main(folder)
    return json.loads((folder / "results-rank0.json").read_text(encoding="utf-8"))


def close(one, two, *, case):
    assert "error" not in one, one
    assert "error" not in two, two
    tolerance = {"rtol": 1e-2, "atol": 1e-3} if case == "bf16" else CLOSE
    torch.testing.assert_close(torch.tensor(two["weights"]), torch.tensor(one["weights"]), **tolerance)
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-3 if case == "bf16" else 1e-5)
    for name in ("step", "samples", "epoch", "outcome"):
        assert two[name] == one[name], name


@pytest.mark.parametrize("case", [*distributed_cases.TRAINING, "not_finite_skipped", "fp16_overflow", "twice"])
def test_two_ranks_end_with_the_weights_of_one_process(one, two, case):
    close(one[case], two[0][case], case=case)
    assert two[1][case] == two[0][case]


def test_the_weights_of_a_run_have_moved(one):
    before = torch.cat([parameter.flatten() for parameter in Classifier().parameters()])
    assert (torch.tensor(one["even"]["weights"]) - before).abs().max() > 0.01


def by_hand_with_means_of_ranks(data, steps):
    """Each step's gradient is the mean over two ranks of each rank's own mean; a rank without targets has none."""
    model = Classifier()
    x, labels = data
    losses = []
    for step, shares in enumerate(steps):
        means = [model(x[rows], labels[rows])["loss"] if (labels[rows] != -100).any() else None for rows in shares]
        loss = sum(mean for mean in means if mean is not None) / 2
        losses.append(loss.item())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for parameter in model.parameters():
            parameter.data -= 0.1 * (len(steps) - step) / len(steps) * parameter.grad
            parameter.grad = None
    return torch.cat([p.detach().flatten() for p in model.parameters()]), sum(losses) / len(losses)


def test_without_counting_over_ranks_the_means_of_ranks_are_averaged(two):
    rows = distributed_cases.masked().columns
    cases = {
        "local_average": ((rows["x"], rows["labels"]), [[slice(0, 3), slice(3, 6)]]),
        "local_average_with_tail": (
            distributed_cases.table(25),
            [[slice(i, i + 3), slice(i + 3, i + 6)] for i in range(0, 24, 6)] + [[slice(24, 25), slice(25, 25)]],
        ),
    }
    for case, (data, steps) in cases.items():
        weights, loss = by_hand_with_means_of_ranks(data, steps)
        torch.testing.assert_close(torch.tensor(two[0][case]["weights"]), weights, **CLOSE)
        assert two[0][case]["loss"] == pytest.approx(loss, rel=1e-5)


# Evaluation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["map", "stream"])
@pytest.mark.parametrize("rows", [1, 7, 22, 23])
def test_each_row_is_evaluated_once_and_in_order(one, two, kind, rows):
    found, expected = two[0]["row_by_row"][f"{kind}_{rows}"], one["row_by_row"][f"{kind}_{rows}"]
    torch.testing.assert_close(torch.tensor(found["predictions"]), torch.tensor(expected["predictions"]), **CLOSE)
    assert found["labels"] == expected["labels"]
    assert found["metrics"] == pytest.approx(expected["metrics"], rel=1e-6)
    assert two[1]["row_by_row"][f"{kind}_{rows}"]["metrics"] == found["metrics"]


def test_unjoined_batches_come_rank_after_rank_or_by_turns(two):
    (x, _), model = distributed_cases.table(11), Classifier()
    logits = model(x)["logits"].detach()
    order = {
        "map": [[0, 1, 2, 3], [4, 5], [6, 7, 8, 9], [10]],
        "stream": [[0, 2, 4, 6], [1, 3, 5, 7], [8, 10], [9]],
    }
    for name, batches in order.items():
        found = two[0]["unjoined"][name]
        assert [len(batch) for batch in found] == [len(batch) for batch in batches]
        for batch, rows in zip(found, batches, strict=True):
            torch.testing.assert_close(torch.tensor(batch), logits[rows], **CLOSE)


def test_ragged_and_nested_outputs_of_ranks_are_joined(one, two):
    assert two[0]["ragged"] == two[1]["ragged"] == one["ragged"]


def test_a_streaming_metric_gets_the_batches_of_all_ranks_once(one, two):
    expected, found = one["streamed"], two[0]["streamed"]
    assert found["metrics"] == pytest.approx(expected["metrics"])
    assert found["few"] == pytest.approx(expected["few"])
    for calls in (expected["calls"], found["calls"]):
        assert [last for _, last in calls] == [False] * 4 + [True, True]
        assert sum(rows for rows, _ in calls) == 14
    assert two[1]["streamed"] == found


def test_a_metric_object_gets_the_batches_of_all_ranks_once(one, two):
    for name, rows in (("many", 13), ("one", 1)):
        for kind in (name, f"{name}_from_stream"):
            expected = {metric: pytest.approx(value) for metric, value in one["metric_objects"][kind].items()}
            assert two[0]["metric_objects"][kind] == two[1]["metric_objects"][kind] == expected
            assert expected["eval_rows"] == rows


def test_tokens_are_counted_over_all_ranks_and_padding_batches_are_none(one, two):
    assert two[0]["tokens"] == two[1]["tokens"] == one["tokens"]
    assert one["tokens"] == {"all_map": 84, "all_stream": 84, "non_padding_map": 44, "non_padding_stream": 44}


def test_texts_of_ranks_are_joined_in_the_order_of_the_rows(two):
    expected = [f"row {number}" for number in range(7)]
    assert [rank["texts"] for rank in two] == [{"map": expected, "stream": expected}] * 2


def test_ranks_evaluate_one_model_and_agree_on_the_best(two):
    found = two[0]["evaluated_while_training"]
    assert found == two[1]["evaluated_while_training"]
    assert [row["step"] for row in found["rows"]] == [2, 4, 4]
    assert found["after"]["eval_loss"] == found["rows"][1]["eval_loss"] == pytest.approx(found["own"], rel=1e-6)


def test_ranks_evaluate_with_the_buffers_of_the_main_rank(two):
    found = two[0]["evaluated_after_training"]
    assert found["loss"] == pytest.approx(found["own"], rel=1e-6)
    assert two[1]["evaluated_after_training"] == found


def test_an_empty_stream_is_refused_on_every_rank(two):
    for rank in two:
        assert rank["empty_evaluation"]["error"].startswith("DataError: evaluation dataset: gave no sample")


# Signals, errors and files ----------------------------------------------------------------------------------------


def test_a_stop_that_one_rank_asks_for_stops_all_at_one_step(two):
    first, second = (rank["stopped_by_one_rank"] for rank in two)
    assert first["step"] == second["step"] == 10
    assert first["weights"] == second["weights"]
    assert first["by"] == second["by"] == "clock (rank 1)"
    assert "clock (rank 1): time is up" in first["explained"]


def test_a_row_that_a_callback_wants_on_one_rank_is_logged_on_all(two):
    assert [rank["logged_for_a_callback_of_one_rank"] for rank in two] == [{"rows": [7]}] * 2


def test_a_callback_that_stops_on_one_rank_stops_all_at_that_update(two):
    first, second = (rank["stopped_by_a_callback_of_one_rank"] for rank in two)
    assert first["step"] == second["step"] == 3
    assert first["weights"] == second["weights"]
    assert first["by"] == second["by"] == "CallbackOfOneRank (rank 1)"


def test_a_loss_that_is_no_number_on_one_rank_ends_all_with_one_error(one, two):
    errors = {results["not_finite"]["error"] for results in (one, *two)}
    assert len(errors) == 1
    assert errors.pop().startswith("NonFiniteLossError: step 3: the loss is not finite, got nan. The weights are still")


def test_a_step_that_is_skipped_on_one_rank_is_skipped_on_all(two):
    assert [rank["without_the_bad_step"] for rank in two] == [{"equal": True}] * 2


def test_an_update_without_any_target_ends_all_ranks(two):
    error = (
        "DataError: update: none of its labels counts, all are -100. Look at the labels that the data collator makes."
    )
    assert [rank["no_target_at_all"]["error"] for rank in two] == [error] * 2


def test_finding_a_batch_size_is_refused_for_several_ranks(one, two):
    assert one["splitting_to_find_a_batch_size"] is None
    for rank in two:
        assert "auto_find_batch_size: works with one process, got 2" in rank["splitting_to_find_a_batch_size"]["error"]


def test_hooks_fire_on_every_rank_and_each_keeps_its_journal(two):
    first, second = (rank["hooks_and_journal"] for rank in two)
    assert first["told"] == second["told"]
    assert first["told"][:2] == [1, 2]
    assert (first["journal"], first["main"]) == ("journal.jsonl", True)
    assert (second["journal"], second["main"]) == ("journal-rank1.jsonl", False)


def test_the_model_is_saved_once(two):
    assert [rank["saved_once"] for rank in two] == [["model.safetensors"]] * 2


def test_torchrun_alone_is_enough_and_ranks_that_do_not_see_each_other_are_refused(one, tmp_path):
    results = launch(tmp_path, "blind", "even")
    for rank in results:
        assert rank["blind"]["error"].startswith("DistributedError: launch: 2 processes were started and each of them")
        close(one["even"], rank["even"], case="even")


# Options of DDP ---------------------------------------------------------------------------------------------------


def test_ranks_talk_as_the_options_say_and_look_for_parameters_without_a_gradient(tmp_path):
    names = ("connected", "looking_for_unused_parameters", "not_looking_for_unused_parameters")
    for rank in launch(tmp_path, *names, ACCELERATE_USE_CPU="true"):
        assert rank["connected"]["first"] == {
            "backend": "gloo", "timeout": 77, "bucket_megabytes": 3, "broadcast_buffers": False, "static_graph": False,
        }  # fmt: skip
        second = rank["connected"]["second"]
        assert (second["timeout"], second["broadcast_buffers"], second["static_graph"]) == (66, True, True)
        assert rank["connected"]["other"] == (
            "DistributedError: ddp_backend: the ranks talk through 'gloo', got 'nccl'. Leave it out; or name one that "
            "suits the device, and make no Accelerator before the trainer."
        )
        assert rank["looking_for_unused_parameters"] == 4
        told = rank["not_looking_for_unused_parameters"]["error"]
        assert told.startswith("RuntimeError: Expected to have finished reduction in the prior iteration")
