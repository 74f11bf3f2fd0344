"""One processing job: inputs down, the container, outputs up."""

from dropforge.local.sagemaker.errors import JobFailed
from dropforge.local.sagemaker.jobs import Job, JobHalted
from dropforge.local.sagemaker.logs import LogStream
from dropforge.local.sagemaker.process import Container, Halt
from dropforge.local.sagemaker.requests import ProcessingRequest
from dropforge.local.sagemaker.storage import FolderMirror
from dropforge.local.sagemaker.workspace import Host, Workspace, resource_config, write_json


def process(job: Job, request: ProcessingRequest, host: Host) -> None:
    """Run the job to its end.

    Raises:
        JobFailed: with the FailureReason.
        JobHalted: stopped, or out of time.
    """
    workspace = host.workspace("processing", request.processing_job_name)
    log = LogStream(
        host.logs, job.kind.log_group, f"{request.processing_job_name}/algo-1-{round(host.clock() * 1000)}"
    )
    job.move(ProcessingStartTime=host.clock())
    job.control.limit(Halt.MAX_RUNTIME, request.stopping_condition.max_runtime_in_seconds)
    try:
        workspace.create()
        _write_config(job, request, workspace)
        for given, folder in request.inputs:
            host.store.download_prefix(given.s3_uri, workspace.path_of(folder), shared=True)
        for _, folder in request.outputs:
            workspace.path_of(folder).mkdir(parents=True, exist_ok=True)
        halt, exit_code = _run(job, request, host, workspace, log)
        log.close()
        message = workspace.message("message")
        if message:
            job.note(ExitMessage=message)
        if halt is not None:
            raise JobHalted(halt)
        if exit_code != 0:
            raise JobFailed.algorithm("", exit_code)
        for output, folder in request.outputs:
            if output.s3_upload_mode == "EndOfJob":
                host.store.upload_folder(workspace.path_of(folder), output.s3_uri)
        job.move("Completed")
    finally:
        log.close()
        workspace.remove()


def _run(
    job: Job, request: ProcessingRequest, host: Host, workspace: Workspace, log: LogStream
) -> tuple[Halt | None, int | None]:
    """Why the container was ended (None: it ended by itself), and its exit code."""
    app = request.app_specification
    argv = host.command(app.image_uri, workspace, app.container_arguments, app.container_entrypoint)
    isolated = request.network_config.enable_network_isolation
    environment = host.environment(
        workspace,
        {"PROCESSING_JOB_NAME": request.processing_job_name, **request.environment},
        isolated=isolated,
    )
    mirrors = [
        FolderMirror(host.store, workspace.path_of(folder), output.s3_uri, host.mirror_every_s)
        for output, folder in request.outputs
        if output.s3_upload_mode == "Continuous"
    ]
    for mirror in mirrors:
        mirror.start()
    halt: Halt | None = None
    try:
        with Container(argv, environment, workspace.root, log.line, isolated=isolated) as container:
            halt = container.wait(job.control)
            if halt is not None and halt is not Halt.SHUTDOWN:
                job.move("Stopping")
                container.stop(host.grace_s, job.control)
        return halt, container.exit_code()
    except OSError as error:
        raise JobFailed.client(f"the container can't be started: {error}") from error
    finally:
        for mirror in mirrors:
            mirror.stop(final=halt is not Halt.SHUTDOWN)


def _write_config(job: Job, request: ProcessingRequest, workspace: Workspace) -> None:
    folder = workspace.path_of("/opt/ml/config")
    folder.mkdir(parents=True)
    write_json(folder / "processingjobconfig.json", {**job.request, "ProcessingJobArn": job.arn})
    instance_type = request.processing_resources.cluster_config.instance_type
    write_json(folder / "resourceconfig.json", resource_config(instance_type))
