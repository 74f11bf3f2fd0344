"""One resident base model and the adapters that are switched on it, by variant."""

import contextlib
import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tuner.artifact import CONFIG, WEIGHTS
from tuner.conversation import ChatCodec
from tuner.failure import Failure
from tuner.integrity import file_digest
from tuner.model import LanguageModel

MEMBERS: Final = frozenset({WEIGHTS, CONFIG, "manifest.json", "training_summary.json"})
MAX_MEMBER_BYTES: Final = 16 * 1024**3


@dataclass(slots=True)
class Variants:
    """Base, champion and candidate as states of one model.

    Attributes:
        refused: why a variant can't answer, for those that can't.
        templates: chat template of each adapter's recipe; None where it was trained under the tokenizer's own.
    """

    base: LanguageModel
    adapted: Any = None
    loaded: set[str] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)
    templates: dict[str, str | None] = field(default_factory=dict)

    def codec(self, variant: str) -> ChatCodec:
        """How the variant reads a conversation: as it was trained to; the bare base, as the candidate does."""
        if variant not in self.templates:
            return self.base.codec
        return self.base.codec.under(self.templates[variant])

    @contextlib.contextmanager
    def active(self, variant: str) -> Iterator[LanguageModel]:
        """The model as one variant.

        Raises:
            KeyError: for a variant that is not loaded; `refused` may say why.
        """
        if variant == "base":
            with self.adapted.disable_adapter() if self.adapted is not None else contextlib.nullcontext():
                yield self.base
            return
        if variant not in self.loaded:
            raise KeyError(variant)
        self.adapted.set_adapter(variant)
        yield self.base

    def add(self, variant: str, folder: Path) -> None:
        """Load an adapter under the variant's name.

        Raises:
            Failure: BASE_MODEL where it was trained on another base, BAD_DATA where its files are altered.
        """
        from peft import PeftModel  # noqa: PLC0415  # five seconds that tests of the rest save

        manifest = read_artifact_manifest(folder)
        trained_on = manifest["base_model"]
        if trained_on["files"] != dict(self.base.manifest.files):
            raise Failure(
                "BASE_MODEL",
                f"the {variant} was trained on {trained_on['name']}@{trained_on['revision']}, "
                f"loaded is {self.base.manifest.name}@{self.base.manifest.revision}",
            )
        if self.adapted is None:
            self.adapted = PeftModel.from_pretrained(self.base.causal, folder, adapter_name=variant)
        else:
            self.adapted.load_adapter(folder, adapter_name=variant)
        self.adapted.eval()
        self.loaded.add(variant)
        self.templates[variant] = manifest.get("chat_template") or None


def read_artifact_manifest(folder: Path) -> Mapping[str, Any]:
    """`manifest.json` of an artifact, after its files were hashed.

    Raises:
        Failure: BAD_DATA where the artifact is not one or was altered.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
        for name in (WEIGHTS, CONFIG):
            if file_digest(folder / name) != manifest["files"][name]:
                raise Failure("BAD_DATA", f"{name} of the artifact is not what its manifest says")
    except (OSError, ValueError, KeyError) as error:
        raise Failure("BAD_DATA", f"the artifact is not whole ({type(error).__name__})") from None
    return manifest


def extract_artifact(archive: Path, folder: Path) -> None:
    """Unpack the known files of a model.tar.gz, and nothing else.

    Raises:
        Failure: BAD_DATA where it is no archive or a member is larger than any adapter.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                if not member.isfile() or name not in MEMBERS:
                    continue
                source = tar.extractfile(member)
                if source is None or member.size > MAX_MEMBER_BYTES:
                    raise Failure("BAD_DATA", f"{name} in the artifact has {member.size} bytes")
                with (folder / name).open("wb") as target:
                    while chunk := source.read(1 << 20):
                        target.write(chunk)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise Failure("BAD_DATA", f"the artifact can't be unpacked ({type(error).__name__})") from None
