"""Manifests: what they say is what Kubernetes and the operator understand, and what eventveil needs."""

from __future__ import annotations

import base64
import os
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from eventveil.schemas.job import parse_job

HERE = Path(__file__).parent
DEPLOY = HERE.parents[1] / "deploy"
SCHEMAS = runpy.run_path(str(HERE / "schemas.py"))
FILES = {"kubernetes": DEPLOY / "kubernetes" / "eventveil.yaml", "flink": DEPLOY / "flink" / "eventveil.yaml"}
DOCUMENTS = [(folder, one) for folder, path in FILES.items() for one in yaml.safe_load_all(path.read_text())]


def fetched(name: str, *arguments: Any) -> Any:
    try:
        return SCHEMAS[name](*arguments)
    except SCHEMAS["CannotFetchError"] as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no schemas: {error}")


def closed(schema: Any) -> Any:
    """The schema, without room for fields that it does not name."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: closed(one) for name, one in schema.items()}
    if found.get("type") == "object" and "properties" in found and not found.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    if found.pop("x-kubernetes-int-or-string", False):
        found = {"type": ["integer", "string"]}
    return found


def validate(document: dict[str, Any]) -> None:
    if document["kind"] == "FlinkDeployment":
        schema = closed(fetched("crd_of_flink"))
        # The server's own: every resource has them.
        schema["properties"] |= {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}}
        jsonschema.validate(document, schema)
    else:
        fetched("kubernetes_validate", document)


def of_kind(folder: str, kind: str) -> Any:
    (found,) = (one for name, one in DOCUMENTS if (name, one["kind"]) == (folder, kind))
    return found


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "kubernetes", of_kind("kubernetes", "StatefulSet")["spec"]["template"]["spec"]
    yield "flink", of_kind("flink", "FlinkDeployment")["spec"]["taskManager"]["podTemplate"]["spec"]


OURS = [
    (folder, one)
    for folder, pod in pods()
    for one in (*pod["initContainers"], *pod["containers"])
    if one.get("image", "").startswith("eventveil")
]


@pytest.mark.parametrize(("_", "document"), DOCUMENTS, ids=[f"{folder} {one['kind']}" for folder, one in DOCUMENTS])
def test_is_what_the_schema_says(_: str, document: dict[str, Any]) -> None:
    validate(document)


def wrong_probe(document: Any) -> None:
    document["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]["httpget"] = {}


def wrong_replicas(document: Any) -> None:
    document["spec"]["replicas"] = "one"


def wrong_slots(document: Any) -> None:
    document["spec"]["taskManager"]["resources"] = {"cpu": 1}


def wrong_container(document: Any) -> None:
    document["spec"]["taskManager"]["podTemplate"]["spec"]["containers"][1]["volumeMount"] = []


@pytest.mark.parametrize(
    ("kind", "spoil"),
    [("StatefulSet", wrong_probe), ("StatefulSet", wrong_replicas), ("FlinkDeployment", wrong_slots), ("FlinkDeployment", wrong_container)],
)
def test_a_mistake_would_be_noticed(kind: str, spoil: Callable[[Any], None]) -> None:
    document = yaml.safe_load(yaml.safe_dump(of_kind("flink" if kind.startswith("Flink") else "kubernetes", kind)))
    spoil(document)

    with pytest.raises(Exception, match=r"Additional properties|not of type|is not valid"):
        validate(document)


@pytest.mark.parametrize(("folder", "container"), OURS, ids=[f"{folder} {one['name']}" for folder, one in OURS])
class TestOurContainers:
    def test_has_a_tag_and_few_rights(self, folder: str, container: dict[str, Any]) -> None:
        context = container["securityContext"]
        pod = of_kind("kubernetes", "StatefulSet")["spec"]["template"]["spec"].get("securityContext", {}) if folder == "kubernetes" else {}

        assert ":" in container["image"] and not container["image"].endswith(":latest")
        assert {**pod, **context}["runAsNonRoot"] is True and {**pod, **context}["runAsUser"] == 10001
        assert (False, True, ["ALL"]) == (
            context["allowPrivilegeEscalation"],
            context["readOnlyRootFilesystem"],
            context["capabilities"]["drop"],
        )

    def test_mounts_are_volumes(self, folder: str, container: dict[str, Any]) -> None:
        if folder == "kubernetes":
            spec = of_kind("kubernetes", "StatefulSet")["spec"]
            volumes = [*spec["template"]["spec"]["volumes"], *({"name": one["metadata"]["name"]} for one in spec["volumeClaimTemplates"])]
        else:
            volumes = of_kind("flink", "FlinkDeployment")["spec"]["podTemplate"]["spec"]["volumes"]

        assert {one["name"] for one in container["volumeMounts"]} <= {one["name"] for one in volumes}

    def test_the_keyring_is_readable_by_its_owner_alone(self, folder: str, container: dict[str, Any]) -> None:
        if container["name"] == "keyring":
            assert ["install", "-m", "0600"] == container["command"][:3]
        else:
            # Never the secret itself: Kubernetes shows it to a group.
            assert "keyring" not in {one["name"] for one in container["volumeMounts"]}


class TestTheStatefulSet:
    def test_is_one_and_has_time_to_end(self) -> None:
        spec = of_kind("kubernetes", "StatefulSet")["spec"]

        assert 1 == spec["replicas"]
        assert spec["template"]["spec"]["terminationGracePeriodSeconds"] >= 180

    def test_its_job_is_one_and_lies_where_it_may_write(self, tmp_path: Path) -> None:
        (tmp_path / "password").write_text("none")
        text = of_kind("kubernetes", "ConfigMap")["data"]["job.yaml"]
        job = parse_job(text.replace("/run/secrets/kafka", str(tmp_path)), "/etc/eventveil/job.yaml", {})
        (container,) = of_kind("kubernetes", "StatefulSet")["spec"]["template"]["spec"]["containers"]
        mounts = {one["mountPath"]: one for one in container["volumeMounts"]}
        written = [job.checkpoint, job.variants[0].output.uri, job.dead_letters and job.dead_letters.uri]

        assert all(str(one).startswith("/var/lib/eventveil/") for one in written)
        assert "readOnly" not in mounts["/var/lib/eventveil"]
        assert job.keys == "/run/keys/keyring.json" and "/run/keys" in mounts
        assert container["args"][:2] == ["run", "/etc/eventveil/job.yaml"]
        assert "0.0.0.0:9464" == job.metrics and 9464 == container["ports"][0]["containerPort"]
        assert {"/healthz", "/readyz"} == {
            container[probe]["httpGet"]["path"] for probe in ("livenessProbe", "readinessProbe", "startupProbe")
        }

    def test_no_secret_stands_in_any_manifest(self) -> None:
        assert [] == [one["kind"] for _, one in DOCUMENTS if one["kind"] == "Secret"]
        for path in FILES.values():
            words = path.read_text().replace('"', " ").split()
            assert [] == [word for word in words if len(word) >= 40 and _is_base64(word)]


class TestTheWorkerPool:
    def test_listens_on_loopback_alone(self) -> None:
        (workers,) = (one for _, one in OURS if one["name"] == "workers")

        assert ["worker-pool", "--listen", "127.0.0.1:50000"] == workers["args"]
        assert "ports" not in workers


def _is_base64(word: str) -> bool:
    try:
        return len(base64.b64decode(word, validate=True)) >= 30
    except ValueError:
        return False
