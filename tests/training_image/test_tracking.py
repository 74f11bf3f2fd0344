"""TensorBoard's files and MLflow's requests."""

import json
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st
from real_training import HOLDOUT, ROWS, StopAt, adapter_bytes, train
from tiny_jobs import SHORT, make_job

from tuner.contract import read_training_job
from tuner.signals import Stopped
from tuner.tracking import BATCH, EventFile, MlflowRun, crc32c


def event_class() -> Any:
    """`tensorflow.Event` as event.proto and summary.proto define it, as far as scalars need it."""
    field = descriptor_pb2.FieldDescriptorProto
    one, many = field.LABEL_OPTIONAL, field.LABEL_REPEATED
    file = descriptor_pb2.FileDescriptorProto(name="event.proto", package="t", syntax="proto3")
    for name, fields in {
        "Value": [("tag", 1, field.TYPE_STRING, one, ""), ("simple_value", 2, field.TYPE_FLOAT, one, "")],
        "Summary": [("value", 1, field.TYPE_MESSAGE, many, ".t.Value")],
        "Event": [
            ("wall_time", 1, field.TYPE_DOUBLE, one, ""),
            ("step", 2, field.TYPE_INT64, one, ""),
            ("file_version", 3, field.TYPE_STRING, one, ""),
            ("summary", 5, field.TYPE_MESSAGE, one, ".t.Summary"),
        ],
    }.items():
        message = file.message_type.add(name=name)
        for label, number, kind, repeated, refers in fields:
            message.field.add(name=label, number=number, type=kind, label=repeated, type_name=refers or None)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Event"))


def read_events(path: Path) -> list[Any]:
    """The events of a file, after every checksum was compared."""

    def unmask(masked: int) -> int:
        rotated = (masked - 0xA282EAD8) & 0xFFFFFFFF
        return (rotated << 15 | rotated >> 17) & 0xFFFFFFFF

    content, at, events, kind = path.read_bytes(), 0, [], event_class()
    while at < len(content):
        length, check = struct.unpack_from("<QI", content, at)
        assert unmask(check) == crc32c(content[at : at + 8])
        body = content[at + 12 : at + 12 + length]
        (check,) = struct.unpack_from("<I", content, at + 12 + length)
        assert unmask(check) == crc32c(body)
        events.append(kind.FromString(body))
        at += length + 16
    return events


def scalars(path: Path) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for event in read_events(path):
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def test_the_checksum_is_castagnoli_s() -> None:
    """RFC 3720, appendix B.4, and the check value of the polynomial."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2**62),
            st.dictionaries(
                st.text(min_size=1, max_size=20), st.floats(width=32, allow_nan=False), max_size=4
            ),
        ),
        max_size=8,
    )
)
def test_what_is_logged_is_what_a_protocol_buffer_reader_finds(
    tmp_path_factory: pytest.TempPathFactory, points: list[tuple[int, dict[str, float]]]
) -> None:
    """Steps, names and numbers survive, whatever they are."""
    folder = tmp_path_factory.mktemp("events")
    file = EventFile(folder, 1, lambda _: None, lambda: 1.5)
    for step, metrics in points:
        file.log(step, metrics)
    file.close("FINISHED")
    (path,) = folder.iterdir()
    first, *events = read_events(path)
    assert (first.file_version, first.wall_time) == ("brain.Event:2", 1.5)
    assert [(e.step, {v.tag: v.simple_value for v in e.summary.value}) for e in events] == points


def test_a_resumed_attempt_has_a_whole_event_file(tiny_base: Path, tmp_path: Path) -> None:
    """Steps of the attempt before are told again, so that the curve has no gap; the adapter is the same."""
    plain = make_job(tmp_path / "plain", tiny_base, rows=ROWS, holdout=HOLDOUT, recipe=SHORT)
    summary = train(plain)
    recipe = {**SHORT, "tracking": {"tensorboard": True}}
    container = make_job(tmp_path / "ml", tiny_base, rows=ROWS, holdout=HOLDOUT, recipe=recipe)
    with pytest.raises(Stopped):
        train(container, stop=StopAt(20))
    train(container)
    assert adapter_bytes(container) == adapter_bytes(plain)
    (path,) = (container.output_data / "tensorboard").iterdir()
    found = scalars(path)
    assert found["loss"] == pytest.approx(dict(summary.loss_curve), abs=1e-5)
    assert found["eval_loss"] == pytest.approx(dict(summary.eval_curve), abs=1e-5)
    assert {"grad_norm", "learning_rate", "tokens_per_s", "memory_gib", "epoch"} <= found.keys()


def test_a_disk_that_takes_no_events_changes_nothing(tiny_base: Path, tmp_path: Path) -> None:
    """It is told once, and the run leaves the same adapter as without the files."""
    plain = make_job(tmp_path / "plain", tiny_base, rows=ROWS, recipe=SHORT)
    train(plain)
    recipe = {**SHORT, "tracking": {"tensorboard": True}}
    container = make_job(tmp_path / "ml", tiny_base, rows=ROWS, recipe=recipe)
    folder = container.output_data / "tensorboard"
    folder.mkdir(parents=True)
    (folder / "events.out.tfevents.0000000001.dropforge").symlink_to("/dev/full")
    lines: list[str] = []
    train(container, lines.append)
    assert [line for line in lines if "gave up" in line] == [
        "tracking=tensorboard gave up: No space left on device; training goes on without it"
    ]
    assert adapter_bytes(container) == adapter_bytes(plain)


def test_a_folder_that_can_t_be_made_changes_nothing(tmp_path: Path) -> None:
    """Where a file stands in the way nothing is written, and who logs is not told so by an exception."""
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    lines: list[str] = []
    file = EventFile(tmp_path / "tensorboard", 1, lines.append)
    file.log(1, {"loss": 1.0})
    file.close("FINISHED")
    assert lines == ["tracking=tensorboard gave up: File exists; training goes on without it"]


class Mlflow(BaseHTTPRequestHandler):
    """The five requests of MLflow's REST interface that a run makes."""

    said: ClassVar[list[tuple[str, dict[str, Any]]]] = []
    runs: ClassVar[list[dict[str, Any]]] = []
    known = False
    instead: ClassVar[dict[str, bytes]] = {}
    """What a path answers that is none of MLflow's answers."""

    def do_GET(self) -> None:  # the standard library's name
        if Mlflow.known:
            self.answer(200, {"experiment": {"experiment_id": "7"}})
        else:
            self.answer(404, {"error_code": "RESOURCE_DOES_NOT_EXIST"})

    def do_POST(self) -> None:  # the standard library's name
        path = self.path.removeprefix("/base/api/2.0/mlflow/")
        document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Mlflow.said.append((path, document))
        if path == "experiments/create":
            Mlflow.known = True
            self.answer(200, {"experiment_id": "7"})
        elif path == "runs/search":
            self.answer(200, {"runs": Mlflow.runs})
        elif path == "runs/create":
            Mlflow.runs.append({"info": {"run_id": "r1"}})
            self.answer(200, {"run": {"info": {"run_id": "r1"}}})
        else:
            self.answer(200, {})

    def answer(self, status: int, document: dict[str, Any]) -> None:
        path = self.path.removeprefix("/base/api/2.0/mlflow/").partition("?")[0]
        body = Mlflow.instead.get(path, json.dumps(document).encode())
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Silence."""


@pytest.fixture
def mlflow() -> Iterator[str]:
    Mlflow.said, Mlflow.runs, Mlflow.known, Mlflow.instead = [], [], False, {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Mlflow)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/base"
    server.shutdown()
    server.server_close()
    thread.join()


def test_mlflow_is_told_of_one_run_over_all_attempts(tiny_base: Path, tmp_path: Path, mlflow: str) -> None:
    """The second attempt finds the first one's run by its tag; every step arrives; the end is told."""
    recipe = {**SHORT, "tracking": {"mlflow_uri": mlflow + "/", "mlflow_experiment": "echo"}}
    container = make_job(tmp_path / "ml", tiny_base, rows=ROWS, holdout=HOLDOUT, recipe=recipe)
    with pytest.raises(Stopped):
        train(container, stop=StopAt(20))
    train(container)
    paths = [path for path, _ in Mlflow.said]
    assert paths.count("experiments/create") == paths.count("runs/create") == 1
    metrics = [m for _, document in Mlflow.said for m in document.get("metrics", [])]
    assert {m["step"] for m in metrics if m["key"] == "loss"} == set(range(1, 13))
    assert {"loss", "eval_loss", "grad_norm"} <= {m["key"] for m in metrics}
    ends = [document["status"] for path, document in Mlflow.said if path == "runs/update"]
    assert ends == ["SCHEDULED", "FINISHED"]


