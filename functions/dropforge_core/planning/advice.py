"""What would fit where no allowed type does: the cheapest type, and the longest rows, in numbers."""

from collections.abc import Iterator
from typing import Final

from dropforge_core.planning.catalogue import Catalogue, Instance
from dropforge_core.planning.duration import Workload
from dropforge_core.planning.memory import MARGIN, evaluation_memory
from dropforge_core.planning.parallel import share

SHORTEST_ROWS: Final = 256
"""Shorter rows than these are no advice."""


def advice(work: Workload, table: Catalogue) -> str:
    """Sentences that begin with a blank; empty where the table has nothing that helps."""
    return "".join(f" {said}" for said in (*_for_evaluation(work, table), *_for_training(work, table)))


def _for_evaluation(work: Workload, table: Catalogue) -> Iterator[str]:
    need = evaluation_memory(work.shape, work.recipe).gib

    def holds(one: Instance) -> bool:
        return one.transform and need <= MARGIN * one.gpu.memory_gib

    allowed = work.recipe.compute.evaluation_instance_types
    if any(found.usd_hour is not None and holds(found) for found in _known(allowed, table)):
        return
    suiting = [one for one in _priced(table) if holds(one)]
    if suiting:
        yield f"For the evaluation {_named(suiting[0])} would do."
    else:
        yield "Batch transform has no GPU that large: take a smaller base model."


def _for_training(work: Workload, table: Catalogue) -> Iterator[str]:
    allowed = _known(work.recipe.compute.instance_types, table)
    if any(_trains(work, one) for one in allowed):
        return
    suiting = next((one for one in _priced(table) if _trains(work, one)), None)
    if suiting is not None:
        yield f"For training {_named(suiting)} would do."
    length = work.recipe.training.max_seq_len // 2
    while length >= SHORTEST_ROWS:
        shorter = _with_rows_of(work, length)
        if held := next((one for one in allowed if _trains(shorter, one)), None):
            yield f"With training.max_seq_len {length} {held.type} would do."
            return
        length //= 2


def _known(names: tuple[str, ...], table: Catalogue) -> list[Instance]:
    return [found for found in map(table.find, names) if found is not None]


def _priced(table: Catalogue) -> list[Instance]:
    """The cheapest first."""
    found = [one for one in _known(tuple(row.type for row in table.instances), table) if one.usd_hour]
    return sorted(found, key=lambda one: one.usd_hour or 0.0)


def _trains(work: Workload, one: Instance) -> bool:
    return one.gpu.runs_image and share(work.shape, work.recipe, one).layout.micro_batch_tokens is not None


def _with_rows_of(work: Workload, length: int) -> Workload:
    training = work.recipe.training.model_copy(update={"max_seq_len": length})
    return work.model_copy(update={"recipe": work.recipe.model_copy(update={"training": training})})


def _named(one: Instance) -> str:
    return f"{one.type} ({one.gpu_name}, {one.gpu.memory_gib:.0f} GiB each, ${one.usd_hour:g} an hour)"
