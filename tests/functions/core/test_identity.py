"""Names: what a key may be, and what every derived name must be."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropforge_core.identity import (
    DATASETS,
    JOB_NAME_MAX,
    MODEL_NAME,
    REDRIVE_ROOM,
    SAFE_KEY,
    KeyRefused,
    client_token,
    digest_of,
    job_name,
    parse_dataset_key,
    printable,
    run_id_of,
)

models = st.from_regex(MODEL_NAME, fullmatch=True).filter(lambda name: len(name) <= 40)
segments = st.from_regex(r"[A-Za-z0-9._=-]{1,30}", fullmatch=True).filter(
    lambda part: part not in (".", "..")
)
run_ids = st.builds(
    run_id_of,
    st.text(max_size=20),
    st.text(max_size=40),
    st.lists(st.text(max_size=10), max_size=4),
    st.text(max_size=10),
)


@given(models, st.none() | segments, segments)
def test_a_well_formed_key_is_read_back(model, version, file):
    """Model, version and file come out as they were put in, and lead back to the key."""
    key = DATASETS + "/".join(part for part in (model, version, file) if part is not None)
    read = parse_dataset_key(key)
    assert (read.model, read.version, read.file) == (model, version, file)
    assert read.prefix + read.file == key


@given(st.text(max_size=80) | st.text(max_size=60).map(lambda rest: DATASETS + rest))
def test_any_key_is_either_safe_or_refused_in_plain_ascii(key):
    """What passes has safe characters only and a model that is a name; what doesn't is shown escaped and cut."""
    read, refusal = parsed(key)
    if refusal is None:
        assert SAFE_KEY.fullmatch(key)
        assert MODEL_NAME.fullmatch(read.model)
        assert ".." not in key.split("/")
    else:
        assert refusal.isascii()
        assert refusal.isprintable()
        assert len(refusal) < 400


def parsed(key):
    try:
        return parse_dataset_key(key), None
    except KeyRefused as refused:
        return None, str(refused)


@pytest.mark.parametrize(
    "file", ["_READY", "recipe.yaml", "train.jsonl", "TRAIN.CSV.GZ", "notes.txt", "x.parquet"]
)
def test_a_file_has_one_role(file):
    """Markers, recipes, data and the rest are told apart by name alone."""
    roles = {"_READY": "ready", "recipe.yaml": "recipe", "notes.txt": "other"}
    assert parse_dataset_key(f"datasets/bot/v1/{file}").role == roles.get(file, "data")


@given(models, run_ids, st.integers(1, 99), st.sampled_from("teb"))
def test_job_names_fit_sagemaker_with_room_for_a_redrive(model, run_id, attempt, kind):
    """Every job name has SageMaker's alphabet and length, also with what a redrive appends."""
    name = job_name(model, run_id, attempt, kind)
    redriven = name + "r" + "9" * (REDRIVE_ROOM - 1)
    for candidate in (name, redriven):
        assert re.fullmatch(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}", candidate)
        assert len(candidate) <= JOB_NAME_MAX
    assert f"-{run_id}-{kind}{attempt}" in name


@given(
    st.lists(st.tuples(models, run_ids, st.integers(1, 9)), min_size=2, max_size=2, unique_by=lambda t: t[1:])
)
def test_different_runs_and_attempts_have_different_job_names(jobs):
    """The model's part may be cut, the run's and the attempt's never."""
    one, other = (job_name(*job) for job in jobs)
    assert one != other


@given(
    st.text(max_size=20), st.text(max_size=20), st.lists(st.text(max_size=8), max_size=5), st.text(max_size=8)
)
def test_a_run_id_depends_on_what_was_uploaded_and_not_on_its_order(bucket, key, versions, recipe):
    """26 characters, the same for the same set of versions, another for another recipe."""
    name = run_id_of(bucket, key, versions, recipe)
    assert re.fullmatch(r"[a-z2-7]{26}", name)
    assert name == run_id_of(bucket, key, versions[::-1], recipe)
    assert name != run_id_of(bucket, key, versions, recipe + "x")
    assert name != run_id_of(bucket, key, [*versions, "another"], recipe)


def test_parts_of_a_run_id_do_not_run_into_one_another():
    """A bucket's end is never taken for a key's beginning."""
    assert run_id_of("ab", "c", [], "") != run_id_of("a", "bc", [], "")


@given(run_ids)
def test_a_client_token_is_the_runs_own(run_id):
    """36 characters that CreateModelPackage takes, the same each time."""
    assert re.fullmatch(r"[a-zA-Z0-9-]{36}", client_token(run_id))
    assert client_token(run_id) == client_token(run_id)


@given(st.text())
def test_what_is_shown_is_printable(text):
    """Control characters, emoji and line breaks never reach a log or a message as they are."""
    shown = printable(text)
    assert shown.isascii()
    assert shown.isprintable() or shown == ""
    assert len(shown) <= 120


@given(st.binary(max_size=100), st.integers(1, 10))
def test_a_digest_is_of_the_bytes_not_of_their_pieces(body, size):
    """However a stream is cut, its digest is the same."""
    assert digest_of([body[at : at + size] for at in range(0, len(body), size)]) == digest_of([body])
