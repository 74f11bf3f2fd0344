"""Training, told from top to bottom by `train`."""

import math
from collections.abc import Callable

import torch

from tuner.artifact import Provenance, TrainingSummary, write_artifact
from tuner.checkpoint import CheckpointStore, random_state, set_random_state
from tuner.contract import Container, Say, TrainingJob, read_training_job
from tuner.distributed.ranks import ALONE, Checkpoints, Ranks
from tuner.failure import Failure, is_out_of_memory
from tuner.model import LanguageModel, load_base, restore, snapshot
from tuner.objective import row_ids
from tuner.optimise import clip_gradients, learning_rate_at, load_optimizer, set_learning_rate
from tuner.passes import accumulate, make_room, measure, rehearse
from tuner.progress import Stopwatch, peak_memory_gib
from tuner.residency import Resident, settle
from tuner.run import Run, identity_of, prepare
from tuner.signals import Stopped, StopRequest
from tuner.tracking import replay


def train(
    container: Container,
    stop: StopRequest,
    say: Say,
    clock: Callable[[], float],
    ranks: Ranks = ALONE,
) -> TrainingSummary:
    """Train an adapter as the job asks and leave it in `container.model`.

    Args:
        container: the job's tree.
        stop: turns true when the process is asked to end.
        say: prints a line to the job's log.
        clock: seconds, monotonic.
        ranks: the processes that train together.

    Raises:
        Failure: with the class that the ladder reads.
        Stopped: after a checkpoint and the best adapter so far were written.
    """
    with stop.at_once():
        job = read_training_job(container)
        seed_everything(job.recipe.training.seed)
        say("phase=loading_base_model")
        base, residency = ranks.load(lambda device: load(container, job, device, say, ranks))
        say(f"residency={residency}")
        run = prepare(job, base, residency, container, say, ranks)
        store = ranks.checkpoints(CheckpointStore(container.checkpoints, identity_of(job, base)))
        resume(run, store, say)
        replay(run.progress.trackers, {"loss": run.state.loss_curve, "eval_loss": run.state.eval_curve})
    run.progress.phase("training")
    try:
        stopped_by = fit(run, store, ranks.stop(stop), clock)
    except Stopped:
        run.progress.phase("stopping")
        store.save(run.checkpoint())
        if run.state.step:
            export(run, container, "time_limit")
        run.progress.close("SCHEDULED")
        raise
    except Exception:
        run.progress.close("FAILED")
        raise
    store.save(run.checkpoint())
    summary = export(run, container, stopped_by)
    run.progress.close("FINISHED")
    return summary


def load(
    container: Container, job: TrainingJob, device: torch.device, say: Say, ranks: Ranks
) -> tuple[LanguageModel, Resident]:
    """The base on a device, in the residency that was asked for.

    Raises:
        Failure: BASE_MODEL, OOM_GPU or CODE.
    """
    recipe = job.recipe
    if ranks.lockstep and recipe.adapter.dora:
        raise Failure(
            "CODE",
            "parallelism fsdp can't train adapter.dora: its norms need whole weights; take parallelism dp on an instance "
            "whose GPUs hold the base, or leave dora out",
        )
    base = load_base(
        container.channel("base"), recipe.quantization, device, recipe.chat_template, say, onto=ranks.device
    )
    wish = job.hyperparameters.residency or job.config.residency
    tight = job.config.gradient_checkpointing or ranks.lockstep
    return base, settle(wish, base.causal, device, tight=tight)


def fit(run: Run, store: Checkpoints, stop: StopRequest, clock: Callable[[], float]) -> str:
    """Steps, measurements and checkpoints up to the end; answers why it ended.

    A resumed run enters where the checkpoint left off: what its last step still owes is made up first.

    Raises:
        Failure: NAN_LOSS or OOM_GPU.
        Stopped: with state, parameters and generators as they were after the last whole step.
    """
    config, saved_step = run.job.config, run.state.step
    rehearse(run, stop)
    watch, saved_at = Stopwatch(clock), clock()
    while True:
        if run.owes_evaluation():
            evaluate(run, stop)
            watch.lap()
        if run.has_stopped_improving():
            return "early_stopping"
        if run.state.step >= run.schedule.steps:
            return "end"
        due = run.state.step % config.checkpoint_every_steps == 0 and run.state.step != saved_step
        if due or clock() - saved_at >= config.checkpoint_every_s:
            store.save(run.checkpoint())
            saved_step, saved_at = run.state.step, clock()
            watch.lap()
        take_step(run, watch, stop)


def seed_everything(seed: int) -> None:
    """One seed for every generator, and kernels that give the same result twice where they exist."""
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    # Or every buffer is filled before it is written: each dequantised weight, in each pass, once more.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def resume(run: Run, store: Checkpoints, say: Say) -> None:
    """Go on from the newest whole checkpoint, where there is one."""
    found = store.newest(say)
    if found is None:
        return
    restore(run.parameters, dict(found.adapter))
    load_optimizer(run.optimizer, run.parameters, found.optimizer)
    set_random_state(found.rng)
    limit = min(run.state.micro_batch_tokens, found.state.micro_batch_tokens)
    run.state, run.best = found.state, dict(found.best)
    run.state.micro_batch_tokens = limit
    say(f"resumed=step-{run.state.step:08d}")


