"""How OpenLineage names the runs, jobs and datasets of a data set, and what it says of them (facets).

A dataset is named by its place in the store, such as `/data/store/digits/train` in the namespace `file`, whatever it
holds; what it holds is its version, a digest. So a server shows one graph, and a version of each dataset for each run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import UUID, uuid5

from flows.lineage.graph import Kind, Node
from flows.lineage.known import Known
from storage.objects.address import is_address, parse
from storage.words import written

if TYPE_CHECKING:
    from openlineage.client.event_v2 import InputDataset, OutputDataset
    from openlineage.client.facet_v2 import DatasetFacet, InputDatasetFacet, OutputDatasetFacet

NAMESPACE_VARIABLE = "OPENLINEAGE_NAMESPACE"
"""The namespace of jobs; a variable of the client library."""
NAMESPACE = "idxflow"
"""That, if the variable is not set."""
_RUNS = UUID("7f0c1f4e-6c39-4c1e-9b1b-7a3f8d1f5e52")
"""The namespace of the ids of runs (RFC 9562, 5.5)."""
_STEPS: Mapping[Kind, str] = {
    "archive": "fetch",
    "split": "decode",
    "audit": "audit",
    "quarantine": "quarantine",
    "validation": "validate",
    "normalization": "normalize",
    "model": "train",
    "evaluation": "evaluate",
    "confirmation": "confirm",
    "report": "publish",
}
"""The step that makes a kind of thing."""
_COUNTED = ("archive", "split")
"""The kinds of things that have rows and bytes."""
_VERSIONS = ("sha256", "digest", "weights_digest", "key", "run")
"""The facts that can be the version of a dataset: the first that a node has."""


def producer() -> str:
    """Return what made the events, as a URI."""
    return f"idxflow:{version('idxflow')}"


class Names:
    """The names of one data set."""

    def __init__(self, known: Known) -> None:
        self._known = known
        self.namespace = os.environ.get(NAMESPACE_VARIABLE) or NAMESPACE
        # https://github.com/OpenLineage/OpenLineage/blob/main/spec/Naming.md
        address = known.store.address
        self._place, self._folder = "file", address
        if is_address(address):
            place = parse(address)
            self._place, self._folder = f"{place.scheme}://{place.bucket}", place.prefix

    def job(self, step: str = "") -> str:
        """Return the name of the job of a run, or of one of its steps."""
        return f"{self._known.dataset}.{step}" if step else self._known.dataset

    def run_id(self, run: str, step: str = "") -> str:
        """Return the id of a run, or of one of its steps: the same for the same, on any machine."""
        return str(uuid5(_RUNS, f"{self._known.dataset}/{run}/{step}"))

    def input(self, node: Node, validation: Mapping[str, Any] | None = None) -> InputDataset:
        """Return a thing that went into a step.

        Args:
            validation: the record of what that step has found about it, if it is the validation.
        """
        from openlineage.client.event_v2 import InputDataset
        from openlineage.client.facet_v2 import input_statistics_input_dataset as statistics

        facets: dict[str, InputDatasetFacet] = {}
        if node.kind in _COUNTED:
            facets["inputStatistics"] = statistics.InputStatisticsInputDatasetFacet(*_numbers(node))
        if validation:
            facets |= _quality(node, validation)
        return InputDataset(self._place, self._name(node), facets, facets=self._facets(node))

    def output(self, node: Node) -> OutputDataset:
        """Return a thing that a step made."""
        from openlineage.client.event_v2 import OutputDataset
        from openlineage.client.facet_v2 import output_statistics_output_dataset as statistics

        facets: dict[str, OutputDatasetFacet] = {}
        if node.kind in _COUNTED:
            facets["outputStatistics"] = statistics.OutputStatisticsOutputDatasetFacet(*_numbers(node))
        return OutputDataset(self._place, self._name(node), facets, facets=self._facets(node))

    def champion(self, number: int) -> OutputDataset:
        """Return the champion; its version is that of the registry."""
        from openlineage.client.event_v2 import OutputDataset

        return OutputDataset(self._place, self._below("champion"), facets=_described(f"v{number}", "MODEL", "champion"))

    def origin(self, node: Node) -> InputDataset:
        """Return the place where an archive came from."""
        from openlineage.client.event_v2 import InputDataset

        source = valid(str(node.facts.get("source") or "unknown"))
        url = urlsplit(source)
        if url.scheme in ("http", "https", "s3", "gs", "az") and url.netloc:
            return InputDataset(f"{url.scheme}://{url.netloc}", url.path or "/")
        return InputDataset("file" if source.startswith("/") else NAMESPACE, source)

    def _name(self, node: Node) -> str:
        if node.kind == "archive":
            return self._below("archives", str(node.facts.get("file") or node.facts["role"]))
        return self._below(str(node.facts.get("name") or node.kind))

    def _below(self, *parts: str) -> str:
        return valid("/".join(filter(None, (self._folder.rstrip("/"), self._known.dataset, *parts))))

    def _facets(self, node: Node) -> dict[str, DatasetFacet]:
        from openlineage.client.facet_v2 import datasource_dataset

        facts, store = node.facts, self._known.store
        digest = next(str(facts[name]) for name in _VERSIONS if facts.get(name))
        facets = _described(digest, "MODEL" if node.kind == "model" else "FILE", node.kind)
        key = str(facts.get("key") or facts.get("run"))
        where = store.where_entry(self._known.dataset, _STEPS[node.kind], key)
        uri = where if is_address(where) else Path(where).as_uri()
        facets["dataSource"] = datasource_dataset.DatasourceDatasetFacet(valid(store.address), uri)
        if node.kind == "split" and "image_shape" in facts:
            facets["schema"] = _schema(*facts["image_shape"])
        return facets


def valid(text: str) -> str:
    """Return a text with an escape for each byte that is not UTF-8, as a file's name can have."""
    return text.encode(errors="backslashreplace").decode()


