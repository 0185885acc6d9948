"""Where a model comes from: its recipe, verdict, data and versions, as its run or the registry recorded them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from tunesmith.core.files import digest_of
from tunesmith.core.rundir import RunDir
from tunesmith.core.verdict import Verdict
from tunesmith.core.verdict_reader import parse_verdict, read_verdict
from tunesmith.fetch.reference import ModelFolder
from tunesmith.inference.recorded import recorded_recipe
from tunesmith.registry.store import Registry


@dataclass(frozen=True, slots=True)
class Provenance:
    """The records about a model. All are empty for a model that tunesmith did not tune.

    Attributes:
        name: the name in the registry, else that of the recipe.
        version: the version in the registry, such as `viggo@3`.
        recipe: the resolved recipe as JSON.
        data_digest: the digest of the prepared rows.
        rows: the number of rows in each split, after filters.
        steps: the training steps of the model.
        versions: the version of each package that trained it.
    """

    name: str
    version: str | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    verdict: Verdict | None = None
    data_digest: str | None = None
    rows: Mapping[str, int] = field(default_factory=dict)
    steps: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def judgement_digest(self) -> str:
        """A digest of the verdict and of the settings of the evaluation, which an export's card and Modelfile state."""
        return digest_of([self.verdict and self.verdict.to_json(), self.recipe.get("evaluate")])

    @property
    def source_names(self) -> tuple[str, ...]:
        """The names of the training rows' sources: a file without its folder, a dataset of the hub, a generator."""
        return tuple(_source_name(source) for source in self._sources)

    @property
    def hub_datasets(self) -> tuple[str, ...]:
        """The datasets of the hub that training rows come from."""
        named = [str(source["hub"]) for source in self._sources if source.get("hub")]
        return tuple(name for name in dict.fromkeys(named) if not name.startswith((".", "/", "~")))

    @property
    def _sources(self) -> list[dict[str, Any]]:
        given = (self.recipe.get("data") or {}).get("source")
        return [source for source in (given if isinstance(given, list) else [given]) if isinstance(source, dict)]


def provenance_of(model: ModelFolder) -> Provenance:
    """Return the records about a model.

    Raises:
        RecipeError: the recipe of its run cannot be read.
        DamagedFile: its verdict is damaged.
    """
    recipe = recorded_recipe(model)
    step, name = model.card.get("step"), str(model.card.get("name") or recipe.get("name") or model.path.name)
    if model.pin is not None and model.pin.kind == "registry":
        version = Registry.default().resolve(model.pin.at)
        stored = version.facts.get("verdict")
        return Provenance(
            name=version.model,
            version=str(version),
            recipe=recipe,
            verdict=None if stored is None else parse_verdict(stored, where=str(version)),
            data_digest=version.facts.get("data_digest"),
            rows=version.facts.get("rows") or {},
            steps=step,
            versions=version.facts.get("trained_with") or {},
        )
    if model.pin is not None and model.pin.kind == "run":
        run = RunDir(model.pin.at)
        # A verdict is about the best checkpoint, not about others of the same run.
        is_judged = run.verdict.exists() and str((run.manifest("train") or {}).get("best_step")) == model.pin.version
        return Provenance(
            name=(recipe.get("promote") or {}).get("model") or name,
            recipe=recipe,
            verdict=read_verdict(run.verdict) if is_judged else None,
            data_digest=run.data_digest,
            rows=run.row_counts,
            steps=step,
            versions=run.package_versions,
        )
    return Provenance(name, recipe=recipe, steps=step)


def _source_name(source: Mapping[str, Any]) -> str:
    if source.get("name"):
        return str(source["name"])
    given = next((source[kind] for kind in ("hub", "generated", "embedded") if source.get(kind)), None)
    if given is not None:
        name = str(given)
        return PurePosixPath(name).name if name.startswith((".", "/", "~")) else name
    files = source.get("file") or []
    return ", ".join(_file_name(str(file)) for file in ([files] if isinstance(files, str) else files))


def _file_name(file: str) -> str:
    """Return the name of a file without its folder; of an address, without the host, and without a query or a key."""
    return PurePosixPath(urlsplit(file).path if "://" in file else file).name
