"""dataflow: a job handed to Google Cloud Dataflow. Nothing of it runs here: the graph is built, staged and submitted, and that is all.

What is submitted can be read by whoever may look at the project: options, labels, the graph. So no secret may stand in it; a keyring is
named, and found by the workers.
"""

from __future__ import annotations

import importlib.metadata as metadata
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import apache_beam as beam
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

from eventveil.schemas.errors import EventveilError, PolicyError, Problem, StorageError, Unreachable, did_you_mean
from eventveil.schemas.streams import is_secret
from eventveil.transforms.plan import Plan

__all__ = ["Submitted", "dataflow_options", "labels_of", "submit"]

_JOB_NAME = re.compile(r"[a-z](?:[-a-z0-9]{0,1022}[a-z0-9])?\Z")
_CONSOLE = "https://console.cloud.google.com/dataflow/jobs"
_TEMPORARY = frozenset({408, 429, 500, 502, 503, 504})

# Flag -> why nobody may set it. What an argument of ours says is not said twice.
_REFUSED = {
    "dataflow_job_file": "a graph is written where a template is asked for",
    "element_processing_timeout_minutes": "it ends a worker in the middle of a batch, and says which one it was",
    "enable_hot_key_logging": "it writes keys of groups to the log",
    "job_name": "the job file names the job",
    "no_save_main_session": "it is never saved",
    "pickle_library": "workers can read one form alone",
    "prebuild_sdk_container_engine": "an image is built by deploy/docker, where one sees what gets into it",
    "profile_cpu": "a profile shows what was worked on",
    "profile_memory": "a profile of memory shows events and keys",
    "project": "it has an argument of its own",
    "region": "it has an argument of its own",
    "runner": "it is Dataflow here",
    "save_main_session": "it would stage all that the launcher has in memory, keys too",
    "setup_file": "it builds whatever lies in a folder; name a wheel",
    "temp_location": "it has an argument of its own",
    "template_location": "it has an argument of its own",
    "update": "it has an argument of its own",
}
_REFUSED_EXPERIMENTS = {
    "enable_always_on_exception_sampling": "it shows events in the console",
    "enable_data_sampling": "it shows events in the console",
    "enable_google_cloud_profiler": "a profile shows what was worked on",
    "enable_google_cloud_heap_sampling": "a profile of memory shows events and keys",
}
_HAVE_IT = ("--sdk_container_image=", "--worker_harness_container_image=", "--extra_package=", "--extra_packages=")
_EXPERIMENT_FLAGS = ("experiment", "experiments", "dataflow_service_option", "dataflow_service_options")


@dataclass(frozen=True)
class Submitted:
    """What has become of a job.

    Attributes:
        job_id: of the job; empty where a template was written.
        address: of the job in Google's console, or of the template.
    """

    job_id: str
    address: str


def labels_of(plans: Sequence[Plan]) -> dict[str, str]:
    """By what a job can be found again: our version, and the policies that it applies, with their digests."""
    # By number: a label's name is cut as well, and two policies may begin alike.
    policies = {f"policy-{number}" if len(plans) > 1 else "policy": plan for number, plan in enumerate(plans, 1)}
    found = {"eventveil": _version()}
    for label, plan in policies.items():
        found[label] = f"{plan.name}_{plan.version}"
        found[f"{label}-digest"] = plan.digest
    return found


def _version() -> str:
    """Of the installed distribution; ``dev`` in a checkout that is none."""
    try:
        return metadata.version("eventveil")
    except metadata.PackageNotFoundError:
        return "dev"


