"""What a Create* request must satisfy beyond the shapes: SageMaker's own rules, then this engine's limits.

Where AWS's sentence is known it is used; the code is ValidationException either way.
"""

import re
from typing import Final

from dropforge.local.sagemaker.errors import ApiError
from dropforge.local.sagemaker.requests import (
    ModelRequest,
    ProcessingRequest,
    TrainingRequest,
    TransformRequest,
)

MAX_TRAINING_SECONDS: Final = 28 * 24 * 3600
"""StoppingCondition.MaxRuntimeInSeconds: at most 28 days."""

_INSTANCE_STORE: Final = re.compile(r"ml\.(g4dn|g5|g6|g6e|g7|g7e|p4d|p4de|p5|p5e|p5en|trn1|m5d|c5d|r5d)\.")
"""Families whose volume is local NVMe: they ignore the size, and reject a key for it."""

_MAX_TRANSFORM_MEMORY_MB: Final = 100
"""CreateTransformJob: MaxConcurrentTransforms x MaxPayloadInMB must not exceed 100."""

_PROCESSING_ROOT: Final = "/opt/ml/processing/"


def check_training(request: TrainingRequest) -> None:
    """Raises ApiError where SageMaker, or this engine, would not start the job."""
    algorithm = request.algorithm_specification
    if (algorithm.training_image is None) == (algorithm.algorithm_name is None):
        raise ApiError.invalid("You must specify exactly one of TrainingImage and AlgorithmName.")
    if algorithm.algorithm_name is not None:
        raise ApiError.only_in_the_cloud("algorithms from the marketplace (AlgorithmName)")
    for metric in algorithm.metric_definitions:
        try:
            re.compile(metric.regex)
        except re.error as error:
            raise ApiError.invalid(
                f"The regex of metric definition {metric.name!r} is invalid: {error}"
            ) from error
    _check_stopping(request)
    _check_s3("OutputDataConfig.S3OutputPath", request.output_data_config.s3_output_path)
    _check_instances(request)
    _check_volume_key(request)
    _check_channels(request)
    checkpoints = request.checkpoint_config
    if checkpoints is not None:
        _check_s3("CheckpointConfig.S3Uri", checkpoints.s3_uri)
        if not checkpoints.local_path.startswith("/opt/ml/"):
            raise ApiError.only_in_the_cloud(
                f"checkpoints in {checkpoints.local_path}, outside the private /opt/ml"
            )


def _check_stopping(request: TrainingRequest) -> None:
    runtime = request.stopping_condition.max_runtime_in_seconds
    wait = request.stopping_condition.max_wait_time_in_seconds
    if runtime > MAX_TRAINING_SECONDS:
        raise ApiError.invalid(
            f"Invalid MaxRuntimeInSeconds: {runtime}. It must be at most {MAX_TRAINING_SECONDS} (28 days)."
        )
    if request.enable_managed_spot_training and (wait is None or wait < runtime):
        raise ApiError.invalid(
            "Invalid MaxWaitTimeInSeconds. It must be present and be greater than or equal to MaxRuntimeInSeconds"
        )
    if wait is not None and not request.enable_managed_spot_training:
        raise ApiError.invalid("MaxWaitTimeInSeconds can only be set when EnableManagedSpotTraining is true.")


def _check_instances(request: TrainingRequest) -> None:
    resources = request.resource_config
    _one_instance(resources.instance_count)
    if not resources.instance_preferences:
        return
    for one in resources.instance_preferences:
        _one_instance(one.instance_count)
    excluded = {
        "InstanceType": resources.instance_type is not None,
        "InstanceCount": resources.instance_count is not None,
        "EnableManagedSpotTraining": request.enable_managed_spot_training,
    }
    if named := [name for name, is_there in excluded.items() if is_there]:
        raise ApiError.invalid(f"InstancePreferences can't be used together with {', '.join(named)}.")


def _check_volume_key(request: TrainingRequest) -> None:
    resources = request.resource_config
    if resources.volume_kms_key_id and _INSTANCE_STORE.match(resources.taken_type or ""):
        raise ApiError.invalid(
            f"VolumeKmsKeyId is not supported for instance type {resources.taken_type}: "
            "its local storage is encrypted in hardware."
        )


def _check_channels(request: TrainingRequest) -> None:
    names = [channel.channel_name for channel in request.input_data_config]
    if len(names) != len(set(names)):
        raise ApiError.invalid(f"Channel names must be unique, found {', '.join(names)}.")
    for channel in request.input_data_config:
        source = channel.data_source.s3_data_source
        if source is None:
            raise ApiError.only_in_the_cloud(f"channel {channel.channel_name}: a source other than S3")
        _check_s3(f"channel {channel.channel_name}", source.s3_uri)
        _s3_prefix(f"channel {channel.channel_name}", source.s3_data_type)
        mode = channel.input_mode or request.algorithm_specification.training_input_mode
        # What FastFile mounts is read like files; here it is files.
        if mode not in {"File", "FastFile"}:
            raise ApiError.only_in_the_cloud(
                f"channel {channel.channel_name}: input mode {mode} (only File and FastFile)"
            )
        if mode == "FastFile" and not source.s3_uri.endswith("/"):
            raise ApiError.invalid(
                f"Channel {channel.channel_name}: the S3Uri of a FastFile channel must end with '/'."
            )
        if channel.compression_type != "None" or channel.record_wrapper_type != "None":
            raise ApiError.invalid(
                f"Channel {channel.channel_name}: CompressionType and RecordWrapperType are for Pipe mode."
            )


