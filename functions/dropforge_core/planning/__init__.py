"""What a training run needs and costs, told before anything is started. Pure: no AWS, no clock, no network.

shape = shape_of(json.loads(config_json))
base = BaseSource(name="org/model", source="hub:org/model@<40 hex>", prefix="base-models/...", cached=False)
plan(recipe=recipe, dataset=facts, shape=shape, base=base, run_id=run_id, model="support-bot")
"""

from dropforge_core.planning.base import BaseSource, source_revision
from dropforge_core.planning.catalogue import Catalogue, load_catalogue
from dropforge_core.planning.explain import headline
from dropforge_core.planning.plan import plan
from dropforge_core.planning.shape import (
    BaseModelUnsuitable,
    CountedShape,
    ModelShape,
    refuse_unsuitable,
    shape_of,
    weight_bytes_of,
)

__all__ = (
    "BaseModelUnsuitable",
    "BaseSource",
    "Catalogue",
    "CountedShape",
    "ModelShape",
    "headline",
    "load_catalogue",
    "plan",
    "refuse_unsuitable",
    "shape_of",
    "source_revision",
    "weight_bytes_of",
)
