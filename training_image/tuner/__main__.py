"""`python -m tuner {train|serve|cache-base-model|merge}`: the image's entry point and PID 1."""

import argparse
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tuner.signals import EXIT_TERMINATED, Stopped, StopRequest

if TYPE_CHECKING:
    from tuner.contract import Container

DEFAULTS: Final = {
    # Threads of torch that wait by spinning starve each other where cores are shared: 124 s became 3 s.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Kernels that give the same sums twice (CUDA's requirement, see torch.use_deterministic_algorithms).
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    # Passes differ in length: in blocks of fixed size what one leaves free is too short for the next.
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    # Bars of carriage returns are noise in a job's log.
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
"""Set before torch is imported, where the environment does not say otherwise."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. 0 done, 1 failed with `output/failure` (or `output/message`), 143 ended by SIGTERM."""
    options = parse(arguments)
    # Before the first import that takes long: to PID 1 a SIGTERM that nobody handles is no signal at all.
    with StopRequest() as stop:
        from tuner.contract import Container  # noqa: PLC0415  # see above
        from tuner.distributed.launch import failure_file  # noqa: PLC0415
        from tuner.failure import classify, record, trail  # noqa: PLC0415

        container = Container(options.root)
        try:
            run_verb(options, container, stop)
        except Stopped:
            return EXIT_TERMINATED
        except Exception as error:  # noqa: BLE001  # the process's last line: all must become a reason
            traceback.print_exc()
            failure = classify(error)
            reason = container.message if options.verb == "cache-base-model" else failure_file(container)
            record(reason, failure, trail(error))
            sys.stderr.write(f"{failure}\n")
            return 1
    return 0


def run_verb(options: argparse.Namespace, container: "Container", stop: StopRequest) -> None:
    """Do what was asked. Imports go by verb: caching a base must not wait for torch."""
    from tuner.privileges import drop_root  # noqa: PLC0415

    if options.verb in {"serve", "cache-base-model"}:
        drop_root()
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    if options.verb == "train":
        run_training(container, stop)
    elif options.verb == "serve":
        from tuner.serve import serve  # noqa: PLC0415

        serve(container, stop, say)
    elif options.verb == "merge":
        from tuner.merge import merge  # noqa: PLC0415

        merge(options.base, options.adapter, options.output, stop, say, weights=options.weights)
    else:
        from tuner.cache_base_model import cache_base_model  # noqa: PLC0415

        cache_base_model(options.source, options.destination, stop, say)


def run_training(container: "Container", stop: StopRequest) -> None:
    """Train alone, as one of several processes, or as the host's agent that starts them."""
    from tuner.distributed.cluster import is_rank, processes_per_host, read_cluster  # noqa: PLC0415

    if is_rank():
        from tuner.distributed.worker import train_together  # noqa: PLC0415

        train_together(container, stop, say, time.monotonic)
        return
    with stop.at_once():
        cluster, processes = read_cluster(container), processes_per_host()
    if len(cluster.hosts) * processes > 1:
        from tuner.distributed.launch import launch  # noqa: PLC0415

        launch(container, cluster, processes, stop, say)
    else:
        from tuner.loop import train  # noqa: PLC0415

        train(container, stop, say, time.monotonic)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tuner")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--root", type=Path, default=Path("/opt/ml"), help="the container tree")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("train", parents=[shared], help="train an adapter")
    verbs.add_parser("serve", parents=[shared], help="answer batch transform requests")
    cache = verbs.add_parser("cache-base-model", parents=[shared], help="copy a base model into the bucket")
    cache.add_argument("--source", required=True, help="hub:<repo>@<revision> or s3://<bucket>/<prefix>/")
    cache.add_argument("--destination", required=True, help="s3://<bucket>/base-models/<name>/<revision>/")
    merge = verbs.add_parser("merge", parents=[shared], help="write base and adapter as one model folder")
    merge.add_argument("--base", type=Path, required=True, help="the base model's cached copy")
    merge.add_argument("--adapter", type=Path, required=True, help="model.tar.gz of a run, or its folder")
    merge.add_argument("--output", type=Path, required=True, help="a new folder")
    merge.add_argument("--weights", choices=("bf16", "fp32", "nf4"), default="bf16", help="nf4 is refused")
    return parser.parse_args(arguments)


def say(line: str) -> None:
    """One line to the job's log, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
