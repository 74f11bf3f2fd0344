"""The model hub over HTTP: commits, configs, and refusals in words."""

import pytest
from stub_hub import serving

from hub import BaseModelUnavailable, Hub, HubUnreachable

COMMIT = "1234567890" * 4


API = "/api/models/org/model/revision/main"
FOUND = (
    200,
    {"sha": COMMIT, "siblings": [{"rfilename": "model.safetensors", "size": 7}, {"rfilename": "x"}]},
    {},
)


def hub(endpoint, waits=None, **options):
    return Hub(endpoint, sleep=(waits if waits is not None else []).append, timeout_s=5, **options)


def test_a_branch_is_resolved_to_its_commit_and_files():
    """The answer names the commit and each file's size."""
    with serving({API: [FOUND]}) as (endpoint, seen):
        found = hub(endpoint, token="t").resolve("org/model", "main")
    assert found.commit == COMMIT
    assert found.files == {"model.safetensors": 7, "x": 0}
    assert seen[0][1] == "Bearer t"


def test_a_busy_hub_is_asked_again_with_growing_waits():
    """429 and 5xx are tried three times in all."""
    waits = []
    with serving({API: [(503, {}, {}), (429, {}, {}), FOUND]}) as (endpoint, _):
        assert hub(endpoint, waits).resolve("org/model", "main").commit == COMMIT
    assert waits == [1.0, 2.0]
    with serving({API: [(503, {}, {})]}) as (endpoint, seen), pytest.raises(HubUnreachable, match="HTTP 503"):
        hub(endpoint).resolve("org/model", "main")
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("status", "says"),
    [(401, "gated or private"), (403, "access token"), (404, "at revision 'main'"), (410, "HTTP 410")],
)
def test_a_refusal_says_what_to_do_and_is_not_repeated(status, says):
    """Gated, private, missing: trying again would not help."""
    with (
        serving({API: [(status, {}, {})]}) as (endpoint, seen),
        pytest.raises(BaseModelUnavailable, match=says),
    ):
        hub(endpoint).resolve("org/model", "main")
    assert len(seen) == 1


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"sha": "main"}', b"\xff"])
def test_an_answer_that_is_no_hub_s_is_told(body):
    """A proxy's page, or another service, is no model."""
    with serving({API: [(200, body, {})]}) as (endpoint, _), pytest.raises(HubUnreachable):
        hub(endpoint).resolve("org/model", "main")


def test_nobody_at_home_is_told():
    """A refused connection names the endpoint."""
    with serving({}) as (endpoint, _):
        pass
    with pytest.raises(HubUnreachable, match=endpoint):
        hub(endpoint).resolve("org/model", "main")


def test_the_token_goes_to_no_other_host():
    """A redirect to another host is followed without the token."""
    config = f"/org/model/resolve/{COMMIT}/config.json"
    with serving({"/elsewhere": [(200, {"model_type": "llama"}, {})]}) as (other, seen_there):
        away = {"Location": other.replace("127.0.0.1", "localhost") + "/elsewhere"}
        with serving({config: [(302, {}, away)]}) as (endpoint, seen_here):
            assert hub(endpoint, token="t").config("org/model", COMMIT) == {"model_type": "llama"}
    assert seen_here[0][1] == "Bearer t"
    assert seen_there == [("/elsewhere", None)]


def test_only_http_addresses_are_opened():
    """A file address in HF_ENDPOINT reads no file."""
    with pytest.raises(ValueError, match="HF_ENDPOINT"):
        Hub("file:///etc")