def take_step(run: Run, watch: Stopwatch, stop: StopRequest) -> None:
    """One optimizer step over its examples; where memory runs out, again in halves.

    Raises:
        Failure: NAN_LOSS or OOM_GPU.
        Stopped: before the parameters were touched.
    """
    training, step = run.recipe.training, run.state.step + 1
    examples = [run.examples[index] for index in run.schedule.examples_of(step)]
    before = random_state()
    while True:
        try:
            loss = accumulate(run, examples, stop)
            break
        except Stopped:
            # Dropout of the passes that were done must not count: the resumed run does the step again.
            set_random_state(before)
            raise
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # Outside the except block: its traceback would keep the failed pass's tensors alive.
        make_room(run, examples)
        set_random_state(before)
    norm = clip_gradients(run.parameters.values(), training.max_grad_norm)
    if not math.isfinite(norm):
        raise Failure("NAN_LOSS", f"the gradient over these rows is not finite: {row_ids(examples)}")
    rate = learning_rate_at(
        step, run.schedule.steps, training.learning_rate, training.warmup_ratio, training.schedule
    )
    set_learning_rate(run.optimizer, rate)
    run.optimizer.step()
    state, tokens, seconds = run.state, sum(example.length for example in examples), watch.lap()
    state.step, state.tokens, state.seconds = step, state.tokens + tokens, state.seconds + seconds
    state.loss_curve.append((step, round(loss, 6)))
    run.progress.step(
        step,
        epoch=run.schedule.epoch_at(step),
        loss=loss,
        grad_norm=norm,
        learning_rate=rate,
        tokens_per_s=tokens / max(seconds, 1e-9),
        eta_s=(run.schedule.steps - step) * state.seconds / step,
    )


def evaluate(run: Run, stop: StopRequest) -> None:
    """Measure the held-out loss and keep the adapter where it is the best so far.

    Raises:
        Failure: NAN_LOSS.
        Stopped: between micro-batches.
    """
    was_training = run.base.causal.training
    run.base.causal.eval()
    try:
        loss = round(measure_in_halves(run, stop), 6)
    finally:
        run.base.causal.train(was_training)
    state = run.state
    best = state.best_eval_loss
    state.eval_curve.append((state.step, loss))
    if state.step and (best is None or loss < best):
        state.best_step, state.worse_evaluations = state.step, 0
        run.best = snapshot(run.parameters)
    elif state.step:
        state.worse_evaluations += 1
    run.progress.evaluation(state.step, loss)


def measure_in_halves(run: Run, stop: StopRequest) -> float:
    """The held-out loss, in smaller passes where memory runs out.

    Raises:
        Failure: NAN_LOSS or OOM_GPU.
        Stopped: between micro-batches.
    """
    while True:
        try:
            return measure(run, stop)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        make_room(run, run.holdout)


def export(run: Run, container: Container, stopped_by: str) -> TrainingSummary:
    """Write the best adapter (the current one where none was measured) and the summary, if this process leads."""
    from peft import get_peft_model_state_dict  # noqa: PLC0415  # see model.attach_adapter

    current = snapshot(run.parameters)
    if run.best:
        restore(run.parameters, run.best)
    state = run.state
    summary = TrainingSummary(
        steps=state.step,
        epochs=round(run.schedule.epoch_at(state.step), 4),
        tokens=state.tokens,
        seconds=round(state.seconds, 3),
        tokens_per_s=round(state.tokens / max(state.seconds, 1e-9), 1),
        peak_memory_gib=round(peak_memory_gib(), 3),
        best_step=state.best_step if run.best else state.step,
        best_eval_loss=state.best_eval_loss,
        first_eval_loss=next((loss for step, loss in state.eval_curve if step == 0), None),
        loss_curve=tuple(state.loss_curve),
        eval_curve=tuple(state.eval_curve),
        stopped_by=stopped_by,
        device=run.base.device.type,
    )
    if not run.ranks.leads:
        restore(run.parameters, current)
        return summary
    adapter = {
        name: tensor.detach().to("cpu").contiguous()
        for name, tensor in sorted(get_peft_model_state_dict(run.adapted).items())
    }
    write_artifact(
        container.model,
        Provenance(
            job=run.job,
            base=run.base.manifest,
            chat_template=run.base.codec.template,
            residency=run.residency,
            device=run.base.device.type,
            micro_batch_tokens=state.micro_batch_tokens,
            data_order=run.schedule.digest,
            quantiser=run.base.quantiser,
        ),
        adapter_config=run.adapted.peft_config["default"].to_dict(),
        adapter=adapter,
        summary=summary,
    )
    restore(run.parameters, current)
    container.output_data.mkdir(parents=True, exist_ok=True)
    (container.output_data / "training_summary.json").write_text(summary.model_dump_json(indent=1))
    return summary
