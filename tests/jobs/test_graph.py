"""The job graph: its labels, coders and windows are golden, so that a running job can be recognised, updated in place and restarted."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_runner_api_pb2 as api

from eventveil.pipeline.graph import Work, build
from eventveil.pipeline.prepare import prepare
from eventveil.schemas.job import parse_job
from eventveil.transforms.keys.custodian import new_custodian
from eventveil.transforms.keys.providers.keyring_file import new_keyring

GOLDEN = Path(__file__).parent / "golden" / "labels.txt"
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RETAIL = [EXAMPLES / "online_retail" / "marketing.yaml", EXAMPLES / "online_retail" / "logistics.yaml"]
GROUPS = {"beam:transform:group_by_key:v1", "beam:transform:combine_per_key:v1", "beam:transform:combine_globally:v1"}
PARDO = "beam:transform:pardo:v1"
SCENARIOS = ["one variant", "two variants", "several types of event"]
# What the graph may consist of at its top; whatever Beam puts inside them is Beam's, and golden too.
OURS = re.compile(r"Start|ListRanges|SpreadRanges|ReadEvents|SplitByType|(DecodeEvents|ApplyPolicy|WriteParts|KeepRefused)(/.+)?")


@dataclass
class Graph:
    """A pipeline as a runner gets it."""

    proto: api.Pipeline
    context: Any

    @property
    def transforms(self) -> list[api.PTransform]:
        """All but Beam's root, which has no name."""
        root = self.proto.root_transform_ids[0]
        return [one for name, one in self.proto.components.transforms.items() if name != root]

    @property
    def top(self) -> list[str]:
        components = self.proto.components
        root = components.transforms[self.proto.root_transform_ids[0]]
        return sorted(components.transforms[name].unique_name for name in root.subtransforms)

    def coder(self, collection: str) -> str:
        """The coder of a collection as text: kv(varint, RecordBatchCoder)."""
        return self._coder(self.proto.components.pcollections[collection].coder_id)

    def _coder(self, name: str) -> str:
        coder = self.proto.components.coders[name]
        inner = ", ".join(map(self._coder, coder.component_coder_ids))
        kind = coder.spec.urn.removeprefix("beam:coder:").removesuffix(":v1")
        if kind == "pickled_python":
            return f"pickled {type(self.context.coders.get_by_id(name)).__name__}"
        return f"{kind}({inner})" if inner else kind

    def windowing(self, collection: str) -> str:
        components = self.proto.components
        strategy = components.windowing_strategies[components.pcollections[collection].windowing_strategy_id]
        trigger = strategy.trigger.WhichOneof("trigger")
        return f"{strategy.window_fn.urn.removeprefix('beam:window_fn:').removesuffix(':v1')} {trigger}"

    def lines(self) -> Iterator[str]:
        for one in sorted(self.transforms, key=lambda one: one.unique_name):
            yield f"{one.unique_name}  [{one.spec.urn}]"
            for tag, collection in sorted(one.outputs.items()):
                # Beam names what has one output only "None".
                yield f"    {'main' if tag == 'None' else tag}: {self.coder(collection)}, {self.windowing(collection)}"


def typed(folder: Path, name: str, kind: str, schema: str, fields: Sequence[str]) -> Path:
    """A policy for one type of event."""
    document = {"type": "record", "name": "Event", "fields": [{"name": one, "type": "string"} for one in fields]}
    (folder / schema).write_text(json.dumps(document))
    head = f"policy: {name}\nversion: 1\nfor: {{recipient: tests}}\nschema: {schema}\ndomain: {name}\n"
    rules = "".join(f"  {one}: {'drop' if one == 'id' else 'keep'}\n" for one in fields)
    (folder / f"{name}.yaml").write_text(f"{head}event: {{id: id, type: {{field: type, is: {kind}}}}}\nfields:\n{rules}")
    return folder / f"{name}.yaml"


