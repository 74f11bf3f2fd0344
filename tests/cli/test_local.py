"""The local AWS as people use it: served, uploaded to with the plain AWS command line, followed, stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stub_mlflow import stub_mlflow

pytestmark = pytest.mark.e2e

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
GOOD = ROOT / "examples" / "us-addresses" / "addresses.jsonl"
LIMIT_S = 300


def call(*arguments, env=None, cwd=ROOT):
    """A command of the environment that runs these tests; its status, stdout and stderr."""
    return subprocess.run(
        [BIN / arguments[0], *map(str, arguments[1:])],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        cwd=cwd,
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", **(env or {})},
    )


def broken(folder: Path) -> Path:
    """The example with two rows spoilt."""
    lines = GOOD.read_text().splitlines()
    lines[2] = lines[2][:-5]
    lines[40] = json.dumps({"messages": []})
    file = folder / "broken.jsonl"
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.fixture(scope="module")
def mlflow():
    """A tracking server beside the local AWS."""
    with stub_mlflow() as stub:
        yield stub


@pytest.fixture(scope="module")
def up(mlflow):
    """`dropforge local up --fast` in the foreground of another process, and its first line.

    Its shell is set up for a real account, behind a proxy: nothing of that may reach the local AWS.
    """
    elsewhere = {
        "AWS_PROFILE": "nowhere",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
        "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "DROPFORGE_STACK": "elsewhere",
    }
    process = subprocess.Popen(
        [BIN / "dropforge", "local", "up", "--fast", "--port", "0", "--mlflow-uri", mlflow.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **elsewhere},
    )
    ready = json.loads(process.stdout.readline())
    yield process, ready
    if process.poll() is None:
        process.kill()
    process.communicate()


@pytest.fixture(scope="module")
def env(up):
    return {
        "AWS_ENDPOINT_URL": up[1]["endpoint"],
        "AWS_DEFAULT_REGION": up[1]["region"],
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
    }


@pytest.fixture(scope="module")
def registered(up, env, mlflow, tmp_path_factory):
    """The run of a good file, uploaded with the plain AWS command line, at its end; its recipe names the server."""
    place = f"s3://{up[1]['buckets']['datasets']}/datasets/addresses/"
    recipe = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    recipe.write_text(f"tracking: {{mlflow_uri: '{mlflow.url}'}}\n")
    assert call("aws", "s3", "cp", recipe, place, env=env).returncode == 0
    assert call("aws", "s3", "cp", GOOD, place, env=env).returncode == 0
    return ended(env, "addresses", 1)


def ended(env, model, count):
    """The newest of `count` runs of a model, once it is there, followed to its end."""
    for _ in range(60):
        runs = json.loads(call("dropforge", "runs", "--model", model, "--json", env=env).stdout)
        if len(runs) == count:
            followed = call("dropforge", "follow", runs[0]["run_id"], "--exit-code", "--json", env=env)
            return followed.returncode, json.loads(followed.stdout)
    raise AssertionError(f"no run of {model} appeared")


def test_the_first_line_names_everything(up):
    """One JSON line holds what a script needs."""
    ready = up[1]
    assert set(ready) == {"endpoint", "region", "buckets", "state_machine", "table", "bus", "topic"}
    assert set(ready["buckets"]) == {"datasets", "runs"}


def test_doctor_is_content(up, env):
    """A fresh stack has nothing that doctor would call bad."""
    said = call("dropforge", "doctor", "--json", env=env)
    bad = [check for check in json.loads(said.stdout)["checks"] if check["state"] == "bad"]
    assert (said.returncode, bad) == (0, [])


def test_a_plain_upload_ends_registered(registered):
    """Upload, train, evaluate, gate, register: for real, with a package and a page."""
    code, summary = registered
    assert (code, summary["run"]["status"]) == (0, "REGISTERED")
    assert summary["gate"]["verdict"] == "PASS"
    assert summary["run"]["package_arn"].endswith("/addresses/1")
    assert "<html" in (ROOT / summary["report_path"]).read_text()[:200].lower()


def test_what_was_trained_is_fetched_and_answers(up, env, registered, tmp_path):
    """The adapter goes onto its base with PEFT alone, as the page on using a model shows."""
    said = call(
        "dropforge", "fetch", registered[1]["run"]["run_id"], "--out", tmp_path / "model", "--json", env=env
    )
    fetched = json.loads(said.stdout)
    base = tmp_path / "base"
    source = f"s3://{up[1]['buckets']['runs']}/base-models/{fetched['base_model']}/{fetched['revision']}/"
    assert call("aws", "s3", "cp", "--recursive", "--quiet", source, base, env=env).returncode == 0
    script = (
        "import sys; from peft import PeftModel; from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "base = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "model = PeftModel.from_pretrained(base, sys.argv[2])\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "asked = [{'role': 'user', 'content': '12 Main St'}]\n"
        "tokens = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors='pt', return_dict=True)\n"
        "print(model.generate(**tokens, max_new_tokens=4, do_sample=False).shape[1] > tokens['input_ids'].shape[1])\n"
    )
    answered = call("python", "-c", script, base, fetched["path"])
    assert answered.stdout.strip().endswith("True"), answered.stderr[-2000:]


def test_the_plain_aws_command_line_shows_it(up, env, registered):
    """Executions, packages, ledger and logs are where AWS has them."""
    machine = up[1]["state_machine"]
    run_id = registered[1]["run"]["run_id"]
    executions = call("aws", "stepfunctions", "list-executions", "--state-machine-arn", machine, env=env)
    assert {"name": run_id, "status": "SUCCEEDED"}.items() <= json.loads(executions.stdout)["executions"][
        0
    ].items()
    packages = call(
        "aws", "sagemaker", "list-model-packages", "--model-package-group-name", "addresses", env=env
    )
    assert len(json.loads(packages.stdout)["ModelPackageSummaryList"]) == 1
    assert run_id in call("aws", "dynamodb", "scan", "--table-name", up[1]["table"], env=env).stdout
    logs = call(
        "aws", "logs", "describe-log-streams", "--log-group-name", "/aws/sagemaker/TrainingJobs", env=env
    )
    assert run_id in logs.stdout


def test_mlflow_hears_of_it_though_the_job_has_no_network(registered, mlflow):
    """One run in the recipe's experiment, told by the stack's own function, with curves and verdict, no value twice."""
    for _ in range(300):
        if any(path == "runs/update" for path, _ in mlflow.said):
            break
        time.sleep(0.2)
    assert list(mlflow.experiments) == ["dropforge"]
    (told,) = mlflow.runs.values()
    assert told["status"] == "FINISHED"
    assert told["tags"]["dropforge.run_id"] == registered[1]["run"]["run_id"]
    assert told["tags"]["dropforge.verdict"] == "PASS"
    values = [(metric["key"], metric["step"]) for metric in told["metrics"]]
    assert len(values) == len(set(values))
    assert [step for key, step in values if key == "loss"] == list(range(1, 31))


def test_the_same_content_again_trains_nothing(up, env, registered):
    """A second upload of the same file ends as a duplicate and names the first run."""
    place = f"s3://{up[1]['buckets']['datasets']}/datasets/addresses/"
    assert call("aws", "s3", "cp", GOOD, place, env=env).returncode == 0
    code, summary = ended(env, "addresses", 2)
    assert (code, summary["run"]["status"]) == (0, "DUPLICATE")
    assert summary["run"]["duplicate_of"] == registered[1]["run"]["run_id"]
    jobs = json.loads(call("aws", "sagemaker", "list-training-jobs", env=env).stdout)["TrainingJobSummaries"]
    assert len(jobs) == 1


def test_everything_stops_on_sigterm(up):
    """SIGTERM ends it with 0 and leaves no process of the local AWS behind."""
    process, ready = up
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert children
    process.send_signal(signal.SIGTERM)
    _, words = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in words
    assert [child for child in children if Path("/proc", child).exists()] == []
    assert call("dropforge", "runs", env={"AWS_ENDPOINT_URL": ready["endpoint"]}).returncode == 2


def test_a_rejected_dataset_ends_with_3_and_its_faults(tmp_path):
    """`local run` of spoilt rows ends with 3 and tells file, line, code and message; nothing is trained."""
    said = call("dropforge", "local", "run", broken(tmp_path), "--model", "addresses", "--fast", "--json")
    assert said.returncode == 3
    summary = json.loads(said.stdout)
    assert summary["run"]["status"] == "DATASET_REJECTED"
    assert sorted(fault["line"] for fault in summary["validation"]["errors"]) == [3, 41]
    assert any("data rejected" in subject for subject in summary["emails"])