def test_an_absent_mlflow_changes_nothing(tiny_base: Path, tmp_path: Path) -> None:
    """It is told once; the run has the same bytes as without it."""
    plain = make_job(tmp_path / "plain", tiny_base, rows=ROWS, recipe=SHORT)
    train(plain)
    recipe = {**SHORT, "tracking": {"mlflow_uri": "http://127.0.0.1:9"}}
    container = make_job(tmp_path / "ml", tiny_base, rows=ROWS, recipe=recipe)
    lines: list[str] = []
    train(container, lines.append)
    assert [line for line in lines if "mlflow" in line] == [
        "tracking=mlflow gave up: ConnectError; training goes on without it"
    ]
    assert adapter_bytes(container) == adapter_bytes(plain)


@pytest.mark.parametrize(
    "path", ["experiments/create", "runs/search", "runs/create", "runs/log-batch", "runs/update"]
)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>sign in</html>",
        b"[]",
        b"null",
        b"7",
        b'{"runs": [1]}',
        b'{"runs": {"a": 1}}',
        b'{"run": 1}',
        b"\xff",
    ],
)
def test_whatever_a_server_answers_no_run_ends_by_it(
    tiny_base: Path, tmp_path: Path, mlflow: str, path: str, body: bytes
) -> None:
    """A sign-in page, another form, nothing: at worst it is told once that training goes on without it."""
    Mlflow.instead = {path: body}
    recipe = {**SHORT, "tracking": {"mlflow_uri": mlflow}}
    job = read_training_job(make_job(tmp_path / "ml", tiny_base, rows=ROWS, recipe=recipe))
    lines: list[str] = []
    run = MlflowRun(job.recipe.tracking, job, lines.append)
    for step in range(2 * BATCH):
        run.log(step, {"loss": 1.0})
    run.close("FINISHED")
    assert sum("gave up" in line for line in lines) <= 1


def test_an_address_that_is_none_is_told(tiny_base: Path, tmp_path: Path) -> None:
    """A host that passes for a name in a recipe, and for none in a request."""
    recipe = {**SHORT, "tracking": {"mlflow_uri": "http://xn--a"}}
    job = read_training_job(make_job(tmp_path / "ml", tiny_base, rows=ROWS, recipe=recipe))
    lines: list[str] = []
    MlflowRun(job.recipe.tracking, job, lines.append).close("FINISHED")
    assert lines == ["tracking=mlflow gave up: InvalidCodepoint; training goes on without it"]
