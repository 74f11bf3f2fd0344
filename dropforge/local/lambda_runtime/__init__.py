"""Lambda functions as processes: AWS's own runtime client, behind a Runtime API of our own."""

from pathlib import Path


def bootstrap_path() -> Path:
    """The runtime that stands in where awslambdaric is missing."""
    return Path(__file__).with_name("bootstrap.py")
