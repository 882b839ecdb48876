"""The user's face: `Trainer`.

    trainer = Trainer(model=model, args=args, train_dataset=train, eval_dataset=test)
    trainer.train()

A method that the guide lists as an override point is called by the loop when a subclass overrides it. What happens in
which order stands in `loop`; this module hands the user's objects over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import nn

from trainer_core import assembly, modes, results
from trainer_core.batching import Batching, new_batching
from trainer_core.bus import Bus
from trainer_core.cadence import Cadence
from trainer_core.callbacks import TrainerControl
from trainer_core.data.columns import ModelColumns, model_columns
from trainer_core.data.loaders import build_eval_loader, build_train_loader
from trainer_core.data.reading import BatchStream
from trainer_core.errors import PluginError
from trainer_core.evaluate import EvalLoopOutput, Evaluation, PredictionOutput
from trainer_core.journal import explain, last_run
from trainer_core.loss import LossFunction, is_shifted, loss_and_outputs, prediction_of, takes
from trainer_core.memory import MemoryMeter
from trainer_core.metrics import plain
from trainer_core.optim.optimizers import create_optimizer, decay_parameter_names
from trainer_core.optim.schedules import create_schedule
from trainer_core.phases import Signal
from trainer_core.plan import Plan
from trainer_core.planning import plan_of
from trainer_core.ranks import Ranks, create_accelerator
from trainer_core.running import Running
from trainer_core.settings.arguments import TrainingArguments
from trainer_core.snapshot import load_run_state, run_state
from trainer_core.state import Request, TrainerState
from trainer_core.summary import exit_code, tokens_seen, training_row
from trainer_core.weights import write_model

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

ComputeMetrics = Callable[..., Mapping[str, Any]] | Any
"""A function, or an object of the kinds that `metrics` tells of."""
Outcome = Literal["", "completed", "stopped", "interrupted", "failed"]


class TrainOutput(NamedTuple):
    """What `train` gives: updates done, mean loss of the updates of this run, and the closing metrics."""

    global_step: int
    training_loss: float
    metrics: dict[str, float]


class Trainer:
    """Trains, evaluates and predicts with a PyTorch model.

    Args:
        model: any module that gives its loss first, under "loss" or as `.loss`; or any module with `compute_loss`.
        args: settings; the defaults when None.
        data_collator: makes a batch of a list of samples; pads with `tokenizer`, else stacks, when None.
        train_dataset: map-style or iterable.
        eval_dataset: the same, or a mapping from names to datasets (metrics `eval_<name>_…`).
        tokenizer: used for padding and saved with the model; `processing_class` is the same.
        model_init: gives the model anew for each `train()`; instead of `model`.
        compute_metrics: from an `EvalPrediction` to a mapping of numbers; or a metric of torchmetrics or evaluate.
        callbacks: callbacks or objects with hook methods; classes or instances. `callback` is the same.
        optimizers: (optimizer, scheduler), each or both None to have them made from the settings.
        preprocess_logits_for_metrics: (logits, labels) -> what is kept of them.
        processing_class: the newer name of `tokenizer`.
        compute_loss_func: (outputs, labels, num_items_in_batch) -> loss.
        plugins: further plugins: objects with hook methods, named by their `name` or class.

    Raises:
        SettingsError: arguments that are missing, unknown or contradict each other; all of them at once.
    """

    train_dataloader: Any = None
    eval_dataloader: Any = None
    train_stream: BatchStream
    scaler: torch.amp.GradScaler | None = None
    running: Running | None = None
    outcome: Outcome = ""
    ignore_keys_for_eval: Sequence[str] | None = None
    stop_request: Request | None = None
    resume_source: str | bool = False
    resumed_from: Path | None = None
    finished: Mapping[str, Any] | None = None
    loaded_best_from: Path | None = None
    rehearsed: tuple[tuple[Any, Any], set[str] | None] | None = None

    def __init__(
        self,
        model: nn.Module | None = None,
        args: TrainingArguments | None = None,
        data_collator: Callable[[list[Any]], Any] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        tokenizer: Any = None,
        model_init: Callable[..., nn.Module] | None = None,
        compute_metrics: ComputeMetrics | None = None,
        callbacks: Iterable[Any] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, Any] = (None, None),
        preprocess_logits_for_metrics: Callable[[Any, Any], Any] | None = None,
        *,
        processing_class: Any = None,
        compute_loss_func: LossFunction | None = None,
        plugins: Iterable[object] = (),
        **others: Any,
    ) -> None:
        self.args = args if args is not None else TrainingArguments()
        more_callbacks = assembly.check_arguments(self, locals(), others)
        self.memory = MemoryMeter(self.args)
        self.model_init, self.trial = model_init, None
        self.model: nn.Module = model if model is not None else assembly.new_model(self)
        self.model_wrapped: nn.Module = self.model
        self.train_dataset = train_dataset
        self.eval_dataset = eval_dataset
        self.processing_class = processing_class if processing_class is not None else tokenizer
        self.data_collator = data_collator if data_collator is not None else assembly.default_collator(self)
        self.compute_metrics = compute_metrics
        self.preprocess_logits_for_metrics = preprocess_logits_for_metrics
        self.compute_loss_func = compute_loss_func
        self.optimizer: torch.optim.Optimizer = optimizers[0]  # type: ignore[assignment] # made before training where None
        self.lr_scheduler: Any = optimizers[1]
        self.made_for_run: tuple[Any, Any] = (None, None)
        self.state = TrainerState()
        self.control = TrainerControl()
        self.train_metrics: dict[str, float] = {}
        self.last_plan: Plan | None = None
        self.scheduler_step: Callable[[], None] | None = None
        self.waits_for_metric = False
        self.eval_cadence = Cadence("no")
        self.bus = Bus()
        assembly.register_plugins(self, plugins or (), [*(callbacks or ()), *more_callbacks])
        self.bus.tell("on_init_end", trainer=self)
        self.memory.end_init()

    # Running

    def train(
        self,
        resume_from_checkpoint: str | Path | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: Sequence[str] | None = None,
        **others: Any,
    ) -> TrainOutput:
        """Trains until the plan is done, a plugin stops the run, or it is interrupted.

        Args:
            resume_from_checkpoint: a checkpoint's folder, or True for the newest one in `output_dir`; None for what the
                setting of that name says.
            trial: what `model_init` gets, if it takes an argument.
            ignore_keys_for_eval: model outputs to leave out of the predictions of evaluations in this run.
            others: none; a misspelt name is answered with the right one.

        Raises:
            SettingsError: the settings, model and data cannot be trained together; before anything is done.
        """
        assembly.check_train_arguments(others)
        if self.is_in_train:
            raise PluginError("train: is running already, and a hook called it again. Ask with request() instead.")
        if resume_from_checkpoint is None:
            resume_from_checkpoint = getattr(self.args, "resume_from_checkpoint", None)
        self.trial, self.ignore_keys_for_eval = trial, ignore_keys_for_eval
        self.running = Running(self, resume_from_checkpoint)
        with self.running as running:
            running.own()
            running.loop.run()
        loss = self.train_metrics["train_loss"]
        return TrainOutput(self.state.global_step, loss, self.train_metrics | {"epoch": self.state.epoch})

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: Sequence[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Evaluates, logs the metrics and gives them.

        Args:
            eval_dataset: instead of the trainer's: a dataset, a mapping of datasets, or the name of one.
            ignore_keys: model outputs to leave out of the predictions.
            metric_key_prefix: of the metric names.
        """
        datasets = modes.eval_datasets(self, eval_dataset)
        if isinstance(datasets, Mapping):
            metrics: dict[str, float] = {}
            for name in datasets:
                wanted = name if eval_dataset is None or isinstance(eval_dataset, str) else datasets[name]
                metrics |= self.evaluate(wanted, ignore_keys, f"{metric_key_prefix}_{name}")
            return metrics
        loader = self.get_eval_dataloader(None if eval_dataset is None else datasets)
        output = self.evaluation_loop(
            loader,
            "Evaluation",
            prediction_loss_only=True if self.compute_metrics is None else None,
            ignore_keys=ignore_keys,
            metric_key_prefix=metric_key_prefix,
        )
        self.log(output.metrics)
        metrics = output.metrics | {"epoch": self.state.epoch}
        self.bus.tell("on_evaluate", trainer=self, metrics=metrics)
        return metrics

    def predict(
        self, test_dataset: Any, ignore_keys: Sequence[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """Gives the model's outputs for every row of `test_dataset`, once, in order; with metrics if it has labels."""
        loader = self.get_test_dataloader(test_dataset)
        output = self.evaluation_loop(
            loader, "Prediction", ignore_keys=ignore_keys, metric_key_prefix=metric_key_prefix
        )
        self.bus.tell("on_predict", trainer=self, metrics=output.metrics)
        return PredictionOutput(output.predictions, output.label_ids, output.metrics)

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: Sequence[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Goes over `dataloader` once without gradients; may be overridden.

        Predictions are given unless metrics take batches; under the description "Prediction" always.
        """
        self.eval_dataloader = dataloader
        loss_only = self.args.prediction_loss_only if prediction_loss_only is None else prediction_loss_only
        keys = ignore_keys if ignore_keys is not None else modes.keys_to_ignore(self)
        is_prediction = description == "Prediction"
        evaluation = Evaluation(
            self, metric_key_prefix, loss_only=loss_only, ignore_keys=keys, keeps_outputs=is_prediction
        )
        return evaluation.run(dataloader)

    def plan(self) -> Plan:
        """Gives what `train()` would do, without doing any of it."""
        return plan_of(self)

    def explain(self, step: int) -> str:
        """Says in words what happened at update `step` of the last run in `output_dir`, and who asked for it."""
        return explain(last_run(self.journal_path), step)

    # Override points: data

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Gives the loader of the training data; may be overridden."""
        options = self._loader_options | {"run_window": self.state.data_window if self.is_in_train else None}
        return build_train_loader(self.train_dataset, self.data_collator, self.args, **options)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Gives the loader of `eval_dataset` (a dataset, or the name of one of the trainer's); may be overridden."""
        dataset = modes.eval_datasets(self, eval_dataset)
        return build_eval_loader(dataset, self.data_collator, self.args, **self._loader_options)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """Gives the loader of the data to predict on; may be overridden."""
        return build_eval_loader(test_dataset, self.data_collator, self.args, **self._loader_options)

    @cached_property
    def _columns(self) -> ModelColumns:
        """What the model takes; kept, so that dropped columns are said once."""
        return model_columns(self.model.forward, self.args.label_names)

    @property
    def _loader_options(self) -> dict[str, Any]:
        return {
            "world_size": self.ranks.world_size,
            "rank": self.ranks.rank,
            "device": self.ranks.device,
            "columns": self._columns if self.args.remove_unused_columns else None,
        }

    # Override points: optimizer

    def create_optimizer_and_scheduler(self, num_training_steps: int) -> None:
        """Makes optimizer and scheduler where there are none; may be overridden."""
        optimizer = self.create_optimizer()
        self.optimizer = self.optimizer if self.optimizer is not None else optimizer
        if self.optimizer is None:
            return  # refused by the caller, with what to do
        lr_scheduler = self.create_scheduler(num_training_steps, self.optimizer)
        self.lr_scheduler = self.lr_scheduler if self.lr_scheduler is not None else lr_scheduler

    def create_optimizer(self) -> torch.optim.Optimizer:
        """Makes `self.optimizer` where there is none; may be overridden."""
        if self.optimizer is None:
            asked = self.bus.ask("create_optimizer", trainer=self)
            self.optimizer = asked if asked is not None else create_optimizer(self.model, self.args, self.ranks.device)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Makes `self.lr_scheduler` where there is none; may be overridden."""
        if self.lr_scheduler is None:
            optimizer = optimizer if optimizer is not None else self.optimizer
            asked = self.bus.ask(
                "create_scheduler", trainer=self, optimizer=optimizer, num_training_steps=num_training_steps
            )
            made = asked if asked is not None else create_schedule(optimizer, self.args, num_training_steps)
            self.lr_scheduler = made
        return self.lr_scheduler

    # Override points: steps

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        """Gives the mean loss of a batch, or (loss, outputs); may be overridden.

        An override without `num_items_in_batch` returns a mean over the batch's targets. One with it may return the
        same, or divide a sum by it: the number of targets of the whole update.
        """
        loss, outputs = loss_and_outputs(self, model, inputs, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Goes forward and backward with one micro-batch; gives its share of the update's loss; may be overridden."""
        if self.running is None:
            raise RuntimeError("Trainer.training_step: is called by the loop. Call train().")
        return self.running.loop.stepper.training_step_by_default(inputs)

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor | None, Any, Any]:
        """Gives (loss, logits, labels) of one batch, without gradients; may be overridden."""
        return prediction_of(self, model, inputs, loss_only=prediction_loss_only, ignore_keys=ignore_keys)

    def log(self, logs: Mapping[str, Any], start_time: float | None = None) -> None:
        """Logs a row: adds epoch and step, appends it to `state.log_history`, tells the plugins; may be overridden.

        Args:
            logs: names and values; it is not changed.
            start_time: of training, in seconds of `time.time()`; adds `train_runtime`.
        """
        row = {name: plain(value) for name, value in logs.items()}
        if start_time is not None:
            row["train_runtime"] = round(time() - start_time, 4)
        row |= {"epoch": self.state.epoch, "step": self.state.global_step} | tokens_seen(self)
        self.state.log_history.append(row)
        self.bus.tell("on_log", trainer=self, logs=row)

    # For plugins

    def request(self, signal: Signal, *, by: str, why: str, interrupt: bool = False, local: bool = False) -> None:
        """Asks the run to evaluate, save or stop at the next boundary; see `Loop.request`."""
        if self.running is None or not self.is_in_train:
            raise PluginError(f"request: {by} asked for {signal.name} while nothing trains. Ask during train().")
        self.running.loop.request(signal, by=by, why=why, interrupt=interrupt, local=local)

    def finish_save(self, step: int, checkpoint: Path | None) -> None:
        """Says how a save ended that `write_checkpoint` answered with `Saving.BEHIND`; at one boundary on all ranks.

        Args:
            step: the update whose state it holds.
            checkpoint: its folder, durable, which is announced at the next boundary; None when the save failed.
        """
        if self.running is not None:
            self.running.loop.saves.finish(step, checkpoint)

    @property
    def is_stopping(self) -> bool:
        """Whether this call of `train()` is about to end, so that a save made now is its last."""
        if self.running is None or not self.is_in_train:
            return False
        return Signal.STOP in self.running.loop.raised or self.running.loop.saves.is_last

    def log_training_row(self) -> None:
        """Logs loss, gradient norm and learning rate since the last such row; on all ranks together."""
        if self.running is not None and (row := training_row(self, self.running.loop)):
            self.log(row)

    def add_callback(self, callback: Any) -> None:
        """Adds a callback or plugin; during a run it takes effect at the next phase boundary."""
        assembly.add_callback(self, callback)

    def pop_callback(self, callback: Any) -> Any:
        """Removes a callback by class, instance or name, and gives it; None if there is none."""
        return assembly.pop_callback(self, callback)

    def remove_callback(self, callback: Any) -> None:
        """Removes a callback by class, instance or name."""
        assembly.pop_callback(self, callback)

    def callback_context(self) -> dict[str, Any]:
        """Gives what callbacks get by keyword."""
        return {
            "model": self.model,
            "tokenizer": self.processing_class,
            "processing_class": self.processing_class,
            "optimizer": self.optimizer,
            "lr_scheduler": self.lr_scheduler,
            "train_dataloader": self.train_dataloader,
            "eval_dataloader": self.eval_dataloader,
        }

    def record(self, kind: str, **fields: Any) -> None:
        """Adds a record to the journal of the run, beside the transitions; nothing outside `train()`.

        Args:
            kind: what it is, for `journal_records`.
            fields: what JSON can hold.
        """
        if self.running is not None and self.is_in_train:
            self.running.loop.journal.record(kind, self.state.global_step, fields)

    @property
    def window(self) -> Sequence[Any]:
        """This rank's micro-batches of the update that is being done, until `on_step_end` is over; else none."""
        return self.running.loop.window if self.running is not None else ()

    @property
    def last_loss_and_norm(self) -> tuple[Any, Any]:
        """This rank's share of the loss of the last update, and the norm of its gradient before it was clipped.

        Numbers, or tensors that are not waited for; the norm is None where nothing is clipped.
        """
        if self.running is None:
            raise RuntimeError("Trainer.last_loss_and_norm: there was no update yet. Ask during train().")
        return self.running.loop.stepper.last

    def state_dict(self) -> dict[str, Any]:
        """Gives all that a run needs to go on, but the model's weights, random states and the log history.

        Tensors stay tensors; the rest is what JSON can hold. A plugin's state stands under its name.
        """
        return run_state(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` gave; during phase INIT."""
        load_run_state(self, state)

    def save_model(self, output_dir: str | Path | None = None) -> None:
        """Writes the model (safetensors, with config and tokenizer where there are) into a folder, on the main rank."""
        folder = Path(output_dir if output_dir is not None else self.args.output_dir)
        if self.ranks.is_main:
            write_model(self.model, folder, self.processing_class)
        self.ranks.barrier()

    def log_metrics(self, split: str, metrics: Mapping[str, Any]) -> None:
        """Prints metrics as a table on the main rank, under the name of `split` ("train", "eval", "test")."""
        results.print_metrics(self, split, metrics)

    def metrics_format(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Gives metrics as one reads them: times as h:mm:ss, few digits."""
        return results.formatted(metrics)

    def save_metrics(self, split: str, metrics: Mapping[str, Any], combined: bool = True) -> None:
        """Writes `<split>_results.json` into `output_dir` on the main rank; `combined` adds to `all_results.json`."""
        results.write_metrics(self, split, metrics, combined=combined)

    def save_state(self) -> None:
        """Writes counters and log history as `trainer_state.json` into `output_dir` on the main rank."""
        results.write_state(self)

    def push_to_hub(self, commit_message: str = "End of training", blocking: bool = True, **options: Any) -> Any:
        """Saves the model, writes its card and pushes both, through the plugin that pushes.

        Args:
            commit_message: title of the commit.
            blocking: wait until it is pushed; else what is given can be waited for.
            options: further options of the plugin, among them those of `create_model_card`.

        Raises:
            PluginError: no plugin pushes.
        """
        context = {"commit_message": commit_message, "blocking": blocking, "options": options}
        return assembly.ask_plugin(self, "push", "push_to_hub", **context)

    def create_model_card(self, **options: Any) -> Path:
        """Writes the model's card (README.md) into `output_dir`, through the plugin that writes cards.

        Args:
            options: `language`, `license`, `tags`, `model_name`, `finetuned_from`, `tasks`, `dataset_tags`, `dataset`,
                `dataset_args`.

        Raises:
            PluginError: no plugin writes cards.
        """
        card: Path = assembly.ask_plugin(self, "write_model_card", "create_model_card", options=options)
        return card

    def hyperparameter_search(
        self,
        hp_space: Callable[[Any], Mapping[str, Any]] | None = None,
        compute_objective: Callable[[Mapping[str, float]], Any] | None = None,
        n_trials: int = 20,
        direction: str | Sequence[str] = "minimize",
        backend: str | None = None,
        hp_name: Callable[[Any], str] | None = None,
        **options: Any,
    ) -> Any:
        """Trains with many settings and gives the best run, through the plugin that searches; needs `model_init`.

        Args:
            hp_space: from a trial to names of settings and their values.
            compute_objective: from metrics to the number to optimize, or to several.
            n_trials: how many settings to try.
            direction: "minimize" or "maximize"; one for each number.
            backend: the plugin's library.
            hp_name: from a trial to the name of its run.
            options: further options of the plugin.

        Raises:
            PluginError: no plugin searches.
        """
        options |= {
            "hp_space": hp_space,
            "compute_objective": compute_objective,
            "n_trials": n_trials,
            "direction": direction,
            "backend": backend,
            "hp_name": hp_name,
        }
        return assembly.ask_plugin(self, "search_hyperparameters", "hyperparameter_search", options=options)

    def replay(self, from_step: int, steps: int, output_dir: str | Path | None = None) -> Any:
        """Repeats updates of a run from a checkpoint and compares them with its journal, through the plugin for that.

        Args:
            from_step: update of the checkpoint to begin from; 0 for the beginning of the run.
            steps: how many updates to repeat.
            output_dir: folder of the run, in which nothing is changed; None for that of the settings.

        Raises:
            PluginError: no plugin replays.
        """
        options = {"from_step": from_step, "steps": steps, "output_dir": output_dir}
        return assembly.ask_plugin(self, "replay_updates", "replay", options=options)

    # What is known

    def is_world_process_zero(self) -> bool:
        """Whether this process is rank 0 of all."""
        return self.ranks.is_main

    def is_local_process_zero(self) -> bool:
        """Whether this process is the first of its node."""
        return self.ranks.local_rank == 0

    def num_examples(self, dataloader: DataLoader[Any]) -> int:
        """Gives the number of samples in a loader's dataset, over all ranks.

        Raises:
            TypeError: the dataset has no length.
        """
        return len(dataloader.dataset)  # type: ignore[arg-type] # that it has one is the caller's part

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Gives the names of the parameters that weight decay acts on: all but biases and those of norm layers."""
        return decay_parameter_names(model)

    def get_learning_rates(self) -> list[float]:
        """Gives the learning rate of each group of the optimizer's parameters.

        Raises:
            RuntimeError: there is no optimizer yet.
        """
        if self.optimizer is None:
            raise RuntimeError("Trainer.get_learning_rates: there is no optimizer yet. Call train(), or pass one.")
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def get_num_trainable_parameters(self) -> int:
        """Gives the number of parameters that require a gradient."""
        return sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)

    def get_total_train_batch_size(self, args: TrainingArguments) -> int:
        """Gives the samples a step, over all micro-batches and ranks."""
        return args.per_device_train_batch_size * args.gradient_accumulation_steps * self.ranks.world_size

    @cached_property
    def accelerator(self) -> Accelerator:
        """Accelerate's object, made at first use."""
        return create_accelerator(self.args)

    @property
    def exit_code(self) -> int:
        """What a script passes to `sys.exit`: 0 after a run that ended for good, 1 after one that failed.

        After one that was cut short: 128 + the number of the signal that did it, or 75 where a plugin did.
        """
        return exit_code(self)

    @cached_property
    def ranks(self) -> Ranks:
        """The processes of this run."""
        ranks = Ranks(self.accelerator)
        self.state.is_world_process_zero, self.state.is_local_process_zero = ranks.is_main, ranks.local_rank == 0
        return ranks

    @property
    def batching(self) -> Batching:
        """How the samples of an update are shared out: in a resumed run so that they are as many as before."""
        if self.running is not None and self.is_in_train:
            return self.running.loop.batching
        return new_batching(self.args, self.ranks.world_size)

    @property
    def users_optimizers(self) -> tuple[torch.optim.Optimizer | None, Any]:
        """Optimizer and scheduler that the user passed or set; None for what each run makes anew."""
        optimizer, lr_scheduler = self.made_for_run
        return (
            None if self.optimizer is optimizer else self.optimizer,
            None if self.lr_scheduler is lr_scheduler else self.lr_scheduler,
        )

    @property
    def is_main_rank(self) -> bool:
        """Whether this process is rank 0."""
        return self.ranks.is_main

    @property
    def is_in_train(self) -> bool:
        """Whether `train()` is running."""
        return self.running is not None and self.running.is_active

    @property
    def tokenizer(self) -> Any:
        """The guide's name of `processing_class`."""
        return self.processing_class

    @property
    def journal_path(self) -> Path:
        """Where this rank's journal is."""
        name = "journal.jsonl" if self.ranks.is_main else f"journal-rank{self.ranks.rank}.jsonl"
        return Path(self.args.output_dir) / name

    @cached_property
    def label_names(self) -> tuple[str, ...]:
        """The columns that are labels."""
        return modes.label_names(self)

    @cached_property
    def is_shifted(self) -> bool:
        """Whether the model is a causal language model that shifts its labels."""
        return is_shifted(self.model)

    @property
    def precision(self) -> torch.dtype | None:
        """The type of autocast, or None for full precision."""
        return modes.autocast_type(self.args)

    @cached_property
    def compute_loss_takes_count(self) -> bool:
        """Whether an overridden `compute_loss` has the argument `num_items_in_batch`."""
        return self.overrides("compute_loss") and takes(self.compute_loss, "num_items_in_batch")

    def overrides(self, method: str) -> bool:
        """Tells whether a subclass (or the instance) has a `method` of its own."""
        return method in vars(self) or getattr(type(self), method) is not getattr(Trainer, method)

    def evaluation_model(self) -> AbstractContextManager[nn.Module]:
        """Gives a context in which the model is in evaluation mode; it goes back to what it was."""
        return modes.evaluation_model(self)

    def main_input(self, inputs: Any) -> Any:
        """Gives the model's main input of a batch."""
        return modes.main_input(self.model, inputs)
