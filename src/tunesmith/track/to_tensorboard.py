"""Track a run in TensorBoard: write event files, without TensorFlow or torch (`tensorboard --logdir ...`)."""

import time as clock
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.track.tracker import TrackedRun

_TEXTS = {".yaml", ".json"}


class TensorboardTracker:
    """Log a run to TensorBoard; implements `Tracker`."""

    _writer: Any

    def start(self, run: TrackedRun, run_id: str | None) -> str:
        """Open another event file; all files in one folder are one run."""
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(run.folder), flush_secs=5)
        return run_id or run.name

    def log(self, values: Mapping[str, float], *, step: int, time: float) -> None:
        """Log the values of a step."""
        self._add([{"tag": name, "simple_value": value} for name, value in values.items()], step, time)

    def log_file(self, file: Path) -> None:
        """Show a text file as text. TensorBoard stores no other files."""
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.plugins.text.metadata import create_summary_metadata

        if file.suffix not in _TEXTS:
            return
        text = f"```\n{file.read_text(encoding='utf-8')}\n```"
        metadata = create_summary_metadata(display_name=file.name, description="")
        tensor = TensorProto(dtype="DT_STRING", string_val=[text.encode()])
        self._add([{"tag": file.name, "metadata": metadata, "tensor": tensor}], 0, clock.time())

    def finish(self, *, complete: bool) -> None:
        """Flush the event file."""
        self._writer.close()

    def _add(self, values: list[dict[str, Any]], step: int, time: float) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = Summary(value=[Summary.Value(**value) for value in values])
        self._writer.add_event(Event(wall_time=time, step=step, summary=summary))


TRACKER = TensorboardTracker
