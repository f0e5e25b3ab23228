"""A training run: what a recipe returns, and the run folder that training writes.

The folder: config.yaml, environment.json, metrics.jsonl, tensorboard/, checkpoints/, best/ (by validation), model/, and
unreadable.jsonl if media files could not be read.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from comodal import distributed, hardware
from comodal.data.batch import Batch
from comodal.data.output_folder import encode_settings_json, lock_output_folder, translate_os_errors
from comodal.environment import collect_environment
from comodal.errors import RecipeError
from comodal.files import write_bytes_atomically
from comodal.flat_parameters import flatten_parameters
from comodal.hardware import AUTOMATIC, MEMORY_FORMATS, Compute, ComputeOptions, MemoryLayout
from comodal.models.checkpoint import load_model, save_model
from comodal.progress import Progress
from comodal.text_files import read_metrics
from comodal.training.allocator import keep_freed_memory
from comodal.training.best_weights import BestWeights
from comodal.training.checkpoints import Checkpoints, TrainingState
from comodal.training.interruption import InterruptHandler
from comodal.training.memory_limits import check_training_fits
from comodal.training.recipe_run import Run
from comodal.training.run_config import (
    check_run_folder,
    describe_changes,
    find_recipe,
    get_recipe_name,
    read_run_config,
    resolve_parameters,
    to_yaml_values,
    write_run_config,
)
from comodal.training.run_log import RunLog, SkippedMedia, format_metrics_note
from comodal.training.thread_choice import MIN_STEPS, choose_thread_count, describe_thread_choice, make_step_timer
from comodal.training.throughput import Throughput, format_rough_count, format_rough_duration
from comodal.training.training_loop import NotFiniteError, train_steps, validate_objective
from comodal.training.training_options import TrainingOptions, choose_first_threads, resolve_options

ENVIRONMENT_FILE = "environment.json"  # hardware and versions of the last start
EXIT_DONE, EXIT_BY_SIGNAL = 0, 128  # exit statuses; a shell adds 128 to a signal's number


DEFAULT_OPTIONS = TrainingOptions()


@flatten_parameters
def train(
    recipe: str | Callable[..., Run],
    parameters: Mapping[str, Any],
    out: Path | str,
    resume: bool = False,
    compute: ComputeOptions = AUTOMATIC,
    options: TrainingOptions = DEFAULT_OPTIONS,
) -> int:
    """Trains a recipe, and returns the exit status: 0 when done, 130 or 143 when stopped by a signal.

    Ctrl-C and SIGTERM save a checkpoint and stop; --resume continues at the exact sample. Supports torchrun.

    Args:
        recipe: Name of a recipe (`comodal list recipes`), or a function that returns a Run.
        parameters: Arguments of the recipe.
        out: Run folder.
        resume: Resume the run in this folder; start a new one if there is none.
        precision: fp32, bf16 (autocast, fp32 weights), or auto: bf16 where it is native; a resumed run keeps its own.
        compute: Device and precision.
        options: How it is trained.

    Raises:
        RecipeError: The folder holds a run and `resume` is not set, or settings changed that must stay the same.
        CheckpointError: A checkpoint cannot be read or written.
        DataError: A sample cannot be read.
        FloatingPointError: The loss is not finite; not_finite.json in the run's folder holds the samples' keys.
    """
    options.check()
    recipe, out = find_recipe(recipe), Path(out)
    values, started = resolve_parameters(recipe, parameters), read_run_config(out / "config.yaml")
    threads_before = torch.get_num_threads()
    precision = started.get("precision", "auto") if resume and compute.precision == "auto" else compute.precision
    resolved = hardware.resolve_compute(str(distributed.init_distributed(compute.device)), precision)
    threads, chooses_threads = choose_first_threads(options.threads, started if resume else {})
    if resolved.device.type == "cpu":
        torch.set_num_threads(threads)
        keep_freed_memory()
    try:
        lock = lock_output_folder(out) if distributed.is_main_process() else nullcontext()
        devices = [resolved.device] if resolved.device.type == "cuda" else []
        with translate_os_errors(out), lock, torch.random.fork_rng(devices):
            check_run_folder(out, resume)
            run = recipe(**values)
            check_training_fits(run.objective, resolved.device)
            values |= run.resolved
            options = resolve_options(replace(options, threads=threads), run, resolved, started if resume else {})
            settings = {"device": compute.device, "precision": resolved.precision} | options.list_settings()
            changed = describe_changes(out / "config.yaml", values, settings)
            distributed.wait_for_processes()
            about = {
                "recipe": get_recipe_name(recipe),
                "parameters": to_yaml_values(values),
                "fingerprint": run.fingerprint,
            } | ({"dataset": dict(run.dataset)} if run.dataset else {})
            trainer = Trainer(run, out, resolved, options, about)
            write_run_settings(out, recipe, values | settings)
            if chooses_threads and resolved.device.type == "cpu" and distributed.count_processes() == 1:
                trainer.record_threads = lambda count: write_run_settings(
                    out, recipe, values | settings | {"threads": count}
                )
            return trainer.train(changed)
    finally:
        torch.set_num_threads(threads_before)
        distributed.shut_down_distributed()


def write_run_settings(out: Path, recipe: Callable, values: Mapping[str, Any]) -> None:
    """Writes config.yaml and environment.json, in the main process."""
    if distributed.is_main_process():
        out.mkdir(parents=True, exist_ok=True)
        write_run_config(out / "config.yaml", recipe, values)
        write_bytes_atomically(out / ENVIRONMENT_FILE, encode_settings_json(collect_environment()))
    distributed.wait_for_processes()


class Trainer:
    """Trains a run to its end, or until a signal."""

    def __init__(self, run: Run, out: Path, compute: Compute, options: TrainingOptions, about: dict[str, Any]) -> None:
        assert options.memory_layout != "auto" and options.validate_every is not None, "resolved options"
        self.run = run
        self.out = out
        self.compute = compute
        self.options = options
        self.layout: MemoryLayout = options.memory_layout
        self.validate_every = options.validate_every
        self.about = about
        self.checkpoints = Checkpoints(out / "checkpoints")
        self.step = 0
        self.seconds = 0.0
        self.sums: dict[str, float] = {}
        self.first: Batch | None = None
        self.throughput: Throughput | None = None
        self.record_threads: Callable[[int], None] | None = None  # if their number is to be chosen
        self.saved_at = time.monotonic()
        self.best = BestWeights(out / "best", run.selection_metric)
        self.skipped = SkippedMedia(out, run.batches, run.validation)

    def train(self, changed: list[str]) -> int:
        """Trains to the end; returns the exit status."""
        run = self.run
        torch.manual_seed(run.seed + distributed.get_process_rank())
        run.objective.to(self.compute.device).to(memory_format=MEMORY_FORMATS[self.layout])
        self.restore_checkpoint()
        if run.prepare is not None:
            run.prepare(self.compute.device)
        is_main = distributed.is_main_process()
        with InterruptHandler() as stop, Progress("step", run.steps, self.step, is_shown=is_main) as progress:
            for line in self.describe_run():
                progress.print_message(line)
            if self.step:
                progress.print_message(
                    f"{self.out}: resumes after step {self.step:,}{''.join(f', with {c}' for c in changed)}"
                )
            log = RunLog(self.out, self.step) if is_main else None
            try:
                signal = self.run_steps(stop, progress, log)
            except NotFiniteError as error:
                raise self.make_not_finite_error(error) from error
            finally:
                if log:
                    log.close()
            self.skipped.record_all()
            if signal:
                progress.print_message(
                    f"{self.out}: stopped after step {self.step:,} and saved; continue with --resume"
                )
                return EXIT_BY_SIGNAL + signal
            if is_main:
                self.write_model()
                self.skipped.report()
            progress.print_message(
                f"{self.out}: {run.steps:,} steps done; the model is in {self.out / 'model'}{self.best.format_note()}"
            )
        return EXIT_DONE

    def describe_run(self) -> list[str]:
        """Describes the model, the data and the device, as lines for the log."""
        run, model = self.run, self.run.objective.get_submodule("model")
        weights = sum(parameter.numel() for parameter in model.parameters())
        threads = torch.get_num_threads()
        where = f"{self.compute.device}, {self.compute.precision}, {threads} thread{'s' if threads > 1 else ''}"
        if any(isinstance(layer, nn.Conv2d) for layer in model.modules()):
            where += f", {self.layout.replace('_', ' ')}"
        processes = distributed.count_processes()
        epochs = run.steps * run.batches.batch_size / len(run.batches.samples)
        return [
            f"{self.out}: {type(model).__name__}, {weights:,} parameters, on {where}"
            + (f", {processes} processes" if processes > 1 else ""),
            f"{self.out}: {len(run.batches.samples):,} samples, batch size {run.batches.batch_size:,}, "
            f"{run.steps:,} steps ({epochs:.1f} epochs)",
        ]

    def estimate_time(self) -> str:
        """Estimates the remaining training time before any step was timed."""
        if self.throughput is None:
            return f"{self.out}: the expected time is estimated after the first step"
        samples = self.run.batches.batch_size / distributed.count_processes()
        operations = samples * self.throughput.sample_flops
        seconds = (self.run.steps - self.step) * self.throughput.estimate_seconds(samples)
        return (
            f"{self.out}: {format_rough_duration(seconds)}, estimated from {format_rough_count(operations)}FLOP a step"
        )

    def write_model(self) -> None:
        """Writes the model and the files that inference needs besides it."""
        lines = {line["split"]: line for line in read_metrics(self.out / "metrics.jsonl")}
        about = {**self.about, "steps": self.run.steps, "metrics": lines}
        if excluded := {**self.run.excluded, **self.skipped.count()}:
            about["excluded"] = excluded
        last = self.run.objective.get_submodule("model")
        if self.best.selection:
            save_model(
                load_model(self.best.folder), self.out / "model", about | {"best_checkpoint": self.best.selection}
            )
        else:
            save_model(last, self.out / "model", about)
        for name, data in self.run.files.items():
            write_bytes_atomically(self.out / "model" / name, data if isinstance(data, bytes) else data.read_bytes())

    def iterate_batches(self) -> Iterator[Batch]:
        """The remaining batches; the first is kept to count its operations."""
        done = self.step * self.run.batches.batch_size
        remaining = self.run.batches.iterate_batches(done, self.options.accumulate, self.compute.device)
        self.first = next(remaining, None) if self.step < self.run.steps else None
        return remaining if self.first is None else chain([self.first], remaining)

    def choose_threads(self, progress: Progress) -> None:
        """Chooses the number of compute threads, and records it in the run's config."""
        most = torch.get_num_threads()
        if self.record_threads is None or self.first is None or most == 1 or self.run.steps - self.step < MIN_STEPS:
            return
        threads, medians = choose_thread_count(make_step_timer(self.run.objective, self.first, self.compute), most)
        torch.set_num_threads(threads)
        self.record_threads(threads)
        if medians:
            progress.print_message(f"{self.out}: {describe_thread_choice(threads, medians)}")

    def measure_throughput(self) -> None:
        """Counts the operations of a sample of the first batch, before anything is computed or compiled."""
        if distributed.is_main_process() and self.first is not None:
            batch_samples = self.run.batches.batch_size // (distributed.count_processes() * self.options.accumulate)
            self.throughput = Throughput.measure(self.run.objective, self.first, batch_samples, self.compute)
        self.first = None

    def wrap_objective(self) -> nn.Module:
        """The objective, compiled and wrapped in DDP where requested."""
        objective = self.run.objective
        if self.options.compile == "on" or (self.options.compile == "auto" and self.compute.device.type == "cuda"):
            objective.compile()
        if distributed.count_processes() == 1:
            return objective
        unused = self.run.has_unused_parameters
        return DistributedDataParallel(objective, gradient_as_bucket_view=True, find_unused_parameters=unused)

    def reads_metrics(self, step: int) -> bool:
        """Whether metrics are read after this step."""
        validates = self.run.validation is not None and step % self.validate_every == 0
        return step == self.run.steps or step % self.options.log_every == 0 or validates

    def run_steps(self, stop: InterruptHandler, progress: Progress, log: RunLog | None) -> int:
        """Runs the remaining steps; returns the signal that stopped them, or 0."""
        run, options, remaining = self.run, self.options, range(self.step, self.run.steps)
        batches = self.iterate_batches()
        self.choose_threads(progress)
        self.measure_throughput()
        if remaining:
            progress.print_message(self.estimate_time())
        objective = self.wrap_objective()
        computing = (run.optimizer, run.learning_rate, remaining, self.compute, options.accumulate)
        began = time.monotonic()
        for read in train_steps(objective, batches, *computing, reads_metrics=self.reads_metrics):
            for values in read:
                self.add_metrics(values, (time.monotonic() - began) / len(read))
            self.step += len(read)
            progress.show(self.step)
            last = self.step == run.steps
            if last or self.step % options.log_every == 0:
                self.log_metrics(progress, log)
            if run.validation and (last or self.step % self.validate_every == 0):
                self.validate(log)
            signal = stop.get_agreed_signal(self.compute.device)
            if last or signal or time.monotonic() - self.saved_at > 60 * options.checkpoint_minutes:
                self.save_checkpoint()
            if signal and not last:
                return signal
            began = time.monotonic()
        return 0

    def add_metrics(self, values: dict[str, float], seconds: float) -> None:
        """Adds a step to the sums from which the log computes means."""
        self.seconds += seconds
        for name, value in {**values, "seconds": seconds, "steps": 1.0}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def log_metrics(self, progress: Progress, log: RunLog | None) -> None:
        """Writes one line of the log, and updates the progress."""
        steps, seconds = self.sums.pop("steps"), self.sums.pop("seconds")
        means = distributed.all_reduce_mean({k: v / steps for k, v in self.sums.items()}, self.compute.device)
        self.sums = {}
        metrics = means | {
            "learning_rate": self.run.learning_rate(self.step - 1),
            "samples_per_second": steps * self.run.batches.batch_size / seconds,
            "seconds": self.seconds,
        }
        if self.throughput is not None:
            metrics["mfu"] = self.throughput.compute_mfu(metrics["samples_per_second"] / distributed.count_processes())
        progress.show(self.step, format_metrics_note(metrics))
        if log:
            log.write("train", self.step, metrics)

    def validate(self, log: RunLog | None) -> None:
        assert self.run.validation is not None
        metrics = validate_objective(
            self.run.objective, self.run.validation.iterate_batches(device=self.compute.device), self.compute
        )
        if self.run.on_validation is not None:
            self.run.on_validation(metrics)
        if log:
            log.write("validation", self.step, metrics | {"seconds": self.seconds})
            self.best.save_if_better(self.run.objective.get_submodule("model"), self.step, metrics)

    def save_checkpoint(self) -> None:
        """Writes a checkpoint in the main process; the other processes only differ in their random states."""
        self.saved_at = time.monotonic()
        if not distributed.is_main_process():
            return
        self.skipped.record()
        rng_states = {"cpu": torch.get_rng_state()}
        if self.compute.device.type == "cuda":
            rng_states["cuda"] = torch.cuda.get_rng_state(self.compute.device)
        self.checkpoints.save(
            TrainingState(
                step=self.step,
                samples=self.step * self.run.batches.batch_size,
                seconds=self.seconds,
                objective=self.run.objective.state_dict(),
                optimizer=self.run.optimizer.state_dict(),
                rng_states=rng_states,
                fingerprint=self.run.fingerprint,
                sums=self.sums,
            )
        )

    def restore_checkpoint(self) -> None:
        """Restores the training state of the last checkpoint, if there is one."""
        state = self.checkpoints.load()
        if state is None:
            return
        if state.fingerprint != self.run.fingerprint:
            raise RecipeError(f"{self.out} was trained on other data ({state.fingerprint}, not {self.run.fingerprint})")
        if state.step > self.run.steps:
            raise RecipeError(f"{self.out} has done {state.step} steps already, more than --steps {self.run.steps}")
        self.step, self.seconds, self.sums = state.step, state.seconds, dict(state.sums)
        self.run.objective.load_state_dict(state.objective)
        self.run.optimizer.load_state_dict(state.optimizer)
        if distributed.is_main_process():
            torch.set_rng_state(state.rng_states["cpu"])
            if self.compute.device.type == "cuda" and "cuda" in state.rng_states:
                torch.cuda.set_rng_state(state.rng_states["cuda"], self.compute.device)

    def make_not_finite_error(self, error: NotFiniteError) -> FloatingPointError:
        """Writes the keys of the step's samples to not_finite.json."""
        keys, path = distributed.all_gather_items(error.keys), self.out / "not_finite.json"
        if distributed.is_main_process():
            write_bytes_atomically(path, encode_settings_json({"step": error.step, "error": str(error), "keys": keys}))
        return FloatingPointError(
            f"{error}; the keys of its samples are in {path}; a lower --learning-rate or --precision fp32 may help"
        )
