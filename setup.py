"""Folder ``x/`` is imported as ``eventveil.x``; `eventveil` itself is a namespace package.

The metadata stands here and not in pyproject.toml, because here one way to name the licence is accepted by every setuptools from 70.1 on.
"""

from __future__ import annotations

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
FOLDERS = ("schemas", "transforms", "pipeline")

DEPENDENCIES = [
    "apache-beam>=2.77,<3",  # runs the job
    "pyarrow>=25",  # events as columns; decoding JSON; Parquet
    "numpy>=2.2",  # keyed draws and hashes over whole columns; 2.2 is the last for Python 3.10
    "cryptography>=50",  # HKDF, AES-CMAC, AES-GCM, HPKE for sealed dead letters
    "fastavro>=1.12",  # Avro files and single messages; 1.12 is the last for Python 3.10
    "pydantic>=2.14",  # policy and job models, from which the JSON Schema is generated
    "ruamel.yaml>=0.19.1",  # YAML 1.2 with the position of every key
    "msgspec>=0.22",  # sorts a batch that pyarrow refuses, record by record
    "typer>=0.29",  # command line
    "rich>=15",  # progress and tables
    "tzdata>=2025.1",  # zoneinfo finds no time zones in slim images
]
KAFKA = [
    "confluent-kafka[schemaregistry]>=2.16",  # topics, read and written in C; fetches schemas from a registry; 2.16 was tried
]
GCP = [
    "google-cloud-pubsub>=2.44",  # unary pulls and publishing; 2.44 was tried
    "google-cloud-bigquery-storage>=2.43",  # writes Arrow batches; 2.43 was tried
    "requests>=2.32",  # tables of BigQuery are made over REST
]
DELTA = [
    "deltalake>=1.6.6",  # commits with app transactions, which make them happen once
]
ICEBERG = [
    "pyiceberg[sql-sqlite,pyarrow]>=0.12",  # adds files with field numbers; SQLite is the catalogue where no other is named
]
DATAFLOW = [
    "apache-beam[gcp]>=2.77,<3",  # submits to Dataflow, and reads Pub/Sub there
]
DEV = [
    *KAFKA,
    *GCP,
    *DELTA,
    *ICEBERG,
    "build>=1.3",  # sdist and wheel, also in the test of the wheel
    "setuptools>=70.1",  # the test builds without isolation
    "pytest>=9",
    "hypothesis>=6.168",
    "mypy>=2.4",
    "ruff>=0.17.6",
    "pyarrow-stubs>=20.0.0.20260819",
    "orjson>=3.11",  # a peer in the bench
]
# Half a gigabyte that no linter needs.
TEST = [
    *DEV,
    *DATAFLOW,
    "apache-beam[yaml]>=2.77,<3",  # an example in Beam YAML
    "jsonschema>=4.26",  # manifests, by their schemas
]


def packages() -> list[str]:
    """All sub-packages of the three folders, so that a new one is never forgotten."""
    return [f"eventveil.{folder}{sub}" for folder in FOLDERS for sub in ("", *(f".{name}" for name in find_packages(str(HERE / folder))))]


setup(
    name="eventveil",
    version="0.1.0",
    description="Anonymize domain events while they flow: a policy, compiled against the event schema, run on Apache Beam",
    long_description=(HERE / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10,<3.14",
    packages=packages(),
    package_dir={f"eventveil.{folder}": folder for folder in FOLDERS},
    package_data={"": ["py.typed", "*.json", "*.csv"]},
    include_package_data=False,
    zip_safe=False,
    install_requires=DEPENDENCIES,
    extras_require={"kafka": KAFKA, "gcp": GCP, "delta": DELTA, "iceberg": ICEBERG, "dataflow": DATAFLOW, "dev": DEV, "test": TEST},
    entry_points={"console_scripts": ["eventveil = eventveil.pipeline.cli.main:main"]},
    keywords=["anonymization", "pseudonymization", "privacy", "events", "streaming", "apache-beam"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Environment :: Console",
        "Intended Audience :: Developers",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Security",
        "Typing :: Typed",
    ],
)
