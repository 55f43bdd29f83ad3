"""Jobs for Dataflow, submitted by Beam's own runner to a fake of the service: what is staged is what workers would get.

That proves what is sent, and that workers can read it; it does not prove permissions, images, or how the service runs it.
"""

from __future__ import annotations

import base64
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.portability.api import beam_runner_api_pb2 as api
from google.protobuf.wrappers_pb2 import BytesValue

from eventveil.pipeline.engine import build_on_engine
from eventveil.pipeline.prepare import ReadyJob, prepare
from eventveil.schemas.errors import EventveilError, PolicyError, StorageError, Unreachable
from eventveil.schemas.job import parse_job
from eventveil.transforms.keys.derive import context, hkdf
from eventveil.transforms.keys.keyring import load_keys
from eventveil.transforms.keys.providers.keyring_file import new_keyring

try:
    import apache_beam.runners.dataflow.internal.apiclient
except ImportError:
    if os.environ.get("CI") == "true":
        raise
    pytest.skip("needs eventveil[dataflow]", allow_module_level=True)

from eventveil.pipeline.runners.dataflow import Submitted, dataflow_options, labels_of, submit

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
SHIPPING = ROOT / "examples" / "shipping_order"
FakeDataflow = runpy.run_path(str(HERE / "fake_dataflow.py"))["FakeDataflow"]
FakeBigQuery = runpy.run_path(str(ROOT / "tests" / "pipeline" / "sinks" / "tables" / "fake_bigquery.py"))["FakeBigQuery"]
GCS = runpy.run_path(str(HERE / "fake_gcs.py"))
CANARY = runpy.run_path(str(ROOT / "tests" / "jobs" / "everything" / "canary.py"))
write_policies = runpy.run_path(str(ROOT / "tests" / "jobs" / "renumbered.py"))["write_policies"]

BUCKET = "staging-of-the-shop"
PARDO, GROUP = "beam:transform:pardo:v1", "beam:transform:group_by_key:v1"
_STREAMING = 2  # of Dataflow's JobType
KINDS = ["messages to a table", "topics to a table", "numbered windows"]
AT_GOOGLE = "pubsub://the-shop/orders"

