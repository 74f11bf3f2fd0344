"""Where everything of a run lies in the run bucket. Keys only; buckets are arguments."""

from typing import Final

from dropforge_core.model import Frozen

BASE_MODELS: Final = "base-models/"
PRICES: Final = "prices/instances.json"
"""Where `dropforge prices refresh` leaves the region's table: a `planning.Catalogue`."""
MODEL_SHAPE: Final = "planning/shape.json"
"""Beside a cached base model: what it is made of, a `planning.CountedShape`."""
PREDICTION_CACHE: Final = "prediction-cache/"
"""Prefix of predictions that later runs may use again; they expire."""
VALIDATION_WORK: Final = "validation-work/"
"""Prefix of what the functions hand to one another while they check a large dataset. It expires: the bucket's
lifecycle rules choose by prefix, so it can't lie under `runs/<run_id>/`."""


class RunLayout(Frozen):
    """The keys of one run, all under `runs/<run_id>/`."""

    run_id: str

    @property
    def root(self) -> str:
        return f"runs/{self.run_id}/"

    def key(self, name: str) -> str:
        """Any key of this run, for example `key("gate.json")`."""
        return self.root + name

    @property
    def request(self) -> str:
        """What intake accepted: `RunRequest`."""
        return self.key("request.json")

    @property
    def recipe(self) -> str:
        """The recipe as it was resolved: `Recipe`."""
        return self.key("recipe.json")

    @property
    def validation(self) -> str:
        return self.key("validation.json")

    @property
    def train(self) -> str:
        """Prefix of the training shards, `part-00000-000.jsonl` ..., canonical rows."""
        return self.key("dataset/train/")

    @property
    def holdout(self) -> str:
        """Prefix of the hold-out shards, canonical rows."""
        return self.key("dataset/eval/")

    @property
    def manifest(self) -> str:
        """Digest and size of every dataset shard: `DatasetManifest`."""
        return self.key("dataset/manifest.json")

    @property
    def plan(self) -> str:
        return self.key("plan.json")

    @property
    def training_config(self) -> str:
        """Prefix of the `config` channel; holds `training.json` (`TrainingConfig`)."""
        return self.key("training/config/")

    @property
    def training_output(self) -> str:
        """S3OutputPath of the training job; SageMaker adds `<job>/output/model.tar.gz`."""
        return self.key("training/output/")

    @property
    def checkpoints(self) -> str:
        return self.key("checkpoints/")

    @property
    def prompts(self) -> str:
        """Prefix of the batch transform's input shards, one `EvaluationPrompt` a line."""
        return self.key("evaluation/input/")

    @property
    def predictions(self) -> str:
        """Prefix of the batch transform's output, one `Prediction` a line, `<shard>.out`."""
        return self.key("evaluation/output/")

    @property
    def reused(self) -> str:
        """Prefix of what was kept from earlier runs: questions `<shard>` and predictions `<series>-kept.jsonl.out`."""
        return self.key("evaluation/reused/")

    @property
    def evaluation_setup(self) -> str:
        """What is evaluated against what: `EvaluationSetup`."""
        return self.key("evaluation/setup.json")

    @property
    def metrics(self) -> str:
        """Every metric of every variant with its interval: `MetricsReport`."""
        return self.key("evaluation/metrics.json")

    @property
    def judge(self) -> str:
        """The verdicts of the recipe's judge: `JudgeRecord`."""
        return self.key("evaluation/judge.json")

    @property
    def examples(self) -> str:
        """A few held-out rows with every variant's answer: `ExampleAnswers`."""
        return self.key("evaluation/examples.json")

    @property
    def gate(self) -> str:
        return self.key("gate.json")

    @property
    def report(self) -> str:
        return self.key("report/index.html")


class ValidationWork(Frozen):
    """The keys of a large dataset's validation, all under `validation-work/<run_id>/`."""

    run_id: str

    @property
    def root(self) -> str:
        return f"{VALIDATION_WORK}{self.run_id}/"

    @property
    def division(self) -> str:
        """How the files are read, and their parts."""
        return f"{self.root}division.json"

    def findings(self, part: int) -> str:
        """What SurveyPart found in one part."""
        return f"{self.root}findings/{part:05d}.findings"

    def decision(self, part: int) -> str:
        """What becomes of each row of one part."""
        return f"{self.root}decisions/{part:05d}.decision"

    def shards(self, part: int) -> str:
        """The shards that WritePart made of one part."""
        return f"{self.root}shards/{part:05d}.json"


def base_model_prefix(name: str, revision: str) -> str:
    """Prefix of a cached base model. `revision` is 40 hex digits: a hub commit, or the content's digest."""
    return f"{BASE_MODELS}{name}/{revision}/"


def s3_uri(bucket: str, key: str) -> str:
    return f"s3://{bucket}/{key}"


def split_s3_uri(uri: str) -> tuple[str, str]:
    """`s3://bucket/key` to (bucket, key).

    Raises:
        ValueError: when it is not an S3 URI.
    """
    if not uri.startswith("s3://") or "/" not in uri[5:]:
        raise ValueError(f"{uri!r} is not of the form s3://bucket/key")
    bucket, _, key = uri[5:].partition("/")
    return bucket, key
