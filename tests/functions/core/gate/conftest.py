"""Small evaluations, written as the lines that the model server would answer."""

import json
from dataclasses import dataclass, field

import pytest

from dropforge_core.contracts import EvaluationSetup
from dropforge_core.evaluation.join import join
from dropforge_core.gate.judgement import Subject, judge
from dropforge_core.gate.slices import Slicing
from dropforge_core.recipe import BaseModelRef, Evaluation, Gate, Recipe

RUN = "a" * 26


@dataclass
class Evaluated:
    """Prompt and prediction lines of one evaluation; `ask` adds a row with every variant's answer."""

    prompts: list[bytes] = field(default_factory=list)
    predictions: list[bytes] = field(default_factory=list)
    variants: tuple[str, ...] = ("base", "candidate")
    meta: dict = field(default_factory=dict)

    def ask(self, row_id, reference, generate=True, question=None, meta=None, **answers):
        """`answers`: variant to (text, nll)."""
        self.meta[row_id] = meta or {}
        for variant, (text, nll) in answers.items():
            prompt = {
                "id": row_id,
                "variant": variant,
                "messages": [{"role": "user", "content": question or f"question {row_id}"}],
                "reference": reference,
                "generate": generate,
            }
            answer = {
                "id": row_id,
                "variant": variant,
                "text": text if generate else None,
                "finish_reason": "stop",
                "nll": nll,
                "reference_bytes": len(reference.encode()),
            }
            self.prompts.append(json.dumps(prompt).encode())
            self.predictions.append(json.dumps(answer).encode())
        return self

    def joined(self):
        return join(self.prompts, self.predictions, self.variants)

    def judged(self, gate=None, evaluation=None, use=1, **setup):
        """The judgement under a policy; `setup` overrides fields of EvaluationSetup."""
        # The gate's policy is laid in unchecked: the recipe of an older version may hold what today's refuses.
        checked = Recipe(base_model=BaseModelRef(repo="org/base"), evaluation=evaluation or Evaluation())
        recipe = checked.model_copy(update={"gate": gate or Gate()})
        about = EvaluationSetup(
            **{
                "job_name": "m-e1",
                "sagemaker_model_name": "m-e1",
                "prompts": len(self.prompts),
                "variants": self.variants,
                "champion_package_arn": "arn:champion" if "champion" in self.variants else None,
                "champion_model_data": "s3://runs/champion.tar.gz" if "champion" in self.variants else "",
                "training_job_name": "m-t1",
                "model_data": "s3://runs/candidate.tar.gz",
                "base_model_prefix": f"base-models/org/base/{'0' * 40}/",
                **setup,
            }
        )
        subject = Subject(RUN, "m", "sha256:" + "d" * 64, "org/base", about, use)
        return judge(self.joined(), recipe, subject, Slicing(recipe.evaluation.slices, self.meta))


@pytest.fixture
def evaluated():
    return Evaluated


@pytest.fixture
def improved():
    """60 rows on which the candidate's loss is lower, by varying amounts, and 45 more answers are right."""

    def build(rows=60, variants=("base", "candidate"), shift=0.0):
        found = Evaluated(variants=variants)
        for i in range(rows):
            right, wrong = f"answer {i}", "no idea"
            answers = {
                "base": (right if i % 20 == 0 else wrong, 20.0 + i % 5),
                "candidate": (wrong if i % 4 == 3 else right, 8.0 + i % 7 + shift),
                "champion": (wrong if i % 4 == 2 else right, 8.0 + (i + 3) % 7),
            }
            found.ask(f"row-{i:04d}", right, **{v: answers[v] for v in variants})
        return found

    return build