Build = Callable[[beam.Pipeline], None]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A bucket; everything that asks Google for one is sent there."""
    try:
        server = GCS["FakeGcs"](tmp_path_factory.mktemp("gcs"), BUCKET)
        server.__enter__()
    except GCS["CannotBuildError"] as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no bucket: {error}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", server.address)
        patch.setenv("GOOGLE_CLOUD_PROJECT", "the-shop")
        try:
            yield server
        finally:
            server.__exit__()


@pytest.fixture(scope="module")
def bigquery() -> Iterator[Any]:
    with FakeBigQuery() as server:
        yield server


@pytest.fixture
def dataflow() -> Iterator[Any]:
    with FakeDataflow() as service:
        yield service


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    copy, dist = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("dist")
    for name in ("schemas", "transforms", "pipeline"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(dist), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = dist.glob("*.whl")
    return path


# -- jobs -------------------------------------------------------------------------------------------------------------


def messages_job(folder: Path, bigquery: Any, source: str = AT_GOOGLE) -> tuple[ReadyJob, Build]:
    """From Pub/Sub to a table whose rows are written as their windows close, for two recipients."""
    names = {"policy": "orders", "trusted": "trusted_orders"}
    return _streaming(folder, bigquery, source, {str(SHIPPING / f"{policy}.yaml"): table for policy, table in names.items()})


def topics_job(folder: Path, bigquery: Any) -> tuple[ReadyJob, Build]:
    """From Kafka, which is asked nothing before the job runs."""
    return messages_job(folder, bigquery, "kafka://localhost:9092/orders?group=veil")


def numbered_job(folder: Path, bigquery: Any) -> tuple[ReadyJob, Build]:
    """From Pub/Sub, several types of event; people are numbered within a window."""
    write_policies(folder)
    return _streaming(folder, bigquery, AT_GOOGLE, {str(folder / f"{name}.policy.yaml"): name for name in ("orders", "carts")})


def _streaming(folder: Path, bigquery: Any, source: str, tables: Mapping[str, str]) -> tuple[ReadyJob, Build]:
    new_keyring(folder / "keyring.json")
    settings = dict(bigquery.settings)
    variants = [
        {"policy": policy, "output": {"uri": f"bigquery://the-shop/{folder.name}/{table}", "client": settings}}
        for policy, table in tables.items()
    ]
    document = {
        "job": "orders",
        "input": {"uri": source, "format": "jsonl"},
        "variants": variants,
        "keys": str(folder / "keyring.json"),
        "allow_loss": True,
        "runner": "dataflow",
        "dataflow": {"project": "the-shop", "region": "europe-west1", "temp_location": f"gs://{BUCKET}/temp"},
    }
    ready = prepare(parse_job(json.dumps(document), str(folder / "job.yaml")))
    return ready, lambda root: build_on_engine(root, ready, {})


MAKERS = dict(zip(KINDS, (messages_job, topics_job, numbered_job)))


# -- what is sent -----------------------------------------------------------------------------------------------------


@dataclass
class Sent:
    """A job as it was handed over.

    Attributes:
        request: what the service was asked for. proto: the graph. staged: the files for workers, by name.
    """

    ready: ReadyJob
    told: Submitted
    request: dict[str, Any]
    proto: api.Pipeline
    staged: dict[str, Path]

    @property
    def transforms(self) -> list[api.PTransform]:
        root = self.proto.root_transform_ids[0]
        return [one for name, one in self.proto.components.transforms.items() if name != root]

    def coder(self, name: str) -> str:
        """A coder as text: kv(varint, RecordBatchCoder)."""
        coder = self.proto.components.coders[name]
        if coder.spec.urn == "beam:coder:pickled_python:v1":
            # Beam writes the name of the class before what it pickles.
            return f"pickled {BytesValue.FromString(coder.spec.payload).value.partition(b'$')[0].decode()}"
        inner = ", ".join(map(self.coder, coder.component_coder_ids))
        kind = coder.spec.urn.removeprefix("beam:coder:").removesuffix(":v1")
        return f"{kind}({inner})" if inner else kind

    def of(self, collection: str) -> str:
        return self.coder(self.proto.components.pcollections[collection].coder_id)

    def golden(self) -> dict[str, Any]:
        """What an update in place depends on, to be read by people."""
        components = self.proto.components
        urns: dict[str, str] = {}
        for one in self.transforms:
            if one.spec.urn and not one.subtransforms:
                urns[one.unique_name] = one.spec.urn.removeprefix("beam:transform:").removesuffix(":v1")
        groups = {one.unique_name: self.of(next(iter(one.inputs.values()))) for one in self.transforms if one.spec.urn == GROUP}
        windows = {
            f"{one.window_fn.urn.removeprefix('beam:window_fn:').removesuffix(':v1')}, {one.trigger.WhichOneof('trigger')}, "
            f"lateness {one.allowed_lateness // 1000} s"
            for one in components.windowing_strategies.values()
        }
        coders = {self.of(name) for name in components.pcollections}
        return {
            "type": {_STREAMING: "streaming"}[self.request["type"]],
            "transforms": dict(sorted(urns.items())),
            "groups": dict(sorted(groups.items())),
            "windows": sorted(windows),
            "coders": sorted(coders),
            "requirements": sorted(self.proto.requirements),
        }


def options(dataflow: Any, **given: Any) -> Any:
    given = {"labels": {}, "temp_location": f"gs://{BUCKET}/temp", **given}
    extra = [*dataflow.flags, *given.pop("extra", ["--sdk_container_image=registry.example.org/eventveil:1"])]
    return dataflow_options(given.pop("job_name", "orders"), "the-shop", "europe-west1", extra=extra, **given)


def sent_of(bucket: Any, dataflow: Any, ready: ReadyJob, told: Submitted, before: set[str]) -> Sent:
    staged = {name: path for name, path in bucket.files(BUCKET).items() if name not in before}
    (graph,) = (path for name, path in staged.items() if name.endswith("pipeline.pb"))
    return Sent(ready, told, dataflow.last, api.Pipeline.FromString(graph.read_bytes()), staged)


@pytest.fixture(scope="module")
def sent(bucket: Any, bigquery: Any, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Sent]:
    """Each kind of job, submitted."""
    found = {}
    for number, (kind, make) in enumerate(MAKERS.items()):
        with FakeDataflow() as dataflow:
            ready, build_graph = make(tmp_path_factory.mktemp("job"), bigquery)
            before = set(bucket.files(BUCKET))
            given = {"wheel": str(wheel), "labels": labels_of([one.plan for one in ready.variants])}
            told = submit(build_graph, options(dataflow, job_name=f"orders-{number}", **given))
            found[kind] = sent_of(bucket, dataflow, ready, told, before)
    return found


@pytest.mark.parametrize("kind", KINDS)
class TestWhatIsSent:
    def test_is_golden(self, sent: Mapping[str, Sent], kind: str) -> None:
        golden = HERE / "golden" / f"dataflow-{kind.replace(' ', '-')}.json"
        text = json.dumps(sent[kind].golden(), indent=1) + "\n"
        if os.environ.get("EVENTVEIL_WRITE_GOLDEN"):
            golden.write_text(text)

        # A change here is a change that running jobs notice: write it into the changelog.
        assert golden.read_text("utf-8") == text

    def test_the_service_is_told_what_it_needs(self, sent: Mapping[str, Sent], kind: str) -> None:
        one = sent[kind]
        shown = json.dumps(one.request)

        assert one.request["id"] == one.told.job_id
        assert f"https://console.cloud.google.com/dataflow/jobs/europe-west1/{one.told.job_id}?project=the-shop" == one.told.address
        assert _STREAMING == one.request["type"]
        assert one.ready.variants[0].plan.digest[:63] in one.request["labels"].values()
        assert all(re.fullmatch("[a-z][a-z0-9_-]{0,62}", name) for name in one.request["labels"])
        assert all(re.fullmatch("[a-z0-9_-]{0,63}", value) for value in one.request["labels"].values())
        assert "disable_always_on_exception_sampling" in shown and "enable_data_sampling" not in shown

    def test_every_label_is_stable(self, sent: Mapping[str, Sent], kind: str) -> None:
        labels = [one.unique_name for one in sent[kind].transforms]
        root = sent[kind].proto.components.transforms[sent[kind].proto.root_transform_ids[0]]
        top = [sent[kind].proto.components.transforms[name].unique_name for name in root.subtransforms]

        assert len(labels) == len(set(labels))
        # Unlabelled transforms are called after Beam's reference, a line of code or the callable.
        unstable = re.compile(r"^ref_|\[|\.py|lambda| at 0x")
        assert [] == [label for label in labels if unstable.search(label) and not label.startswith("ReadMessages/")]
        assert [] == [label for label in top if not re.fullmatch(r"[A-Z][A-Za-z]+(/.+)?", label)]

    def test_no_key_of_a_group_or_state_is_pickled(self, sent: Mapping[str, Sent], kind: str) -> None:
        one = sent[kind]
        keyed = [next(iter(step.inputs.values())) for step in one.transforms if step.spec.urn == GROUP]
        pardos = [api.ParDoPayload.FromString(step.spec.payload) for step in one.transforms if step.spec.urn == PARDO]

        assert keyed
        assert {True} == {re.match(r"kv\((varint|bytes), ", one.of(collection)) is not None for collection in keyed}
        assert [] == [payload for payload in pardos if payload.state_specs or payload.timer_family_specs]

    def test_batches_go_through_our_coder(self, sent: Mapping[str, Sent], kind: str) -> None:
        ours = "DecodeEvents|DecodeMessages|BatchMessages|ReadEvents|ApplyPolicy|SplitByType"
        found = {}
        for step in sent[kind].transforms:
            if step.spec.urn == PARDO and re.match(ours, step.unique_name):
                found.update({(step.unique_name, tag): sent[kind].of(collection) for tag, collection in step.outputs.items()})
        # What has tags for everything has nothing without one.
        found = {place: coder for place, coder in found.items() if place[1] != "None" or "Messages/ParDo(DecodeMessages)" not in place[0]}

        assert {"pickled RecordBatchCoder"} == set(found.values()), found

    def test_every_function_and_coder_comes_back_where_only_the_wheel_is(
        self, sent: Mapping[str, Sent], kind: str, wheel: Path, tmp_path: Path
    ) -> None:
        names = unpickled(sent[kind].proto, wheel, tmp_path)

        assert len(names) >= 9
        assert [] == [name for name in names if not name.startswith(("eventveil.", "apache_beam."))]

    def test_the_wheel_is_staged_and_no_session(self, sent: Mapping[str, Sent], kind: str, wheel: Path) -> None:
        names = {name.rpartition("/")[2] for name in sent[kind].staged}

        assert {"pipeline.pb", wheel.name, "extra_packages.txt", "submission_environment_dependencies.txt"} >= names - {
            name for name in names if name.endswith(".json")
        }
        assert wheel.name in names
        assert not [name for name in names if "main_session" in name]

    def test_no_key_is_in_what_is_sent(self, sent: Mapping[str, Sent], kind: str) -> None:
        keys = keys_of(sent[kind].ready)
        everything = [path.read_bytes() for path in sent[kind].staged.values() if path.suffix != ".whl"]

        assert set() == keys.found(json.dumps(sent[kind].request), *everything)
        # The search looks into what Beam packs: the policies are there.
        seen = CANARY["Canaries"]()
        seen.add("policy", sent[kind].ready.variants[0].plan.digest)
        assert {"policy"} == seen.found(*everything)


def root_of(ready: ReadyJob) -> bytes:
    return base64.b64decode(json.loads(Path(ready.sealing.keys).read_text())["root"])


def keys_of(ready: ReadyJob) -> Any:
    """The root of the keyring, and what is derived from it for the job, to be looked for in runs of eight bytes."""
    keys = load_keys(ready.sealing.keys)
    found = CANARY["Canaries"]()
    found.add_bytes("root", root_of(ready))
    found.add_bytes("letters", keys.letters_key())
    for variant in ready.variants:
        found.add_bytes("domain", hkdf(root_of(ready), context("domain", variant.plan.domain)))
    return found


_UNPICKLE = """
import sys
from apache_beam.coders.coders import deserialize_coder
from apache_beam.internal import pickler
from apache_beam.portability.api import beam_runner_api_pb2 as api
from google.protobuf.wrappers_pb2 import BytesValue
proto = api.Pipeline.FromString(open(sys.argv[1], "rb").read())
import eventveil.schemas.errors
assert eventveil.schemas.errors.__file__.startswith(sys.argv[2]), eventveil.schemas.errors.__file__
for one in proto.components.transforms.values():
    if one.spec.urn == "beam:transform:pardo:v1":
        cls = type(pickler.loads(api.ParDoPayload.FromString(one.spec.payload).do_fn.payload)[0])
        # A class that was pickled by value would be another one than its module's.
        assert getattr(sys.modules.get(cls.__module__), cls.__name__, None) is cls, cls
        print(cls.__module__, cls.__name__)
