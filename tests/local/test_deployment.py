"""What is sent to CloudFormation, what the recipe becomes, and what mails look like; all without an engine."""

import email
import json
from email import policy
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from sample_stack import SAMPLE

from dropforge.local import deploy, stack, template
from dropforge.local.email_outbox import DEFAULT_SUBJECT, Outbox

ROOT = Path(__file__).parents[2]


def test_short_tags_are_spelt_out(tmp_path: Path) -> None:
    """!Ref, !GetAtt, !Sub, !If and !Equals become the functions that JSON templates write; dates stay text."""
    file = tmp_path / "template.yaml"
    file.write_text(
        "Version: 2012-10-17\nA: !Ref B\nB: !GetAtt C.Arn\nC: !If [D, !Sub '${E}', !Ref AWS::NoValue]\n"
        "F: !Equals [a, b]\nG: !Condition H\n"
    )
    assert template.load(file) == {
        "Version": "2012-10-17",
        "A": {"Ref": "B"},
        "B": {"Fn::GetAtt": ["C", "Arn"]},
        "C": {"Fn::If": ["D", {"Fn::Sub": "${E}"}, {"Ref": "AWS::NoValue"}]},
        "F": {"Fn::Equals": ["a", "b"]},
        "G": {"Condition": "H"},
    }


@pytest.mark.parametrize("path", [SAMPLE / "template.yaml", ROOT / "template.yaml"], ids=["sample", "real"])
def test_packaging_leaves_no_local_path(path: Path) -> None:
    """After packaging every Uri is in S3, each folder uploaded once and the same bytes under the same name."""
    uploads: list[dict[str, bytes]] = []
    for _ in range(2):
        kept: dict[str, bytes] = {}
        packaged = template.package(
            template.load(path),
            path.parent,
            lambda name, body, kept=kept: kept.update({name: body}) or f"s3://b/{name}",
        )
        uploads.append(kept)
        shared = packaged["Globals"]["Function"].get("CodeUri", "s3://")
        uris = [shared] + [
            resource.get("Properties", {}).get(field, "s3://")
            for resource in packaged["Resources"].values()
            for field in ("CodeUri", "ContentUri", "DefinitionUri")
        ]
        assert all(uri.startswith("s3://") for uri in uris)
    assert uploads[0] == uploads[1]


def test_the_default_recipe_fits_its_parameter() -> None:
    """The demo recipes, as the parameter, are what the files say, name the real bucket and keep the limit."""
    for name in ("demo.yaml", "demo-fast.yaml"):
        path = stack.RECIPES / name
        text = stack.default_recipe(path, "the-bucket")
        said, given_text = yaml.safe_load(path.read_text()), yaml.safe_load(text)
        assert given_text["base_model"].startswith("s3://the-bucket/sources/")
        assert {**given_text, "base_model": said["base_model"]} == said
        assert len(text) <= template.load(ROOT / "template.yaml")["Parameters"]["DefaultRecipe"]["MaxLength"]


def test_a_value_that_cloudformation_would_refuse_is_refused_first() -> None:
    """The template's own patterns and words; nothing is started for a stack that could not be."""
    deploy.check(ROOT / "template.yaml", {"MlflowTrackingUri": "http://127.0.0.1:5000", "NoParameter": "x"})
    with pytest.raises(
        deploy.DeploymentFailed, match=r"MlflowTrackingUri can't be 'http://elsewhere'.*https"
    ):
        stack.start(mlflow_uri="http://elsewhere")


def test_a_renamed_run_bucket_is_noticed() -> None:
    """If the template names the run bucket otherwise than the recipe was told, the start fails with a reason."""
    with pytest.raises(stack.LocalStackFailed, match="elsewhere"):
        stack.described("http://127.0.0.1:1", {"RunBucketName": "elsewhere"})


@given(
    subject=st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=90),
    text=st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"])),
)
def test_any_mail_is_kept_and_read_again(
    tmp_path_factory: pytest.TempPathFactory, subject: str, text: str
) -> None:
    """Whatever subject and text SNS takes, the file has them, and its name is safe."""
    folder = tmp_path_factory.mktemp("outbox")
    path = Outbox(folder, lambda: 1_800_000_000.0).put("you@example.com", subject, text, "arn:topic")
    assert path.parent == folder
    assert path.name.isascii()
    mail = email.message_from_bytes(path.read_bytes(), policy=policy.default)
    assert str(mail["Subject"]).split() == (subject or DEFAULT_SUBJECT).split()
    assert mail.get_content().rstrip("\n") == text.rstrip("\n")


def test_the_template_json_is_json() -> None:
    """The real template survives JSON, as it is sent."""
    loaded = template.load(ROOT / "template.yaml")
    assert json.loads(json.dumps(loaded)) == loaded