def _described(digest: str, kind: str, subject: str) -> dict[str, DatasetFacet]:
    from openlineage.client.facet_v2 import dataset_type_dataset, dataset_version_dataset

    return {
        "version": dataset_version_dataset.DatasetVersionDatasetFacet(digest),
        "datasetType": dataset_type_dataset.DatasetTypeDatasetFacet(kind, subject),
    }


def _schema(height: int, width: int) -> DatasetFacet:
    """Return the columns of a split's Parquet file, see `storage.formats.parquet`."""
    from openlineage.client.facet_v2 import schema_dataset

    field = schema_dataset.SchemaDatasetFacetFields
    image = field("image", f"fixed_size_binary[{height * width}]", f"{height}×{width} pixels, row by row, 0 to 255")
    return schema_dataset.SchemaDatasetFacet([image, field("label", "uint8", "the number of the class")])


def _numbers(node: Node) -> tuple[int | None, int | None]:
    """Return the rows and the bytes of a thing, as far as they are known."""
    return node.facts.get("rows"), node.facts.get("bytes")


def _quality(node: Node, validation: Mapping[str, Any]) -> dict[str, InputDatasetFacet]:
    """Return what a validation has found about a split, or about what is left of both."""
    from openlineage.client.facet_v2 import data_quality_assertions_dataset as assertions
    from openlineage.client.facet_v2 import data_quality_metrics_input_dataset as metrics

    split = node.facts.get("name")
    checks = [check for check in validation["checks"] if split in (None, check["table"])]
    facets: dict[str, InputDatasetFacet] = {
        "dataQualityAssertions": assertions.DataQualityAssertionsDatasetFacet([_assertion(check) for check in checks])
    }
    if counts := validation["class_counts"].get(split):
        column = metrics.ColumnMetrics(distinctCount=sum(count > 0 for count in counts), count=float(sum(counts)))
        facets["dataQualityMetrics"] = metrics.DataQualityMetricsInputDatasetFacet(
            {"label": column}, rowCount=sum(counts)
        )
    return facets


def _assertion(check: Mapping[str, Any]) -> Any:
    from openlineage.client.facet_v2 import data_quality_assertions_dataset

    return data_quality_assertions_dataset.Assertion(
        assertion=str(check["expectation"]),
        success=bool(check["passed"]),
        column=check.get("column") or None,
        severity="error" if check.get("severity") == "critical" else "warn",
        name=valid(str(check["name"])),
        expected=valid(str(check.get("limit"))),
        actual=valid(str(check.get("observed"))),
    )


def listed(parameters: Mapping[str, Any]) -> Sequence[Any]:
    """Return the parameters of a run, as OpenLineage lists them."""
    from openlineage.client.facet_v2 import execution_parameters_run

    parameter = execution_parameters_run.ExecutionParameter
    return [parameter(name, value=valid(written(value))) for name, value in sorted(parameters.items())]
