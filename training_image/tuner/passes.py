"""Passes through the model that must fit into memory: the heaviest first, and in halves where they don't."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import torch

from tuner.batching import MicroBatch
from tuner.checkpoint import random_state, set_random_state
from tuner.data import Example
from tuner.failure import Failure, is_out_of_memory
from tuner.likelihood import Batch, lay_out
from tuner.model import recompute_activations
from tuner.objective import Part, part_losses, split_step
from tuner.run import Run, first_micro_batch
from tuner.signals import StopRequest


def rehearse(run: Run, stop: StopRequest) -> None:
    """Run the heaviest passes forward and backward before any step is paid for; halve until they fit.

    Leaves parameters, optimizer and random states as they were, so the run's bytes don't depend on it.

    Raises:
        Failure: OOM_GPU where one row alone does not fit, NAN_LOSS where the base itself gives no number.
        Stopped: between passes.
    """
    before = random_state()
    # What Adam will hold from the first step on.
    moments = [torch.empty_like(p) for p in run.parameters.values() for _ in "mv" if not run.optimizer.state]
    try:
        while not _fits(run, stop):
            make_room(run, run.examples)
    finally:
        run.optimizer.zero_grad(set_to_none=True)
        set_random_state(before)
        del moments


def _fits(run: Run, stop: StopRequest) -> bool:
    try:
        for part, examples, counts in run.ranks.passes(list(heaviest_passes(run)), stop, None):
            with run.ranks.attempt():
                losses = part_losses(run.objective, run.base, part, examples)
                (losses.sum() * counts).backward()  # type: ignore[no-untyped-call]
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def heaviest_passes(run: Run) -> Iterator[tuple[Part, Sequence[Example]]]:
    """The pass with the most tokens and the one with the most attention, with the examples they index.

    Candidates are a step of the longest rows of all, and the next real step, which shares its beginning
    as real steps do. Both are padded up to the bound that every pass keeps, so none is heavier.
    """
    found: list[tuple[Part, Sequence[Example]]] = []
    for examples in (_longest(run), _next_step(run)):
        found += [(part, examples) for part in training_passes(run, examples)]
    most_tokens = max(found, key=lambda one: one[0].shape.tokens)
    most_attention = max(found, key=lambda one: len(one[0].shape.rows) * one[0].shape.width ** 2)
    bound = min(run.state.micro_batch_tokens, int(run.schedule.lengths.sum()))
    for part, owners in [most_tokens] + [most_attention] * (most_attention is not most_tokens):
        yield replace(part, shape=_widened(part.shape, bound)), owners


def _widened(shape: MicroBatch, tokens: int) -> MicroBatch:
    if shape.end_to_end is not None:
        return replace(shape, end_to_end=max(shape.end_to_end, tokens))
    width = shape.shared + (tokens - shape.shared) // len(shape.rows)
    return replace(shape, width=max(shape.width, width))


def _longest(run: Run) -> list[Example]:
    """Longest rows, as many as fill a step."""
    chosen: list[Example] = []
    tokens = 0
    for example in sorted(run.examples, key=lambda example: -example.length):
        chosen.append(example)
        tokens += example.length
        if tokens >= run.recipe.training.effective_batch_tokens:
            break
    return chosen


def _next_step(run: Run) -> list[Example]:
    step = min(run.state.step + 1, run.schedule.steps)
    return [run.examples[index] for index in run.schedule.examples_of(step)]


def training_passes(run: Run, examples: Sequence[Example]) -> list[Part]:
    """The passes of one step at the micro-batch that fits; none where there are no examples."""
    if not examples:
        return []
    return split_step(
        examples,
        run.state.micro_batch_tokens,
        packing=run.layouts.end_to_end or run.layouts.packed,
        sharing=run.may_share,
        hidden_size=run.base.hidden_size,
        end_to_end=run.layouts.end_to_end,
    )


def accumulate(run: Run, examples: Sequence[Example], stop: StopRequest) -> float:
    """Gradients of one step, summed over micro-batches, and its mean loss.

    Raises:
        Failure: NAN_LOSS.
        Stopped: between micro-batches.
    """
    run.optimizer.zero_grad(set_to_none=True)
    run.ranks.reseed(run.recipe.training.seed, run.state.step)
    weight, total = run.objective.weight(examples), 0.0
    mine = run.ranks.share(examples)
    parts = training_passes(run, mine)
    passes = [(part, mine) for part in parts]
    with laid_out_ahead(parts, run.base.pad_id) as laid_out:
        for part, owners, counts in run.ranks.passes(passes, stop, lambda: _spare(run, examples)):
            with run.ranks.attempt():
                losses = part_losses(run.objective, run.base, part, owners, laid_out(part))
                loss = losses.sum() * counts / weight
                loss.backward()  # type: ignore[no-untyped-call]
                total += float(loss.detach())
    return run.ranks.add_gradients(run.parameters, total)


@contextlib.contextmanager
def laid_out_ahead(parts: Sequence[Part], pad_id: int) -> Iterator[Callable[[Part], Batch | None]]:
    """Lay the next pass out on the host while the device is at one; answers what was laid out for a pass."""
    with ThreadPoolExecutor(1, thread_name_prefix="batch") as maker:
        waiting = iter(parts)
        made: dict[int, Future[Batch]] = {}

        def start() -> None:
            if (part := next(waiting, None)) is not None:
                made[id(part)] = maker.submit(lay_out, part.documents, part.shape, pad_id)

        def laid_out(part: Part) -> Batch | None:
            found = made.pop(id(part), None)
            batch = found.result() if found else None
            start()
            return batch

        start()
        yield laid_out


def _spare(run: Run, examples: Sequence[Example]) -> tuple[Part, Sequence[Example]]:
    """The lightest pass that can be made, for a process that has none left and must keep step."""
    shortest = [min(examples, key=lambda example: example.length)]
    return training_passes(run, shortest)[0], shortest


def measure(run: Run, stop: StopRequest) -> float:
    """Mean loss of the hold-out, without gradients; the model must be in evaluation mode.

    Raises:
        Failure: NAN_LOSS.
        Stopped: between micro-batches.
    """
    total = 0.0
    mine = run.ranks.share(run.holdout)
    passes = [(part, mine) for part in _measuring_passes(run, mine)]
    with torch.no_grad():
        for part, owners, counts in run.ranks.passes(passes, stop, lambda: _spare(run, run.holdout)):
            with run.ranks.attempt():
                total += float(part_losses(run.objective, run.base, part, owners).sum()) * counts
    return run.ranks.total(total) / run.objective.weight(run.holdout)


def _measuring_passes(run: Run, examples: Sequence[Example]) -> list[Part]:
    if not examples:
        return []
    return split_step(
        examples,
        run.state.micro_batch_tokens,
        packing=run.layouts.end_to_end,
        sharing=run.layouts.shared,
        hidden_size=run.base.hidden_size,
        end_to_end=run.layouts.end_to_end,
    )


def make_room(run: Run, examples: Sequence[Example]) -> None:
    """Same effective batch in passes of half the size; where one row alone does not fit, activations are recomputed.

    The plan asks for recomputation where it sees the need. Where it reckoned with more memory than there is, the job
    takes a third longer and gives the same losses.

    Raises:
        Failure: OOM_GPU where one row alone does not fit even so.
    """
    longest = max(example.length for example in examples)
    run.optimizer.zero_grad(set_to_none=True)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if run.state.micro_batch_tokens > longest:
        run.state.micro_batch_tokens = max(run.state.micro_batch_tokens // 2, longest)
    elif not run.recomputes and run.base.causal.supports_gradient_checkpointing:
        recompute_activations(run.base)
        run.recomputes = True
        run.state.micro_batch_tokens = first_micro_batch(run.job, run.base)
        run.progress.note("phase=recomputing a row alone did not fit with all its activations")
    else:
        raise Failure(
            "OOM_GPU",
            f"a pass of {longest} tokens does not fit; lower max_seq_len or take a larger instance",
        )
    run.progress.note(f"micro_batch_tokens={run.state.micro_batch_tokens}")