def dataflow_options(
    job_name: str,
    project: str,
    region: str,
    *,
    temp_location: str,
    labels: Mapping[str, str],
    template: str | None = None,
    wheel: str | None = None,
    update_from: Mapping[str, str] | None = None,
    extra: Sequence[str] = (),
) -> PipelineOptions:
    """The options of a job on Dataflow.

    Args:
        job_name: lower case letters, digits and ``-``, at most 1,024. A second job of one name is refused by Dataflow.
        temp_location: ``gs://bucket/folder``: of what is staged, and of what Dataflow keeps meanwhile.
        labels: are cut to what labels may hold: lower case letters, digits, ``_`` and ``-``, at most 63.
        template: ``gs://bucket/file``: write the job there, to be started later, and start none.
        wheel: of eventveil, for workers that do not have it; they fetch its dependencies. None: their image has it, and `extra` names that
            by ``--sdk_container_image``.
        update_from: replace the running job of this name. Maps labels of its transforms to what they are called now; empty: as they were.
        extra: further flags of Dataflow, each as ``--name=value`` or ``--name``.

    Raises:
        PolicyError: EV120 for a flag that is unknown or refused, a name that Dataflow would not take, and workers without eventveil.
    """
    problems = [*_wrong_places(job_name, temp_location, template), *_wrong_flags(extra), *_wrong_wheel(wheel, extra)]
    if template is not None and update_from is not None:
        problems.append(_wrong("a template is no update of a running job", "leave out one of the two"))
    if problems:
        raise PolicyError(problems)
    flags = [
        "--runner=DataflowRunner",
        f"--job_name={job_name}",
        f"--project={project}",
        f"--region={region}",
        f"--temp_location={temp_location}",
        f"--staging_location={temp_location.rstrip('/')}/staging",
        # On Dataflow Beam would save the main session by itself.
        "--no_save_main_session",
        "--streaming",
        "--enable_streaming_engine",
        "--pickle_library=cloudpickle",
        # Dataflow may show in its console the element that a step has failed on.
        "--experiments=disable_always_on_exception_sampling",
        *(f"--labels={_label(name)}={_label(value)}" for name, value in sorted(labels.items())),
    ]
    if wheel is not None:
        flags.append(f"--extra_package={wheel}")
    if template is not None:
        flags.append(f"--template_location={template}")
    if update_from is not None:
        flags.append("--update")
        if update_from:
            flags.append(f"--transform_name_mapping={json.dumps(dict(sorted(update_from.items())))}")
    # The last one counts: who knows better may say another staging location.
    return PipelineOptions([*flags, *extra])


def submit(build: Callable[[beam.Pipeline], None], options: PipelineOptions) -> Submitted:
    """Build a job's graph, and hand it to Dataflow; does not wait for what becomes of it there.

    Raises:
        StorageError: EV424, Dataflow or the bucket refuse it. Unreachable: EV424, they do not answer just now.
        EventveilError: what `build` raises.
    """
    google = options.view_as(GoogleCloudOptions)
    # The runner makes the locations its own: the names here are what was asked for.
    template, region, project = google.template_location, google.region, google.project
    _check_client()
    try:
        _check_bucket(options)
        if google.update and not _runs(options):
            fact, remedy = f"no job {google.job_name} runs that could be updated", "start it without an update"
            raise StorageError.of("EV424", fact, remedy)
    except Exception as error:  # noqa: BLE001 - as below
        _tell(error, google.job_name)
    pipeline = beam.Pipeline(options=options)
    build(pipeline)
    try:
        result = pipeline.run()
    except Exception as error:  # noqa: BLE001 - a library's text may quote an option; ours says what to do
        _tell(error, google.job_name)
    if template is not None:
        return Submitted("", template)
    return Submitted(result.job_id(), f"{_CONSOLE}/{region}/{result.job_id()}?project={project}")


def _check_client() -> None:
    try:
        from apache_beam.runners.dataflow.internal import apiclient  # noqa: F401 - an extra of Beam's, missed before anything is built
    except ImportError:
        raise StorageError.of("EV424", "Beam's part for Google Cloud is not installed", "pip install 'eventveil[dataflow]'") from None


def _check_bucket(options: PipelineOptions) -> None:
    """Whether the bucket is there: Beam would try for ten minutes to write into one that is not."""
    from apache_beam.io.gcp.gcsio import create_storage_client

    google = options.view_as(GoogleCloudOptions)
    client = create_storage_client(options, not google.no_auth)
    for location in (google.staging_location, google.temp_location):
        name = location.removeprefix("gs://").partition("/")[0]
        if client.lookup_bucket(name) is None:
            raise StorageError.of("EV424", f"there is no bucket {name}", "make it, or name another: --temp-location gs://BUCKET/FOLDER")


def _runs(options: PipelineOptions) -> bool:
    """Whether a job of this name runs: where none does, Beam would look for it for ever."""
    from apache_beam.runners.dataflow.internal import apiclient

    google, dataflow = options.view_as(GoogleCloudOptions), apiclient.dataflow
    client = apiclient.DataflowApplicationClient(options)._jobs_client
    alive = (dataflow.JobState.JOB_STATE_RUNNING, dataflow.JobState.JOB_STATE_DRAINING)
    request = dataflow.ListJobsRequest(project_id=google.project, location=google.region)
    return any(job.name == google.job_name and job.current_state in alive for job in client.list_jobs(request))