def graph(folder: Path, policies: Sequence[Path], files: int = 1, *, spread: bool = True) -> Graph:
    """The job of these policies, built but not run."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        (folder / f"in-{number}.jsonl").write_bytes(b"{}\n" * 10)
    if not (folder / "keyring.json").exists():
        new_keyring(folder / "keyring.json")
        new_custodian(folder / "custodian")
    job = {
        "job": "graph",
        "input": {"uri": str(folder / "in-*.jsonl")},
        "variants": [
            {"policy": str(policy), "output": {"uri": str(folder / "out" / policy.stem), "format": "jsonl"}} for policy in policies
        ],
        "keys": str(folder / "keyring.json"),
        "dead_letters": {"uri": str(folder / "refused"), "custodian": str(folder / "custodian.pub")},
    }
    root = beam.Pipeline("FnApiRunner", options=PipelineOptions(flags=[]))
    ready = prepare(parse_job(json.dumps(job), str(folder / "job.yaml")))
    build(root, ready, Work(ready.ranges, spread=spread))
    return Graph(*root.to_runner_api(return_context=True))


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Graph]:
    folder = tmp_path_factory.mktemp("graphs")
    types = [
        typed(folder, "paid", "order.paid", "paid.avsc", ["id", "type"]),
        typed(folder, "shipped", "order.shipped", "shipped.avsc", ["id", "type", "to"]),
        typed(folder, "shipped-others", "order.shipped", "shipped.avsc", ["id", "type", "to"]),
        typed(folder, "shipped-older", "order.shipped", "older.avsc", ["id", "type", "from"]),
    ]
    policies = [[EXAMPLES / "shipping_order" / "policy.yaml"], RETAIL, types]
    return {name: graph(folder / str(number), given) for number, (name, given) in enumerate(zip(SCENARIOS, policies))}


def test_labels_coders_and_windows_are_golden(graphs: Mapping[str, Graph]) -> None:
    text = "\n".join(f"== {name}\n\n" + "".join(f"{line}\n" for line in graphs[name].lines()) for name in SCENARIOS)

    # A change here is a change that running jobs notice: write it into the changelog.
    assert GOLDEN.read_text("utf-8") == text


def test_labels_do_not_depend_on_input_or_paths(graphs: Mapping[str, Graph], tmp_path: Path) -> None:
    again = graph(tmp_path / "elsewhere", RETAIL, files=7)

    assert list(graphs["two variants"].lines()) == list(again.lines())


def test_one_thread_has_nothing_to_spread(graphs: Mapping[str, Graph], tmp_path: Path) -> None:
    alone = graph(tmp_path / "alone", RETAIL, spread=False)

    assert [name for name in graphs["two variants"].top if name != "SpreadRanges"] == alone.top
    assert not GROUPS & {one.spec.urn for one in alone.transforms}


@pytest.mark.parametrize("name", SCENARIOS)
class TestEveryGraph:
    def test_every_label_is_ours_and_stable(self, graphs: Mapping[str, Graph], name: str) -> None:
        labels = [one.unique_name for one in graphs[name].transforms]

        assert not [label for label in graphs[name].top if not OURS.fullmatch(label)]
        assert len(labels) == len(set(labels))
        # Unlabelled transforms are called after Beam's reference, a line of code or the callable.
        assert not [label for label in labels if label.startswith("ref_") or "[" in label or ".py" in label or "lambda" in label]

    def test_only_ranges_are_grouped_and_never_rows(self, graphs: Mapping[str, Graph], name: str) -> None:
        grouping = [one for one in graphs[name].transforms if one.spec.urn in GROUPS]

        (only,) = grouping
        assert only.unique_name.startswith("SpreadRanges/")
        (given,) = only.inputs.values()
        assert "RecordBatch" not in graphs[name].coder(given)
        # Its key is a number, coded the same by every version.
        assert graphs[name].coder(given).startswith("kv(varint, ")

    def test_no_state_and_no_timers(self, graphs: Mapping[str, Graph], name: str) -> None:
        payloads = [api.ParDoPayload.FromString(one.spec.payload) for one in graphs[name].transforms if one.spec.urn == PARDO]

        assert not [payload for payload in payloads if payload.state_specs or payload.timer_family_specs or payload.restriction_coder_id]

    def test_batches_go_through_our_coder(self, graphs: Mapping[str, Graph], name: str) -> None:
        found = {}
        for one in graphs[name].transforms:
            if re.match("ReadEvents|SplitByType|DecodeEvents|ApplyPolicy", one.unique_name):
                found.update({(one.unique_name, tag): graphs[name].coder(collection) for tag, collection in one.outputs.items()})
        # Nothing ever goes there: all types have tags of their own.
        found.pop(("SplitByType/ParDo(SplitByType)", "None"), None)

        assert {"pickled RecordBatchCoder"} == set(found.values()), found
        assert any(tag == "refused" for _, tag in found)

    def test_everything_is_in_the_global_window(self, graphs: Mapping[str, Graph], name: str) -> None:
        collections = graphs[name].proto.components.pcollections

        # The job waits for nothing; windows are the policies', and columns.
        assert {"global_windows"} == {graphs[name].windowing(one).split(" ")[0] for one in collections}
        assert all(one.is_bounded == api.IsBounded.BOUNDED for one in collections.values())

    def test_every_function_is_ours_by_name_and_comes_back_in_a_clean_process(
        self, graphs: Mapping[str, Graph], name: str, tmp_path: Path
    ) -> None:
        program = """
import sys
from pathlib import Path
from apache_beam.internal import pickler
for file in sorted(Path(sys.argv[1]).iterdir()):
    cls = type(pickler.loads(file.read_bytes())[0])
    # A class that was pickled by value would be another one than its module's.
    print(cls.__module__, cls.__name__, getattr(sys.modules.get(cls.__module__), cls.__name__, None) is cls)
print([name for name in sys.modules if name.split(".")[0] in ("tests", "pytest") or "test_graph" in name])
"""
        pardos = [one for one in graphs[name].transforms if one.spec.urn == PARDO]
        for number, one in enumerate(pardos):
            (tmp_path / f"{number:02}").write_bytes(api.ParDoPayload.FromString(one.spec.payload).do_fn.payload)

        # In an unrelated folder, nothing imported before: as on a worker that has the wheel and no more.
        done = subprocess.run([sys.executable, "-c", program, tmp_path], cwd="/", capture_output=True, text=True, check=False)

        assert 0 == done.returncode, done.stderr
        *functions, last = done.stdout.splitlines()
        assert "[]" == last
        assert len(pardos) == len(functions) >= 9
        assert not [line for line in functions if not re.fullmatch(r"(eventveil\.(pipeline|transforms)|apache_beam)\.\S+ \w+ True", line)]
        classes = {line.split(" ")[1] for line in functions}
        assert {"ListRanges", "ReadEvents", "DecodeEvents", "ApplyPolicy", "WriteParts", "WriteLetters"} <= classes
