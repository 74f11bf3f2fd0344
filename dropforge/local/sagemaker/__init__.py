"""A local SageMaker: jobs, models and the Model Registry behind AWS's own protocol; jobs run as processes."""

from dropforge.local.sagemaker.image import DockerfileRefused, entry_point_of, environment_of
from dropforge.local.sagemaker.service import LocalSageMaker

__all__ = ["DockerfileRefused", "LocalSageMaker", "entry_point_of", "environment_of"]
