"""MLflow: a folder of files, or a server."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from fangyan.config import PathName
from fangyan.trackers.callback import Callback, Status
from fangyan.trackers.tracker import TrackerConfig, keep, read_kept, scalars

# What MLflow does not take in a name, how many characters of a parameter it takes, and how many at once.
_NOT_IN_NAMES, _LONGEST, _AT_ONCE = re.compile(r"[^\w./: -]"), 6000, 100
# Of its own environment. A request to a server that is gone ends within half a minute, not in an hour.
_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_FILE_STORE": "true",  # it asks for a database otherwise
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
}
_ENDS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class MLflow(TrackerConfig):
    """MLflow: files in a folder, which the runs of a project share, or a server."""

    name: Literal["mlflow"] = "mlflow"
    uri: PathName = Field("mlruns", description="A folder, or the address of a server, http://host:5000.")
    experiment: Annotated[str, Field(min_length=1, max_length=500)] = Field(
        "fangyan", description="Where the run is shown; it is made if it is not there."
    )
    module: ClassVar[str] = "mlflow"
    package: ClassVar[str] = "mlflow-skinny"

    @override
    def build(self) -> Callback:
        """Return what follows a run; see :class:`TrackerConfig`."""
        return MLflowRun(self)


class MLflowRun(Callback):
    """A run of MLflow's. One that resumes goes on with it; values that are there already are left out."""

    def __init__(self, config: MLflow):
        self._config = config
        self._pending: list[Any] = []
        # The last step of each metric.
        self._last: dict[str, int] = {}

    @override
    def start(self, name: str, folder: Path, recipe: dict[str, Any], resumed: int | None) -> None:
        """Begin the run, or go on with it: its id is kept in the run folder."""
        for variable, value in _SETTINGS.items():
            os.environ.setdefault(variable, value)
        from mlflow import MlflowClient
        from mlflow.entities import Param

        config, uri = self._config, self._config.uri
        if "://" not in uri:
            uri = str(Path(uri).absolute())
        self._client = MlflowClient(tracking_uri=uri)
        kept = read_kept(folder, config.name)
        if kept.get("uri") == uri and kept.get("experiment") == config.experiment:
            self._id = str(kept["run"])
            self._client.update_run(self._id, status="RUNNING")
            for key in self._client.get_run(self._id).data.metrics:
                self._last[key] = max(m.step for m in self._client.get_metric_history(self._id, key))
            return
        experiment = self._client.get_experiment_by_name(config.experiment)
        number = (
            self._client.create_experiment(config.experiment)
            if experiment is None
            else experiment.experiment_id
        )
        self._id = self._client.create_run(number, run_name=name).info.run_id
        keep(folder, config.name, {"uri": uri, "experiment": config.experiment, "run": self._id})
        shown = {_as_name(field): str(value)[:_LONGEST] for field, value in _fields(recipe)}
        parameters = [Param(field, value) for field, value in shown.items()]
        for first in range(0, len(parameters), _AT_ONCE):
            self._client.log_batch(self._id, params=parameters[first : first + _AT_ONCE])

    @override
    def metrics(self, kind: str, split: str, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Write values; losses, which are read some steps at a time, with the speed that comes after them."""
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        for name, value in scalars(kind, split, values).items():
            key = _as_name(name)
            if step > self._last.get(key, -1):
                self._pending.append(Metric(key, value, now, step))
        if kind != "train" or len(self._pending) >= _AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            self._client.log_batch(self._id, metrics=self._pending)
            self._pending = []

    @override
    def end(self, status: Status, result: Mapping[str, Mapping[str, float]]) -> None:
        """Write what is left, and how the run ended."""
        self._flush()
        self._client.set_terminated(self._id, _ENDS[status])


def _as_name(text: str) -> str:
    return _NOT_IN_NAMES.sub("_", text)


def _fields(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the fields of a recipe by their dotted names."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
