"""What to learn from: photos with labels, pairs that match by geometry, views, generated scenes.

`open_source` makes a source of what a user writes. A `Source` has photos with labels
(`FolderOfFolders`, `RetrievalSfm`, and `prepared.Prepared` for data sets of tensorflow-datasets):
`plan_epoch` chooses which of them meet in a step. A `Drawn` makes new images for every step
(`PhotoViews`, whose `plan` lets photos meet that are hard to tell apart, and `GeneratedScenes`).
None of this needs JAX, so it runs in processes of its own.
"""

from rmacjax.finetune.sources.folders import FolderOfFolders
from rmacjax.finetune.sources.generated import STAGES, GeneratedScenes, Stage, parse_stages
from rmacjax.finetune.sources.geometry import RetrievalSfm, find_geometry
from rmacjax.finetune.sources.opening import open_source
from rmacjax.finetune.sources.parts import Part, hold_out
from rmacjax.finetune.sources.plans import Planned, plan_epoch
from rmacjax.finetune.sources.protocols import Drawing, Drawn, Source, is_labelled
from rmacjax.finetune.sources.views import PhotoViews

__all__ = [
    "STAGES",
    "Drawing",
    "Drawn",
    "FolderOfFolders",
    "GeneratedScenes",
    "Part",
    "PhotoViews",
    "Planned",
    "RetrievalSfm",
    "Source",
    "Stage",
    "find_geometry",
    "hold_out",
    "is_labelled",
    "open_source",
    "parse_stages",
    "plan_epoch",
]
