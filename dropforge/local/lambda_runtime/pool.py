"""Execution environments by function: one for each invocation at a time, kept warm between them."""

import hashlib
import io
import shutil
import tempfile
import threading
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from dropforge.local.lambda_runtime.api import Invocation
from dropforge.local.lambda_runtime.worker import FunctionSpec, Result, Worker

IDLE_S: Final = 300.0
"""A warm environment that nobody used for so long is ended when the next one is needed."""


class CodeStore:
    """Deployment packages, unpacked once by their digest."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()

    def folder(self, package: bytes) -> Path:
        """The folder with the package's files.

        Raises:
            ValueError: where a name in the archive leads out of it.
        """
        final = self._root / hashlib.sha256(package).hexdigest()[:32]
        with self._lock:
            if not final.is_dir():
                self._root.mkdir(parents=True, exist_ok=True)
                scratch = Path(tempfile.mkdtemp(dir=self._root, prefix=".unpacking-"))
                try:
                    _unpack(package, scratch)
                    scratch.rename(final)
                finally:
                    shutil.rmtree(scratch, ignore_errors=True)
        return final


def _unpack(package: bytes, folder: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(package)) as archive:
        for name in archive.namelist():
            if not (folder / name).resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"the deployment package names {name!r}, outside of itself")
        archive.extractall(folder)  # every name was checked above


class WorkerPool:
    """Safe to use from any thread.

    Args:
        root: folder for the workers' logs.
        aws: AWS_* variables for every worker.
    """

    def __init__(self, root: Path, aws: Mapping[str, str]) -> None:
        self._root, self._aws = root, dict(aws)
        self._lock = threading.Lock()
        self._idle: dict[FunctionSpec, list[tuple[float, Worker]]] = {}
        self._busy: set[Worker] = set()
        self._made = 0
        self._closed = False

    def invoke(self, spec: FunctionSpec, invocation: Invocation) -> Result:
        """Run a function in a warm environment, or a new one.

        Raises:
            RuntimeError: the pool is closed.
        """
        worker = self._take(spec)
        alive = False
        try:
            result = worker.invoke(invocation)
            alive = result.alive
        finally:
            self._give_back(worker, alive=alive)
        return result

    def close(self) -> None:
        """End every process. Invocations under way end in Runtime.ExitError."""
        with self._lock:
            self._closed = True
            workers = [*self._busy, *(worker for idle in self._idle.values() for _, worker in idle)]
            self._idle.clear()
        for worker in workers:
            worker.close()

    def _take(self, spec: FunctionSpec) -> Worker:
        stale: list[Worker] = []
        with self._lock:
            if self._closed:
                raise RuntimeError("the local Lambda is shutting down")
            now = time.monotonic()
            for known, idle in list(self._idle.items()):
                # An update of the function leaves environments of its former self behind.
                outdated = known.name == spec.name and known != spec
                stale += [worker for since, worker in idle if outdated or now - since > IDLE_S]
                kept = [entry for entry in idle if entry[1] not in stale]
                if kept:
                    self._idle[known] = kept
                else:
                    del self._idle[known]
            idle = self._idle.get(spec, [])
            if idle:
                worker = idle.pop()[1]
            else:
                self._made += 1
                self._root.mkdir(parents=True, exist_ok=True)
                log_file = self._root / f"{spec.name}-{self._made:04d}.log"
                worker = Worker(spec, self._aws, log_file)
            self._busy.add(worker)
        for old in stale:
            old.close()
        return worker

    def _give_back(self, worker: Worker, *, alive: bool) -> None:
        with self._lock:
            self._busy.discard(worker)
            keep = alive and not self._closed
            if keep:
                self._idle.setdefault(worker.spec, []).append((time.monotonic(), worker))
        if not keep:
            worker.close()