def check_processing(request: ProcessingRequest) -> None:
    """Raises ApiError where SageMaker, or this engine, would not start the job."""
    _one_instance(request.processing_resources.cluster_config.instance_count)
    for given in request.processing_inputs:
        if given.s3_input is None:
            raise ApiError.only_in_the_cloud(f"processing input {given.input_name}: a source other than S3")
        _check_s3(f"processing input {given.input_name}", given.s3_input.s3_uri)
        _s3_prefix(f"processing input {given.input_name}", given.s3_input.s3_data_type)
        if given.s3_input.s3_input_mode != "File" or given.s3_input.s3_compression_type != "None":
            raise ApiError.only_in_the_cloud(f"processing input {given.input_name}: Pipe mode or compression")
    for output in request.processing_output_config.outputs:
        if output.s3_output is None:
            raise ApiError.only_in_the_cloud(
                f"processing output {output.output_name}: a target other than S3"
            )
        _check_s3(f"processing output {output.output_name}", output.s3_output.s3_uri)
    for path in [path for _, path in request.inputs] + [path for _, path in request.outputs]:
        if not f"{path}/".startswith(_PROCESSING_ROOT):
            raise ApiError.invalid(f"LocalPath {path} must begin with {_PROCESSING_ROOT}")


def check_model(request: ModelRequest) -> None:
    """Raises ApiError where SageMaker, or this engine, would not create the model."""
    if (request.primary_container is None) == (not request.containers):
        raise ApiError.invalid("You must provide exactly one of PrimaryContainer and Containers.")
    if len(request.containers) > 1:
        raise ApiError.only_in_the_cloud("inference pipelines (more than one container)")
    container = request.container
    if container.model_package_name is not None:
        raise ApiError.only_in_the_cloud("models made from a model package; name Image and ModelDataUrl")
    if container.image is None:
        raise ApiError.invalid("Container image must be specified.")
    if container.model_data_source is not None:
        raise ApiError.only_in_the_cloud("ModelDataSource, which batch transform can't read either")
    if container.model_data_url is not None:
        _check_s3("ModelDataUrl", container.model_data_url)
        if not container.model_data_url.endswith(".tar.gz"):
            raise ApiError.invalid(
                f"ModelDataUrl {container.model_data_url} must name a single gzip-compressed tar archive (.tar.gz)."
            )


def check_transform(request: TransformRequest) -> None:
    """Raises ApiError where SageMaker, or this engine, would not start the job."""
    given = request.transform_input
    _one_instance(request.transform_resources.instance_count)
    _check_s3("TransformInput", given.data_source.s3_data_source.s3_uri)
    _s3_prefix("TransformInput", given.data_source.s3_data_source.s3_data_type)
    _check_s3("TransformOutput.S3OutputPath", request.transform_output.s3_output_path)
    if request.batch_strategy is not None and given.split_type == "None":
        raise ApiError.invalid(f"BatchStrategy {request.batch_strategy} needs a SplitType other than None.")
    if given.split_type not in {"None", "Line"}:
        raise ApiError.only_in_the_cloud(f"SplitType {given.split_type} (only None and Line)")
    if given.compression_type != "None":
        raise ApiError.only_in_the_cloud("compressed transform input")
    memory = (request.max_concurrent_transforms or 1) * (request.max_payload_in_mb or 0)
    if memory > _MAX_TRANSFORM_MEMORY_MB:
        raise ApiError.invalid(
            f"MaxConcurrentTransforms * MaxPayloadInMB = {memory} MB must not exceed {_MAX_TRANSFORM_MEMORY_MB} MB."
        )
    processing = request.data_processing
    if (processing.input_filter, processing.output_filter, processing.join_source) != ("$", "$", "None"):
        raise ApiError.only_in_the_cloud("DataProcessing (filters and joins); join by id in the scorer")


def _one_instance(count: int | None) -> None:
    if count not in {None, 1}:
        raise ApiError.only_in_the_cloud(f"{count} instances; one machine is one instance")


def _check_s3(where: str, uri: str) -> None:
    if not uri.startswith("s3://") or not uri[5:].partition("/")[0]:
        raise ApiError.invalid(f"{where}: {uri!r} is not of the form s3://bucket/prefix")


def _s3_prefix(where: str, data_type: str) -> None:
    if data_type != "S3Prefix":
        raise ApiError.only_in_the_cloud(f"{where}: S3DataType {data_type} (only S3Prefix)")
