"""The parts of SageMaker's requests that the job runner reads, typed. The whole request is kept for Describe."""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Literal

from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_pascal

from dropforge_core.model import Tolerant


class Request(Tolerant):
    """Members have SageMaker's names on the wire and Python's here."""

    model_config = ConfigDict(alias_generator=to_pascal)


# --- training ---------------------------------------------------------------------------------------


class S3DataSource(Request):
    s3_uri: str
    s3_data_type: str
    s3_data_distribution_type: str = "FullyReplicated"


class DataSource(Request):
    s3_data_source: S3DataSource | None = None


class Channel(Request):
    channel_name: str
    data_source: DataSource
    content_type: str | None = None
    input_mode: str | None = None
    compression_type: str = "None"
    record_wrapper_type: str = "None"

    @property
    def uri(self) -> str:
        source = self.data_source.s3_data_source
        return source.s3_uri if source else ""


class MetricDefinition(Request):
    name: str
    regex: str


class AlgorithmSpecification(Request):
    training_image: str | None = None
    algorithm_name: str | None = None
    training_input_mode: str
    metric_definitions: tuple[MetricDefinition, ...] = ()
    container_entrypoint: tuple[str, ...] = ()
    container_arguments: tuple[str, ...] = ()


class OutputDataConfig(Request):
    s3_output_path: str
    compression_type: Literal["GZIP", "NONE"] = "GZIP"


class InstancePreference(Request):
    instance_type: str
    instance_count: int = 1


class ResourceConfig(Request):
    instance_type: str | None = None
    instance_count: int | None = None
    instance_preferences: tuple[InstancePreference, ...] = ()
    volume_size_in_gb: int | None = Field(None, alias="VolumeSizeInGB")
    volume_kms_key_id: str | None = None

    @property
    def taken_type(self) -> str | None:
        """What the job runs on: here every type has capacity, so of several the first."""
        return self.instance_preferences[0].instance_type if self.instance_preferences else self.instance_type


class StoppingCondition(Request):
    max_runtime_in_seconds: int = 86_400
    max_wait_time_in_seconds: int | None = None


class CheckpointConfig(Request):
    s3_uri: str
    local_path: str = "/opt/ml/checkpoints/"


class TrainingRequest(Request):
    training_job_name: str
    hyper_parameters: Mapping[str, str] = {}
    algorithm_specification: AlgorithmSpecification
    input_data_config: tuple[Channel, ...] = ()
    output_data_config: OutputDataConfig
    resource_config: ResourceConfig = ResourceConfig()
    stopping_condition: StoppingCondition = StoppingCondition()
    checkpoint_config: CheckpointConfig | None = None
    environment: Mapping[str, str] = {}
    enable_network_isolation: bool = False
    enable_managed_spot_training: bool = False

    @property
    def output_prefix(self) -> str:
        """`s3://...` under which this job's `model.tar.gz` and `output.tar.gz` go, with final slash."""
        return f"{self.output_data_config.s3_output_path.rstrip('/')}/{self.training_job_name}/output/"

    @property
    def model_artifact(self) -> str:
        packed = self.output_data_config.compression_type == "GZIP"
        return self.output_prefix + ("model.tar.gz" if packed else "model/")


# --- processing -------------------------------------------------------------------------------------


class ProcessingS3Input(Request):
    s3_uri: str
    local_path: str | None = None
    s3_data_type: str
    s3_input_mode: str = "File"
    s3_compression_type: str = "None"


class ProcessingInput(Request):
    input_name: str
    app_managed: bool = False
    s3_input: ProcessingS3Input | None = None


class ProcessingS3Output(Request):
    s3_uri: str
    local_path: str | None = None
    s3_upload_mode: Literal["Continuous", "EndOfJob"]


class ProcessingOutput(Request):
    output_name: str
    app_managed: bool = False
    s3_output: ProcessingS3Output | None = None


class ProcessingOutputConfig(Request):
    outputs: tuple[ProcessingOutput, ...] = ()


class AppSpecification(Request):
    image_uri: str
    container_entrypoint: tuple[str, ...] = ()
    container_arguments: tuple[str, ...] = ()


class NetworkConfig(Request):
    enable_network_isolation: bool = False


class ClusterConfig(Request):
    instance_type: str
    instance_count: int


class ProcessingResources(Request):
    cluster_config: ClusterConfig


class ProcessingStoppingCondition(Request):
    max_runtime_in_seconds: int = 86_400


class ProcessingRequest(Request):
    processing_job_name: str
    app_specification: AppSpecification
    processing_inputs: tuple[ProcessingInput, ...] = ()
    processing_output_config: ProcessingOutputConfig = ProcessingOutputConfig()
    processing_resources: ProcessingResources
    environment: Mapping[str, str] = {}
    network_config: NetworkConfig = NetworkConfig()
    stopping_condition: ProcessingStoppingCondition = ProcessingStoppingCondition()

    @property
    def outputs(self) -> Sequence[tuple[ProcessingS3Output, PurePosixPath]]:
        """The outputs that SageMaker uploads, each with its folder in the container."""
        return [
            (output.s3_output, PurePosixPath(output.s3_output.local_path))
            for output in self.processing_output_config.outputs
            if output.s3_output and output.s3_output.local_path and not output.app_managed
        ]

    @property
    def inputs(self) -> Sequence[tuple[ProcessingS3Input, PurePosixPath]]:
        """The inputs that SageMaker downloads, each with its folder in the container."""
        return [
            (given.s3_input, PurePosixPath(given.s3_input.local_path))
            for given in self.processing_inputs
            if given.s3_input and given.s3_input.local_path and not given.app_managed
        ]


# --- models and batch transform -----------------------------------------------------------------------


class Container(Request):
    image: str | None = None
    model_data_url: str | None = None
    environment: Mapping[str, str] = {}
    model_data_source: Mapping[str, object] | None = None
    model_package_name: str | None = None


class ModelRequest(Request):
    model_name: str
    primary_container: Container | None = None
    containers: tuple[Container, ...] = ()
    enable_network_isolation: bool = False

    @property
    def container(self) -> Container:
        return self.primary_container or self.containers[0]


class TransformDataSource(Request):
    s3_data_source: S3DataSource


class TransformInput(Request):
    data_source: TransformDataSource
    content_type: str | None = None
    compression_type: str = "None"
    split_type: Literal["None", "Line", "RecordIO", "TFRecord"] = "None"


class TransformOutput(Request):
    s3_output_path: str
    accept: str | None = None
    assemble_with: Literal["None", "Line"] = "None"


class ModelClientConfig(Request):
    invocations_timeout_in_seconds: int = 600
    invocations_max_retries: int = 3


class DataProcessing(Request):
    input_filter: str = "$"
    output_filter: str = "$"
    join_source: str = "None"


class TransformResources(Request):
    instance_type: str
    instance_count: int


class TransformRequest(Request):
    transform_job_name: str
    model_name: str
    transform_input: TransformInput
    transform_output: TransformOutput
    transform_resources: TransformResources
    max_concurrent_transforms: int | None = None
    max_payload_in_mb: int | None = Field(None, alias="MaxPayloadInMB")
    batch_strategy: Literal["MultiRecord", "SingleRecord"] | None = None
    environment: Mapping[str, str] = {}
    model_client_config: ModelClientConfig = ModelClientConfig()
    data_processing: DataProcessing = DataProcessing()
