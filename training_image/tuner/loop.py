"""Training, told from top to bottom by `train`."""

import math
from collections.abc import Callable, Sequence

import torch

from tuner.artifact import TrainingSummary, write_artifact
from tuner.checkpoint import CheckpointStore, random_state, set_random_state
from tuner.contract import Container, Say, read_training_job
from tuner.data import Example
from tuner.failure import Failure, is_out_of_memory
from tuner.model import load_base, pick_device, restore, snapshot
from tuner.objective import part_losses, row_ids, split_step
from tuner.optimise import clip_gradients, learning_rate_at, load_optimizer, set_learning_rate
from tuner.progress import Stopwatch, peak_memory_gib
from tuner.run import Run, identity_of, prepare
from tuner.signals import Stopped, StopRequest


def train(container: Container, stop: StopRequest, say: Say, clock: Callable[[], float]) -> TrainingSummary:
    """Train an adapter as the job asks and leave it in `container.model`.

    Args:
        container: the job's tree.
        stop: turns true when the process is asked to end.
        say: prints a line to the job's log.
        clock: seconds, monotonic.

    Raises:
        Failure: with the class that the ladder reads.
        Stopped: after a checkpoint and the best adapter so far were written.
    """
    job = read_training_job(container)
    seed_everything(job.recipe.training.seed)
    say("phase=loading_base_model")
    base = load_base(container.channel("base"), job.recipe.quantization, pick_device())
    run = prepare(job, base, container, say)
    store = CheckpointStore(container.checkpoints, identity_of(job, base))
    resume(run, store, say)
    run.progress.phase("training")
    stopped_by = "end"
    watch, saved_at = Stopwatch(clock), clock()
    try:
        if not run.state.eval_curve:
            evaluate(run, stop)
        watch.lap()
        while run.state.step < run.schedule.steps:
            take_step(run, watch, stop)
            if run.is_evaluation_due():
                evaluate(run, stop)
                watch.lap()
                if run.has_stopped_improving():
                    stopped_by = "early_stopping"
                    break
            due = run.state.step % job.config.checkpoint_every_steps == 0
            if due or clock() - saved_at >= job.config.checkpoint_every_s:
                store.save(run.checkpoint())
                saved_at = clock()
                watch.lap()
    except Stopped:
        run.progress.phase("stopping")
        store.save(run.checkpoint())
        if run.state.step:
            export(run, container, "time_limit")
        raise
    store.save(run.checkpoint())
    return export(run, container, stopped_by)


def seed_everything(seed: int) -> None:
    """One seed for every generator, and kernels that give the same result twice where they exist."""
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(mode=True, warn_only=True)


def resume(run: Run, store: CheckpointStore, say: Say) -> None:
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
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # Outside the except block: its traceback would keep the failed pass's tensors alive.
        halve_micro_batch(run, examples)
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


def accumulate(run: Run, examples: Sequence[Example], stop: StopRequest) -> float:
    """Gradients of one step, summed over micro-batches, and its mean loss.

    Raises:
        Failure: NAN_LOSS.
        Stopped: between micro-batches.
    """
    run.optimizer.zero_grad(set_to_none=True)
    weight, total = run.objective.weight(examples), 0.0
    for part in split_step(
        examples,
        run.state.micro_batch_tokens,
        packing=run.recipe.training.packing,
        sharing=run.may_share,
        hidden_size=run.base.hidden_size,
    ):
        stop.check()
        loss = part_losses(run.objective, run.base, part, examples).sum() / weight
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return total


def halve_micro_batch(run: Run, examples: Sequence[Example]) -> None:
    """Same effective batch in smaller passes.

    Raises:
        Failure: OOM_GPU where one row alone does not fit.
    """
    longest = max(example.length for example in examples)
    if run.state.micro_batch_tokens <= longest:
        raise Failure(
            "OOM_GPU",
            f"a pass of {longest} tokens does not fit; lower max_seq_len or take a larger instance",
        )
    run.optimizer.zero_grad(set_to_none=True)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    run.state.micro_batch_tokens = max(run.state.micro_batch_tokens // 2, longest)


def evaluate(run: Run, stop: StopRequest) -> None:
    """Measure the held-out loss and keep the adapter where it is the best so far.

    Raises:
        Failure: NAN_LOSS.
        Stopped: between micro-batches.
    """
    if not run.holdout:
        return
    was_training = run.base.causal.training
    run.base.causal.eval()
    total = 0.0
    with torch.no_grad():
        for part in split_step(
            run.holdout,
            run.state.micro_batch_tokens,
            packing=False,
            sharing=run.base.can_share,
            hidden_size=run.base.hidden_size,
        ):
            stop.check()
            total += float(part_losses(run.objective, run.base, part, run.holdout).sum())
    run.base.causal.train(was_training)
    loss, state = round(total / run.objective.weight(run.holdout), 6), run.state
    best = state.best_eval_loss
    state.eval_curve.append((state.step, loss))
    if state.step and (best is None or loss < best):
        state.best_step, state.worse_evaluations = state.step, 0
        run.best = snapshot(run.parameters)
    elif state.step:
        state.worse_evaluations += 1
    run.progress.evaluation(state.step, loss)


def export(run: Run, container: Container, stopped_by: str) -> TrainingSummary:
    """Write the best adapter (the current one where none was measured) and the summary."""
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
        best_step=state.best_step or state.step,
        best_eval_loss=state.best_eval_loss,
        first_eval_loss=next((loss for step, loss in state.eval_curve if step == 0), None),
        loss_curve=tuple(state.loss_curve),
        eval_curve=tuple(state.eval_curve),
        stopped_by=stopped_by,
    )
    adapter = {
        name: tensor.detach().to("cpu").contiguous()
        for name, tensor in sorted(get_peft_model_state_dict(run.adapted).items())
    }
    write_artifact(
        container.model,
        job=run.job,
        base=run.base.manifest,
        adapter_config=run.adapted.peft_config["default"].to_dict(),
        adapter=adapter,
        summary=summary,
        chat_template=run.base.codec.template,
    )
    restore(run.parameters, current)
    container.output_data.mkdir(parents=True, exist_ok=True)
    (container.output_data / "training_summary.json").write_text(summary.model_dump_json(indent=1))
    return summary
