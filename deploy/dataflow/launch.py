"""What Google's launcher of flex templates starts: its flags say where the job in the image runs.

The launcher says project, region, temp_location, template_location and more, beside the parameters of metadata.json.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

JOB = "/etc/eventveil/job.yaml"
KEYRING = "/dev/shm/eventveil/keyring.json"  # noqa: S108 - in memory, and for its owner alone
# What a job file has an entry for; whatever else the launcher says goes on to Beam.
ENTRIES = {"project": "project", "region": "region", "temp_location": "temp_location", "template_location": "template"}
# Said by the job file, or by eventveil itself.
LEFT_OUT = ("job_name", "runner", "streaming", "save_main_session")


def read_flags(arguments: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The job file, and what stands in it of Dataflow, as these flags say it."""
    job, found, options = JOB, {}, []
    for argument in arguments:
        name, _, value = argument.removeprefix("--").partition("=")
        if name == "job":
            job = value
        elif name in ENTRIES:
            found[ENTRIES[name]] = value
        elif name == "update":
            found["update"] = value.lower() != "false"
        elif name not in LEFT_OUT:
            options.append(argument)
    return job, {**found, **({"options": options} if options else {})}


def main(arguments: Sequence[str]) -> int:
    from eventveil.pipeline.cli.run import LiveFlags, run_job
    from eventveil.schemas.errors import EventveilError

    keyring = os.environ.get("EVENTVEIL_KEYRING")
    if keyring:
        # Here too: a job whose keys cannot be had fails before it costs anything.
        command = ["fetch-keyring", keyring, os.environ.get("EVENTVEIL_KEYRING_FILE", KEYRING)]
        fetched = subprocess.run(command, check=False)  # noqa: S603 - by whoever built the image
        if fetched.returncode:
            return fetched.returncode
    job, dataflow = read_flags(arguments)
    try:
        return run_job(job, {}, LiveFlags(), {"runner": "dataflow", "dataflow": dataflow}, quiet=False, debug=False)
    except EventveilError as error:
        print(error, file=sys.stderr)  # noqa: T201 - where the launcher looks
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
