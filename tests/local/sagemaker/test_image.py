"""What a process must know of the image is read from its Dockerfile, or refused."""

import pytest

from dropforge.local.sagemaker import DockerfileRefused, entry_point_of, environment_of


@pytest.fixture
def dockerfile(tmp_path):
    """Writes a Dockerfile into a checkout with two packages."""
    for package in ("training_image/tuner", "functions/core"):
        (tmp_path / package).mkdir(parents=True)
        (tmp_path / package / "__init__.py").touch()
    path = tmp_path / "training_image" / "Dockerfile"

    def write(text):
        path.write_text(text, "utf-8")
        return path

    return write


@pytest.mark.parametrize(
    "text",
    [
        'ENTRYPOINT ["python", "-m", "tuner"]',
        'FROM a AS b\nENTRYPOINT ["other"]\nFROM b\n  # said twice\nentrypoint ["/usr/bin/python3.11", \\\n  "-m", "tuner"]',
    ],
)
def test_entry_point(dockerfile, text):
    """The last stage's exec-form entry point is taken, its python replaced."""
    assert entry_point_of(dockerfile(text), "/here/python") == ["/here/python", "-m", "tuner"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("ENTRYPOINT python -m tuner", "Dockerfile:1: .* shell form"),
        ("FROM x\nENTRYPOINT []", "Dockerfile:2: .* shell form"),
        ('FROM x\nENTRYPOINT ["python"]\nFROM y', "no ENTRYPOINT"),
        ("FROM x", "no ENTRYPOINT"),
        ('ENTRYPOINT ["tini", "--", "python"]', "name python there"),
    ],
)
def test_refused(dockerfile, text, why):
    """An entry point that a process can't stand in for is refused, saying where and how to mend it."""
    with pytest.raises(DockerfileRefused, match=why):
        entry_point_of(dockerfile(text), "python")


def test_environment(dockerfile, tmp_path):
    """ENV is carried but for folders of the image; what COPY brings is importable from the checkout."""
    found = environment_of(
        dockerfile(
            """
            FROM x
            ENV HF_HUB_OFFLINE=1 \\
                GREETING="two words" PATH=/opt/bin:$PATH CACHE=/opt/cache
            COPY --from=build /wheels /wheels
            COPY requirements.txt /tmp/
            COPY --chown=1:1 training_image/tuner /opt/program/tuner
            COPY functions/ /opt/program/
            """
        )
    )
    assert found == {
        "HF_HUB_OFFLINE": "1",
        "GREETING": "two words",
        "PYTHONPATH": f"{tmp_path}/training_image:{tmp_path}/functions",
    }


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("FROM x", "no COPY brings a Python package"),
        ("ENV NAME value", "write NAME=value"),
        ('ENV A="x', "ENV"),
    ],
)
def test_environment_refused(dockerfile, text, why):
    """An ENV that can't be read, or an image without our packages, is refused."""
    with pytest.raises(DockerfileRefused, match=why):
        environment_of(dockerfile(text))
