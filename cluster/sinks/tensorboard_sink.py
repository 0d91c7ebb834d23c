"""Metrics as TensorBoard's event files, in `tensorboard/` of the run directory."""

import time
from collections.abc import Mapping

from cluster.sinks.sink import SinkRun
from envs.late_imports import import_late

# An extra: not every installation, nor the type checker's, has it.
Event = import_late("tensorboard.compat.proto.event_pb2").Event
Summary = import_late("tensorboard.compat.proto.summary_pb2").Summary
EventFileWriter = import_late("tensorboard.summary.writer.event_file_writer").EventFileWriter
FOLDER = "tensorboard"


class TensorboardSink:
    """Writes one scalar per metric; TensorBoard shows the last value of a repeated step."""

    def __init__(self, run: SinkRun) -> None:
        self._writer = EventFileWriter(str(run.path / FOLDER))

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Write a step; it is on the disk when this returns."""
        rows = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        event = Event(wall_time=time.time(), step=step, summary=Summary(value=rows))
        self._writer.add_event(event)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
