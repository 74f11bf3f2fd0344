"""One training job, from its first download to its model.tar.gz."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from dropforge.local.sagemaker import archives
from dropforge.local.sagemaker.errors import JobFailed
from dropforge.local.sagemaker.jobs import Job, JobHalted
from dropforge.local.sagemaker.logs import LogStream
from dropforge.local.sagemaker.metrics import MetricScanner
from dropforge.local.sagemaker.process import Container, Halt
from dropforge.local.sagemaker.requests import TrainingRequest
from dropforge.local.sagemaker.storage import FolderMirror, files_below
from dropforge.local.sagemaker.workspace import Host, Workspace, resource_config, write_json

_NO_COPY: Final = frozenset({Halt.INTERRUPTED, Halt.SHUTDOWN})
"""Ends after which a machine copies nothing any more."""


def defaults(request: TrainingRequest) -> dict[str, Any]:
    """Members that Describe has though the request may leave them out."""
    condition: dict[str, Any] = {"MaxRuntimeInSeconds": request.stopping_condition.max_runtime_in_seconds}
    if request.stopping_condition.max_wait_time_in_seconds is not None:
        condition["MaxWaitTimeInSeconds"] = request.stopping_condition.max_wait_time_in_seconds
    return {
        "ModelArtifacts": {"S3ModelArtifacts": request.model_artifact},
        "StoppingCondition": condition,
        "EnableNetworkIsolation": request.enable_network_isolation,
        "EnableInterContainerTrafficEncryption": False,
        "EnableManagedSpotTraining": request.enable_managed_spot_training,
    }


def selected(request: Mapping[str, Any]) -> dict[str, Any]:
    """What Describe says of the type that was taken of several."""
    resources = request.get("ResourceConfig", {})
    if not (preferences := resources.get("InstancePreferences")):
        return {}
    first = preferences[0]
    taken = {
        "SelectedInstanceType": first["InstanceType"],
        "SelectedInstanceCount": first.get("InstanceCount", 1),
    }
    return {"ResourceConfig": {**resources, **taken}}


def train(job: Job, request: TrainingRequest, host: Host) -> None:
    """Run the job to its end.

    Raises:
        JobFailed: with the FailureReason.
        JobHalted: stopped, or out of time; what the model folder held is uploaded before.
    """
    workspace = host.workspace("training", request.training_job_name)
    metrics = MetricScanner(request.algorithm_specification.metric_definitions)
    log = LogStream(
        host.logs, job.kind.log_group, f"{request.training_job_name}/algo-1-{round(host.clock() * 1000)}"
    )
    job.note(TrainingStartTime=host.clock())
    # MaxRuntime covers all machines of a spot job together.
    job.control.limit(Halt.MAX_RUNTIME, request.stopping_condition.max_runtime_in_seconds)
    job.control.limit(Halt.MAX_WAIT, request.stopping_condition.max_wait_time_in_seconds)

    def on_line(text: str) -> None:
        metrics.line(text, host.clock())
        log.line(text)
        host.on_training_line(job, text)

    try:
        training = _Training(job, request, host, workspace, on_line)
        halt, exit_code = training.run_on_machines()
        job.note(FinalMetricDataList=metrics.final())
        if halt is Halt.SHUTDOWN:
            raise JobHalted(halt)
        if halt is None:
            job.move(secondary="Uploading", message="Uploading generated training model")
        training.upload(with_model=halt is not None or exit_code == 0)
        log.close()
        if halt is not None:
            raise JobHalted(halt)
        if exit_code != 0:
            raise JobFailed.algorithm(workspace.message("failure"), exit_code)
        job.move("Completed", secondary="Completed", message="Training job completed")
    finally:
        log.close()
        workspace.remove()


@dataclass(frozen=True)
class _Training:
    """One job and where it runs."""

    job: Job
    request: TrainingRequest
    host: Host
    workspace: Workspace
    on_line: Callable[[str], None]

    def run_on_machines(self) -> tuple[Halt | None, int | None]:
        """Run on one machine after the other until the container ends by itself, or the job must end."""
        spot = self.request.enable_managed_spot_training
        interruptions = self.host.interruptions(self.request.training_job_name) if spot else ()
        for interruption in interruptions:
            halt, exit_code = self._run(self._prepare(), interruption)
            if halt is not Halt.INTERRUPTED:
                return halt, exit_code
            # The machine is gone, and all that its checkpoint folder had not copied yet.
            self.job.move(secondary="Interrupted", message="Spot capacity was taken away")
            self.job.move(secondary="Starting", message="Preparing the instances again")
        return self._run(self._prepare(), None)

    def upload(self, *, with_model: bool) -> None:
        """`model.tar.gz` where the job did not fail, `output.tar.gz` where there is any output data."""
        store, packed = self.host.store, self.workspace.scratch / "packed.tar.gz"
        if with_model:
            if self.request.output_data_config.compression_type == "GZIP":
                archives.pack(self.workspace.model, packed)
                store.upload(packed, self.request.model_artifact)
            else:
                store.upload_folder(self.workspace.model, self.request.model_artifact)
        if files_below(self.workspace.output):
            archives.pack(self.workspace.output, packed)
            store.upload(packed, self.request.output_prefix + "output.tar.gz")

    def _prepare(self) -> FolderMirror | None:
        """A fresh volume: channels, configuration, checkpoints. The mirror of the checkpoints, if there are any."""
        self.job.move(secondary="Downloading", message="Downloading input data")
        self.workspace.create()
        channels: dict[str, Any] = {}
        for channel in self.request.input_data_config:
            self.job.halt_if_asked()
            self.host.store.download_prefix(
                channel.uri, self.workspace.data / channel.channel_name, shared=True
            )
            channels[channel.channel_name] = {
                "TrainingInputMode": channel.input_mode
                or self.request.algorithm_specification.training_input_mode,
                "S3DistributionType": "FullyReplicated",
                "RecordWrapperType": "None",
                **({"ContentType": channel.content_type} if channel.content_type else {}),
            }
        config, instance_type = self.workspace.config, self.request.resource_config.taken_type
        write_json(config / "hyperparameters.json", self.request.hyper_parameters)
        write_json(config / "inputdataconfig.json", channels)
        write_json(config / "resourceconfig.json", resource_config(instance_type))
        checkpoints = self.request.checkpoint_config
        if checkpoints is None:
            return None
        folder = self.workspace.path_of(checkpoints.local_path)
        mirror = FolderMirror(self.host.store, folder, checkpoints.s3_uri, self.host.mirror_every_s)
        mirror.restore()
        return mirror

    def _run(self, mirror: FolderMirror | None, interruption: float | None) -> tuple[Halt | None, int | None]:
        """Run on one machine. Why it was ended (None: it ended by itself), and the container's exit code."""
        self.job.halt_if_asked()
        self.job.move(
            secondary="Training", message="Training image download completed. Training in progress."
        )
        control = self.job.control
        halt: Halt | None = None
        if mirror is not None:
            mirror.start()
        try:
            with Container(
                self._argv(),
                self._environment(),
                self.workspace.root,
                self.on_line,
                isolated=self.request.enable_network_isolation,
            ) as container:
                control.limit(Halt.INTERRUPTED, interruption)
                halt = container.wait(control)
                control.limit(Halt.INTERRUPTED, None)
                if halt is not None and halt not in _NO_COPY:
                    self.job.move("Stopping", secondary="Stopping", message="Stopping the training job")
                    container.stop(self.host.grace_s, control)
            return halt, container.exit_code()
        except OSError as error:
            raise JobFailed.client(f"the container can't be started: {error}") from error
        finally:
            if mirror is not None:
                mirror.stop(final=halt not in _NO_COPY)

    def _argv(self) -> list[str]:
        algorithm = self.request.algorithm_specification
        own = algorithm.container_arguments or algorithm.container_entrypoint
        return self.host.command(
            algorithm.training_image or "",
            self.workspace,
            algorithm.container_arguments if own else ("train",),
            algorithm.container_entrypoint,
        )

    def _environment(self) -> dict[str, str]:
        about = {
            "TRAINING_JOB_NAME": self.request.training_job_name,
            "TRAINING_JOB_ARN": self.job.arn,
        }
        return self.host.environment(
            self.workspace,
            {**about, **self.request.environment},
            isolated=self.request.enable_network_isolation,
        )
