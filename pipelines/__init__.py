"""The kinds of job: a plain dict by name."""

from pipelines.compose import COMPOSE
from pipelines.edit import EDIT
from pipelines.pipeline import Kind
from pipelines.restore import RESTORE

KINDS: dict[str, Kind] = {"restore": RESTORE, "compose": COMPOSE, "edit": EDIT}
