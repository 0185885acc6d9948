"""Read what trackers have stored, with their own libraries."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

Points = dict[str, list[tuple[int, float]]]
"""{metric: [(step, value)]}, as stored: a value that was logged twice is there twice."""


def mlflow(folder: Path) -> tuple[Points, dict[str, Any]]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    [experiment] = [found for found in client.search_experiments() if found.name != "Default"]
    [run] = client.search_runs([experiment.experiment_id])
    points = {
        name: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }
    artifacts = {file.path: Path(client.download_artifacts(run.info.run_id, file.path)).read_bytes()
                 for file in client.list_artifacts(run.info.run_id)}  # fmt: skip
    return points, {"status": run.info.status, "settings": run.data.params, "artifacts": artifacts}


def trackio(folder: Path) -> tuple[Points, dict[str, Any]]:
    """Read in a separate process, because trackio reads `TRACKIO_DIR` when it is imported."""
    program = (
        "import json; from trackio.sqlite_storage import SQLiteStorage as S;"
        "[p] = S.get_projects(); [r] = S.get_runs(p);"
        "print(json.dumps([S.get_logs(p, r), S.get_run_config(p, r), str(S.get_artifacts(p))]))"
    )
    environment = {**os.environ, "TRACKIO_DIR": str(folder)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    lines, settings, artifacts = json.loads(done.stdout)
    points: Points = {}
    for line in lines:
        for name, value in line.items():
            if "/" in name:
                points.setdefault(name, []).append((line["step"], value))
    return points, {"settings": settings, "artifacts": artifacts}


def tensorboard(folder: Path) -> tuple[Points, dict[str, Any]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    points = {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}
    texts = {name: events.Tensors(name)[0].tensor_proto.string_val[0] for name in events.Tags()["tensors"]}
    return points, {"artifacts": texts}


def wandb(folder: Path) -> tuple[Points, dict[str, Any]]:
    from wandb.proto.wandb_internal_pb2 import Record

    points: Points = {}
    ids, artifacts, settings = set(), {}, {}
    for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        for record in leveldb_records(file.read_bytes()):
            entry = Record.FromString(record)
            if entry.WhichOneof("record_type") == "run":
                ids.add(entry.run.run_id)
                settings |= {item.key: json.loads(item.value_json) for item in entry.run.config.update}
            if entry.WhichOneof("record_type") == "history":
                for item in entry.history.item:
                    name = item.key or ".".join(item.nested_key)
                    if "/" in name:
                        points.setdefault(name, []).append((entry.history.step.num, json.loads(item.value_json)))
            if entry.WhichOneof("record_type") == "artifact":
                artifacts[entry.artifact.name] = entry.artifact.digest
    return points, {"ids": ids, "settings": settings, "artifacts": artifacts}


def leveldb_records(data: bytes) -> list[bytes]:
    """Return the records of a log in LevelDB's format, in which wandb stores offline runs."""
    records, record, position = [], b"", 7  # after wandb's own header
    while position + 7 <= len(data):
        if (room := 32768 - position % 32768) < 7:
            position += room
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            records.append(record)
            record = b""
    return records


READERS = {"mlflow": mlflow, "trackio": trackio, "tensorboard": tensorboard, "wandb": wandb}
