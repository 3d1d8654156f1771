"""The Grafana dashboard of the example: its structure, and that each query finds something."""

import re
from typing import Annotated, Any, Literal

import pydantic
from pydantic import ConfigDict, Field

from autotune.on_ray.metrics import METRICS
from tests.monitoring.conftest import EXAMPLES, Prometheus, Search, wait_for

DASHBOARD = EXAMPLES / "grafana.json"


# After https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model
class _Strict(pydantic.BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class DataSource(_Strict):
    type: Literal["prometheus"]
    uid: Literal["${datasource}"]


class Target(_Strict):
    refId: Annotated[str, Field(pattern="^[A-Z]$")]
    datasource: DataSource
    expr: Annotated[str, Field(min_length=1)]
    legendFormat: str
    format: Literal["time_series", "table"] = "time_series"
    instant: bool = False


class GridPosition(_Strict):
    """Of 24 columns."""

    x: Annotated[int, Field(ge=0, lt=24)]
    y: Annotated[int, Field(ge=0)]
    w: Annotated[int, Field(ge=1, le=24)]
    h: Annotated[int, Field(ge=1)]


class Defaults(_Strict):
    unit: Literal["s", "percentunit", "none", "gbytes"]


class FieldConfig(_Strict):
    defaults: Defaults
    overrides: list[Any]


class Panel(_Strict):
    id: int
    title: str
    description: Annotated[str, Field(min_length=1)]
    type: Literal["stat", "table", "timeseries"]
    datasource: DataSource
    gridPos: GridPosition
    targets: Annotated[list[Target], Field(min_length=1)]
    fieldConfig: FieldConfig
    options: dict[str, Any]


class DataSourceVariable(_Strict):
    type: Literal["datasource"]
    name: Literal["datasource"]
    label: str
    query: Literal["prometheus"]
    current: dict[str, Any]


class QueryVariable(_Strict):
    type: Literal["query"]
    name: str
    label: str
    datasource: DataSource
    query: str
    refresh: Literal[1, 2]
    includeAll: bool
    allValue: str
    multi: bool
    current: dict[str, Any]


class Templating(_Strict):
    list: list[Annotated[DataSourceVariable | QueryVariable, Field(discriminator="type")]]


class Annotations(_Strict):
    list: list[Any]


class Dashboard(_Strict):
    uid: Annotated[str, Field(max_length=40)]
    title: str
    description: str
    tags: list[str]
    schemaVersion: Annotated[int, Field(ge=36)]
    version: int
    editable: bool
    refresh: str
    time: dict[Literal["from", "to"], str]
    timezone: Literal["browser", "utc"]
    templating: Templating
    annotations: Annotations
    links: list[Any]
    panels: list[Panel]


def dashboard() -> Dashboard:
    return Dashboard.model_validate_json(DASHBOARD.read_text())


def test_its_panels_do_not_overlap_and_have_queries_of_their_own() -> None:
    panels = dashboard().panels
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel.gridPos
        cells = {
            (x, y)
            for x in range(place.x, place.x + place.w)
            for y in range(place.y, place.y + place.h)
        }
        assert max(x for x, _ in cells) < 24 and not cells & taken, panel.title
        taken |= cells
        letters = [target.refId for target in panel.targets]
        assert len(set(letters)) == len(letters), panel.title
    assert len({panel.id for panel in panels}) == len({p.title for p in panels}) == len(panels)


def test_every_metric_is_shown_and_every_variable_is_defined() -> None:
    board = dashboard()
    expressions = [target.expr for panel in board.panels for target in panel.targets]
    queries = [v.query for v in board.templating.list if isinstance(v, QueryVariable)]
    named = set(re.findall(r"ray_\w+", " ".join(expressions)))
    assert named == {metric.exported_name for metric in METRICS}
    assert set(re.findall(r"ray_\w+", " ".join(queries))) <= named
    variables = {variable.name for variable in board.templating.list}
    used = set(re.findall(r"\$\{?(\w+)", " ".join([*expressions, *queries, "${datasource}"])))
    assert used == variables


def test_every_query_finds_something_during_a_search(
    search: Search, prometheus: Prometheus
) -> None:
    search.begin()
    search.run(3)
    search.begin_trial()
    for panel in dashboard().panels:
        for target in panel.targets:
            expression = target.expr.replace("$space", "llm13b")
            expression = expression.replace("$run", str(search.directory))
            found = wait_for(
                lambda e=expression: prometheus.query(e), f"{panel.title}: {expression}"
            )
            for label in re.findall(r"{{(\w+)}}", target.legendFormat):
                assert all(label in series["metric"] for series in found), (panel.title, label)
