"""The schemas of Kubernetes and of the operator for Flink, fetched into the cache when they are first needed."""

from __future__ import annotations

import importlib
import io
import os
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import yaml

__all__ = ["CannotFetchError", "crd_of_flink", "kubernetes_validate"]

_KUBERNETES, _VERSION = "kubernetes-validate==1.37.0", "1.31"
_OPERATOR = "1.10.0"
_MAVEN = "https://repo1.maven.org/maven2/org/apache/flink/flink-kubernetes-operator-api"
_JAR = f"{_MAVEN}/{_OPERATOR}/flink-kubernetes-operator-api-{_OPERATOR}.jar"
_CACHE = Path(os.environ.get("EVENTVEIL_CACHE") or Path.home() / ".cache" / "eventveil")


class CannotFetchError(Exception):
    """A registry cannot be reached."""


def kubernetes_validate(document: dict[str, Any]) -> None:
    """Raises an exception of the library where the document is no resource of Kubernetes; unknown fields are none."""
    folder = _CACHE / _KUBERNETES.replace("==", "-")
    if not (folder / "kubernetes_validate").is_dir():
        # Without what Beam has brought.
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), _KUBERNETES, "importlib-resources"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotFetchError("pip could not fetch " + _KUBERNETES)
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    importlib.import_module("kubernetes_validate").validate(document, _VERSION, strict=True)


def crd_of_flink() -> dict[str, Any]:
    """The OpenAPI schema of a FlinkDeployment."""
    file = _CACHE / f"flinkdeployments-{_OPERATOR}.yml"
    if not file.exists():
        try:
            with urllib.request.urlopen(_JAR, timeout=60) as answer:
                jar = zipfile.ZipFile(io.BytesIO(answer.read()))
        except OSError as error:
            raise CannotFetchError(f"Maven Central: {type(error).__name__}") from None
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(jar.read("META-INF/fabric8/flinkdeployments.flink.apache.org-v1.yml"))
    (version,) = (one for one in yaml.safe_load(file.read_bytes())["spec"]["versions"] if one["name"] == "v1beta1")
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    return schema