def _tell(error: Exception, job_name: str) -> NoReturn:
    """Raise a library's error as ours, without its text."""
    if isinstance(error, EventveilError):
        raise error
    kind, status = type(error).__name__, _status(error)
    told = f"{kind}, status {status}" if status else kind
    if status in _TEMPORARY or isinstance(error, (ConnectionError, TimeoutError)) or kind in ("TransportError", "RetryError"):
        raise Unreachable.of("EV424", f"Dataflow or its bucket does not answer: {told}", "try again") from None
    if status == 409 or kind == "DataflowJobAlreadyExistsError":
        fact, remedy = f"a job {job_name} runs already", "update it, end it, or give this one another name"
    elif status in (401, 403) or kind in ("DefaultCredentialsError", "RefreshError"):
        fact, remedy = f"not allowed: {told}", "see the permissions in deploy/dataflow/README.md, and who you are with: gcloud auth list"
    elif status == 404:
        fact, remedy = f"not found: {told}", "check project, region and bucket"
    else:
        fact, remedy = f"the job was not taken: {told}", "see the job's messages in the console, or run again with --debug"
    raise StorageError.of("EV424", fact, remedy) from None


def _status(error: Exception) -> int | None:
    """The HTTP status that an error of Google's libraries is about."""
    for holder in (error, getattr(error, "response", None)):
        for name in ("code", "status_code"):
            status = getattr(holder, name, None)
            if isinstance(status, int):
                return int(status)
    # Beam wraps what the bucket has answered in an IOError; the cause has the status.
    cause = error.__cause__ or error.__context__
    return _status(cause) if isinstance(cause, Exception) else None


def _label(text: str) -> str:
    """What a label may hold of a text."""
    return re.sub(r"[^a-z0-9_-]", "-", text.lower())[:63]


def _wrong(fact: str, remedy: str) -> Problem:
    return Problem("", 0, "EV120", fact, remedy)


def _wrong_places(job_name: str, temp_location: str, template: str | None) -> list[Problem]:
    found = []
    if not _JOB_NAME.match(job_name):
        found.append(_wrong("Dataflow does not take the job's name", "begin with a letter; lower case letters, digits and - alone"))
    if not re.match(r"gs://[^/]+/.", temp_location):
        found.append(_wrong("the temporary location is no folder of a bucket", "write gs://bucket/folder"))
    if template is not None and not re.match(r"(gs://[^/]+)?/.", template):
        found.append(_wrong("the template is no file of a bucket", "write gs://bucket/folder/file"))
    return found


def _wrong_flags(extra: Sequence[str]) -> list[Problem]:
    known = _known_flags()
    found = []
    for flag in extra:
        name, _, value = flag.removeprefix("--").partition("=")
        if not flag.startswith("--") or " " in name:
            # Never shown: it may be the value of the flag before.
            found.append(_wrong("a flag for Dataflow does not begin with --", "write each as --name=value, in one"))
        elif name in _REFUSED:
            found.append(_wrong(f"--{name} is refused: {_REFUSED[name]}", "leave it out"))
        elif is_secret(name):
            found.append(_wrong(f"--{name} is refused: whoever sees the job sees its flags", "workers find secrets themselves"))
        elif name not in known:
            near = did_you_mean(name, known - _REFUSED.keys()).partition("known:")[0]
            found.append(_wrong(f"--{name} is no flag of Dataflow", near.strip() or "Beam would pass over it without a word"))
        elif name in _EXPERIMENT_FLAGS:
            for one in value.split(","):
                refused = _REFUSED_EXPERIMENTS.get(one.partition("=")[0])
                if refused is not None:
                    found.append(_wrong(f"--{name}={one.partition('=')[0]} is refused: {refused}", "leave it out"))
    return found


def _known_flags() -> frozenset[str]:
    """Names of the flags that Beam knows; it passes over others without a word."""
    import argparse

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    views: Any = PipelineOptions
    for view in views.__subclasses__():
        if "_add_argparse_args" in vars(view):
            try:
                view._add_argparse_args(parser)
            except argparse.ArgumentError:
                continue
    return frozenset(option.removeprefix("--") for option in parser._option_string_actions if option.startswith("--"))


def _wrong_wheel(wheel: str | None, extra: Sequence[str]) -> list[Problem]:
    if wheel is not None and not wheel.endswith(".whl"):
        return [_wrong("what workers are to install is no wheel", "name a file that ends with .whl; make one with: make dist")]
    if wheel is None and not any(flag.startswith(_HAVE_IT) for flag in extra):
        fact = "workers would not have eventveil: neither an image nor a wheel is named"
        return [_wrong(fact, "give --sdk_container_image=IMAGE (see deploy/docker), or --extra_package=WHEEL (make dist)")]
    return []
