"""The verdicts of the recipe's judge: asked for once, kept, and never more than what the recipe allows to spend."""

import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, Final

from botocore.exceptions import BotoCoreError, ClientError

from dropforge_core.aws import Bucket, Converse, error_code
from dropforge_core.contracts import EvaluationSetup
from dropforge_core.evaluation.join import Joined
from dropforge_core.evaluation.judge import (
    JudgeRecord,
    Order,
    Said,
    most_usd,
    read_answer,
    to_ask,
    usd,
)
from dropforge_core.layout import RunLayout
from dropforge_core.recipe import Recipe
from judging import judge_record, judged_pairs
from runtime import logger

AT_ONCE: Final = 8
"""Requests that are open at the same time."""
KEPT_EVERY: Final = 32
"""Verdicts after which what is known is written down: an end of the function costs no more than these."""
SECONDS: Final = 400.0
"""Of asking, at most: the function has 900 for everything, and a request that hangs is tried again."""


def ask_judge(
    bucket: Bucket, layout: RunLayout, setup: EvaluationSetup, recipe: Recipe, joined: Joined
) -> float:
    """Ask for every verdict that is not kept yet, and keep it in `evaluation/judge.json`. Returns the price of all of them.

    Whatever stands in the way is kept as the reason, and the decision goes on without a judge: a rule that rests on it
    does not pass then.
    """
    judge = recipe.evaluation.judge
    if judge is None:
        return 0.0
    pairs = judged_pairs(bucket, layout, setup, judge, joined)
    said = list(judge_record(bucket, layout).said)
    left = to_ask(pairs, judge, said)
    model, until, stopped = Converse(), time.monotonic() + SECONDS, ""
    with ThreadPoolExecutor(AT_ONCE) as threads:
        while not stopped and (batch := tuple(islice(left, KEPT_EVERY))):
            if time.monotonic() > until:
                stopped = f"the time for asking ({SECONDS:g} s) was over"
                break
            spent = usd(judge, said)
            if spent + most_usd(judge, [request for _, request in batch]) > judge.max_cost_usd:
                stopped = (
                    f"{len(said)} verdicts cost ${spent:.2f}, and more could pass evaluation.judge.max_cost_usd, which is "
                    f"${judge.max_cost_usd:.2f}"
                )
                break
            for found in threads.map(lambda one: _ask(model, *one), batch):
                if isinstance(found, Said):
                    said.append(found)
                else:
                    stopped = found
            _keep(bucket, layout, said, stopped)
    _keep(bucket, layout, said, stopped)
    logger.info("the judge was asked", verdicts=len(said), stopped=stopped)
    return usd(judge, said)


def _ask(model: Converse, order: Order, request: dict[str, Any]) -> Said | str:
    """The verdict, or why there is none; the service's message is left out, which may quote the request."""
    try:
        return read_answer(request, order, model.ask(request))
    except ClientError as error:
        return f"Bedrock answered {error_code(error)}"
    except BotoCoreError as error:
        return f"Bedrock could not be asked ({type(error).__name__})"


def _keep(bucket: Bucket, layout: RunLayout, said: list[Said], stopped: str) -> None:
    record = JudgeRecord(stopped=stopped, said=tuple(said))
    bucket.write(layout.judge, record.model_dump_json(indent=2).encode())