for coder in proto.components.coders.values():
    if coder.spec.urn == "beam:coder:pickled_python:v1":
        print(type(deserialize_coder(BytesValue.FromString(coder.spec.payload).value)).__module__)
print(*[name for name in sys.modules if name.split(".")[0] in ("tests", "pytest", "conftest")])
"""


def unpickled(proto: api.Pipeline, wheel: Path, folder: Path) -> list[str]:
    """Functions and coders as a worker finds them that has the wheel and no checkout."""
    installed = folder / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    (folder / "pipeline.pb").write_bytes(proto.SerializeToString())
    done = subprocess.run(
        [sys.executable, "-c", _UNPICKLE, folder / "pipeline.pb", installed],
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *names, last = done.stdout.splitlines()
    assert last == ""
    return names


class Strange(beam.DoFn):
    """A function of a module that no worker has."""

    def __init__(self, held: bytes = b"") -> None:
        self._held = held

    def process(self, element: Any) -> Iterator[Any]:
        yield element


def with_strange(held: bytes = b"") -> Build:
    def build_graph(root: beam.Pipeline) -> None:
        root | "Start" >> beam.Impulse() | "Strange" >> beam.ParDo(Strange(held))

    return build_graph


class TestThatTheChecksCanFail:
    def test_a_function_that_no_worker_has_is_noticed(self, bucket: Any, dataflow: Any, wheel: Path, tmp_path: Path) -> None:
        before = set(bucket.files(BUCKET))
        told = submit(with_strange(), options(dataflow, job_name="strange"))
        graph = sent_of(bucket, dataflow, None, told, before).proto  # type: ignore[arg-type]

        with pytest.raises(AssertionError, match=r"No module named|Strange"):
            unpickled(graph, wheel, tmp_path)

    def test_a_key_in_a_function_is_noticed(self, bucket: Any, dataflow: Any, sent: Mapping[str, Sent]) -> None:
        ready = sent[KINDS[0]].ready
        before = set(bucket.files(BUCKET))
        told = submit(with_strange(root_of(ready)[4:13]), options(dataflow, job_name="leaking"))
        staged = sent_of(bucket, dataflow, ready, told, before).staged

        assert {"root"} == keys_of(ready).found(*(path.read_bytes() for path in staged.values()))


# -- one after the other ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def streaming(bigquery: Any, tmp_path_factory: pytest.TempPathFactory) -> Build:
    return messages_job(tmp_path_factory.mktemp("streaming"), bigquery)[1]


@pytest.mark.usefixtures("bucket")
class TestJobs:
    def test_a_second_one_of_the_same_name_is_refused(self, dataflow: Any, streaming: Build) -> None:
        submit(streaming, options(dataflow))

        with pytest.raises(StorageError, match="EV424 a job orders runs already") as caught:
            submit(streaming, options(dataflow))
        assert not isinstance(caught.value, Unreachable)
        assert 1 == len(dataflow.jobs)

    def test_it_is_replaced_in_place(self, dataflow: Any, streaming: Build) -> None:
        first = submit(streaming, options(dataflow))
        renamed = {"WriteOut": "WriteParts/orders"}
        second = submit(streaming, options(dataflow, update_from=renamed))

        assert "JOB_STATE_UPDATED" == dataflow.jobs[first.job_id]["currentState"]
        assert (first.job_id, renamed) == (
            dataflow.jobs[second.job_id]["replaceJobId"],
            dataflow.jobs[second.job_id]["transformNameMapping"],
        )

    def test_an_update_without_a_job_is_refused(self, dataflow: Any, streaming: Build) -> None:
        with pytest.raises(StorageError, match="EV424 no job orders runs that could be updated"):
            submit(streaming, options(dataflow, update_from={}))

    def test_a_template_starts_nothing(self, bucket: Any, dataflow: Any, streaming: Build) -> None:
        told = submit(streaming, options(dataflow, template=f"gs://{BUCKET}/templates/orders"))
        written = json.loads(bucket.files(BUCKET)["templates/orders"].read_text())

        assert Submitted("", f"gs://{BUCKET}/templates/orders") == told
        assert {} == dataflow.jobs
        assert "orders" == written["name"] and "JOB_TYPE_STREAMING" == written["type"]


@pytest.mark.usefixtures("bucket")
class TestErrors:
    @pytest.mark.parametrize(
        ("status", "fact", "temporary"),
        [(403, "not allowed", False), (404, "not found", False), (400, "was not taken", False), (503, "does not answer", True)],
    )
    def test_of_the_service(
        self, dataflow: Any, streaming: Build, status: int, fact: str, temporary: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dataflow.fails_with = status
        monkeypatch.setattr("apache_beam.utils.retry.Clock.sleep", lambda *_: None)

        with pytest.raises(StorageError, match=f"EV424 .*{fact}") as caught:
            submit(streaming, options(dataflow))
        assert temporary == isinstance(caught.value, Unreachable)
        assert "secret-of-the-service" not in str(caught.value)
        assert caught.value.__cause__ is None and caught.value.__suppress_context__

    def test_a_bucket_that_is_not_there(self, dataflow: Any, streaming: Build) -> None:
        # At once: Beam alone would try for ten minutes.
        with pytest.raises(StorageError, match="EV424 there is no bucket no-such-bucket") as caught:
            submit(streaming, options(dataflow, temp_location="gs://no-such-bucket/temp"))
        assert not isinstance(caught.value, Unreachable)

    def test_what_the_graph_says_is_told_as_it_is(self, dataflow: Any) -> None:
        def fails(_: beam.Pipeline) -> None:
            raise EventveilError.of("EV111", "not yet")

        with pytest.raises(EventveilError, match="EV111 not yet"):
            submit(fails, options(dataflow))


class TestOptions:
    @pytest.mark.parametrize(
        "flag",
        [
            "--save_main_session",
            "--no_save_main_session",
            "--pickle_library=dill",
            "--runner=DirectRunner",
            "--experiments=enable_data_sampling",
            "--experiments=use_runner_v2,enable_data_sampling",
            "--experiment=enable_always_on_exception_sampling",
            "--dataflow_service_options=enable_google_cloud_heap_sampling",
            "--enable_hot_key_logging",
            "--update",
            "--s3_secret_access_key=abc",
            "--setup_file=./setup.py",
        ],
    )
    def test_what_experts_may_not_say(self, flag: str) -> None:
        with pytest.raises(PolicyError, match=f"EV120 {flag.partition('=')[0]}.* is refused: "):
            plain(extra=[IMAGE, flag])

    @pytest.mark.parametrize(
        "flag",
        ["--num_workers=3", "--experiments=use_runner_v2", "--no_use_public_ips", "--streaming", "--dataflow_kms_key=k", "--subnetwork=s"],
    )
    def test_what_they_may(self, flag: str) -> None:
        plain(extra=[IMAGE, flag])

    def test_a_flag_that_beam_would_pass_over(self) -> None:
        with pytest.raises(PolicyError, match=r"EV120 --num_worker is no flag of Dataflow\n  did you mean 'num_workers'\?"):
            plain(extra=[IMAGE, "--num_worker=3"])

    def test_a_value_that_stands_alone_is_not_shown(self) -> None:
        with pytest.raises(PolicyError) as caught:
            plain(extra=[IMAGE, "--subnetwork", "hidden"])
        assert "does not begin with --" in str(caught.value) and "hidden" not in str(caught.value)

    def test_workers_without_eventveil(self) -> None:
        with pytest.raises(PolicyError, match="EV120 workers would not have eventveil"):
            plain(extra=[])

    @pytest.mark.parametrize(
        "wrong",
        [{"job_name": "Orders"}, {"job_name": "1"}, {"temp_location": "/tmp/x"}, {"temp_location": "gs://b"}, {"template": "t", "x": 1}],
        ids=str,
    )
    def test_names_that_dataflow_would_not_take(self, wrong: dict[str, Any]) -> None:
        wrong.pop("x", None)
        with pytest.raises(PolicyError, match="EV120"):
            plain(extra=[IMAGE], **wrong)

    def test_all_at_once(self) -> None:
        with pytest.raises(PolicyError) as caught:
            plain(job_name="Orders", extra=["--update", "--nonsense=1"])
        assert 4 == len(caught.value.problems)

    def test_labels_are_cut_to_what_labels_may_hold(self) -> None:
        given = plain(extra=[IMAGE], labels={"Policy.A": "X" * 100, "v": "0.1.0"}).get_all_options()["labels"]

        assert ["policy-a=" + "x" * 63, "v=0-1-0"] == given

    def test_no_session_and_no_dill(self) -> None:
        given = plain(extra=[IMAGE]).get_all_options()

        assert given["save_main_session"] is False
        assert ("cloudpickle", True) == (given["pickle_library"], given["streaming"])

    def test_experts_have_the_last_word(self) -> None:
        given = plain(extra=[IMAGE, "--staging_location=gs://elsewhere/x", "--experiments=mine"]).get_all_options()

        assert "gs://elsewhere/x" == given["staging_location"]
        assert {"mine", "disable_always_on_exception_sampling"} <= set(given["experiments"])


IMAGE = "--sdk_container_image=registry.example.org/eventveil:1"


def plain(job_name: str = "orders", extra: Sequence[str] = (), **given: Any) -> Any:
    return dataflow_options(job_name, "the-shop", "europe-west1", **{"temp_location": "gs://b/t", "labels": {}, **given}, extra=extra)
