"""eventveil: the command line. One file per command; each is imported when it is used."""

from __future__ import annotations

import os
import signal
import sys
from typing import Annotated, Any, Optional

import typer

from eventveil.schemas.errors import EventveilError

__all__ = ["app", "main"]

app = typer.Typer(
    name="eventveil",
    help="Anonymize domain events in flight, under a policy that a privacy officer can read.",
    epilog="Exit codes: 0 done, 1 a limit or test failed, 2 wrong policy, schema or arguments, 3 keys, 4 input or output, "
    "70 internal error, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
keys_app = typer.Typer(help="Make keyrings and custodians' key pairs.", no_args_is_help=True)
letters_app = typer.Typer(help="List and open refused events.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")
app.add_typer(letters_app, name="dead-letters")

# typer reads annotations at run time; Python 3.10 needs Optional there.
Text = Optional[str]  # noqa: UP045


@app.command()
def check(
    document: Annotated[str, typer.Argument(help="A policy, or a job file with its policies.", metavar="POLICY_OR_JOB")],
    output_schema: Annotated[Text, typer.Option(help="Print the schema of the output instead: avro or json.", metavar="FORMAT")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    strict: Annotated[bool, typer.Option(help="Exit with 1 when there are warnings.")] = False,
) -> None:
    """Is the policy complete and sound, and what does it still disclose?

    Reads the policy and its event schema, nothing else: no events, no keys.
    """
    from eventveil.pipeline.cli.check import check_document

    raise typer.Exit(check_document(document, output_schema, as_json=as_json, strict=strict))


@app.command()
def preview(
    policy: Annotated[str, typer.Argument(help="The policy.")],
    input: Annotated[list[str], typer.Option("--input", "-i", help="A file, folder or pattern; may be given several times.")],
    number: Annotated[int, typer.Option("--number", "-n", min=1, max=1000, help="How many events to show.")] = 5,
    format: Annotated[Text, typer.Option(help="jsonl, avro or parquet; default: by the file's suffix.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per event: before, after, refused.")] = False,
) -> None:
    """Show events before and after, side by side. Writes nothing; uses keys that are thrown away.

    Shows events in clear on your screen: run it where you may see them.
    """
    from eventveil.pipeline.cli.preview import preview_events

    raise typer.Exit(preview_events(policy, input, number, format, as_json=as_json))


@app.command()
def run(
    job: Annotated[Text, typer.Argument(help="A job file; or give --policy, --input and --output.", metavar="[JOB]")] = None,
    policy: Annotated[Text, typer.Option("--policy", "-p", help="The policy.")] = None,
    input: Annotated[
        Optional[list[str]], typer.Option("--input", "-i", help="A file, folder or pattern; may be given several times.")
    ] = None,  # noqa: UP045
    output: Annotated[Text, typer.Option("--output", "-o", help="The folder to write to.")] = None,
    keys: Annotated[Text, typer.Option("--keys", "-k", help="The keyring file, or env:NAME.")] = None,
    input_format: Annotated[Text, typer.Option(help="Format of the input; default: by its suffix.")] = None,
    format: Annotated[Text, typer.Option(help="Format of the output: jsonl, avro or parquet; default: that of the input.")] = None,
    partition_by: Annotated[Text, typer.Option(help="window: one folder per release window.")] = None,
    dead_letters: Annotated[Text, typer.Option(help="The folder for refused events, sealed.")] = None,
    custodian: Annotated[Text, typer.Option(help="The custodian's public key, to which refused events are sealed.")] = None,
    allow_loss: Annotated[
        bool, typer.Option("--allow-loss", help="Start without a custodian: refused events are counted and lost.")
    ] = False,
    max_refused: Annotated[Text, typer.Option(help="Fail (exit 1) when more are refused: a number, or a share as 5%.")] = None,
    workers: Annotated[Optional[int], typer.Option(min=1, max=64, help="Threads that read ranges at the same time.")] = None,  # noqa: UP045
    summary: Annotated[Text, typer.Option(help="Write the summary to this file, as JSON.", metavar="FILE")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary on the terminal.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Log what Beam does. Never shows an event.")] = False,
) -> None:
    """Turn events into anonymous events, from files to files."""
    from eventveil.pipeline.cli.run import run_job

    flags = {
        "policy": policy,
        "input": input,
        "output": output,
        "keys": keys,
        "input_format": input_format,
        "format": format,
        "partition_by": partition_by,
        "dead_letters": dead_letters,
        "custodian": custodian,
        "allow_loss": allow_loss or None,
        "max_refused": max_refused,
        "workers": workers,
        "summary": summary,
    }
    given = {name: value for name, value in flags.items() if value is not None}
    raise typer.Exit(run_job(job, given, quiet=quiet, debug=debug))


@keys_app.command("new")
def keys_new(
    path: Annotated[str, typer.Argument(help="The keyring to make. Never overwrites.")],
    domain: Annotated[Optional[list[str]], typer.Option(help="Give this domain a root of its own; may be given several times.")] = None,  # noqa: UP045
) -> None:
    """Make a keyring: 32 random bytes in a file that only you can read."""
    from eventveil.pipeline.cli.keys import new_keys

    raise typer.Exit(new_keys(path, domain or []))


@keys_app.command("custodian")
def keys_custodian(
    prefix: Annotated[str, typer.Argument(help="Writes PREFIX.pub and PREFIX.key. Never overwrites.", metavar="PREFIX")],
) -> None:
    """Make a custodian's key pair: refused events are sealed to PREFIX.pub, and opened with PREFIX.key alone."""
    from eventveil.pipeline.cli.keys import new_custodian_pair

    raise typer.Exit(new_custodian_pair(prefix))


@letters_app.command("list")
def letters_list(
    folder: Annotated[str, typer.Argument(help="The folder of dead letters.")],
    code: Annotated[Text, typer.Option(help="Only letters with this code.")] = None,
    keys: Annotated[Text, typer.Option("--keys", "-k", help="The keyring: verify that the run wrote each letter.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per letter.")] = False,
) -> None:
    """What was refused, why and where. Shows no event."""
    from eventveil.pipeline.cli.dead_letters import list_folder

    raise typer.Exit(list_folder(folder, code, keys, as_json=as_json))


@letters_app.command("open")
def letters_open(
    folder: Annotated[str, typer.Argument(help="The folder of dead letters.")],
    key: Annotated[str, typer.Option("--key", help="The custodian's private key.")],
    keys: Annotated[Text, typer.Option("--keys", "-k", help="The keyring: refuse letters that the run did not write.")] = None,
    code: Annotated[Text, typer.Option(help="Only letters with this code.")] = None,
    output: Annotated[Text, typer.Option("--output", "-o", help="Write to this new file, readable by you alone.")] = None,
) -> None:
    """Open refused events: their exact bytes, one per line as they came. They are in clear: handle them so."""
    from eventveil.pipeline.cli.dead_letters import open_folder

    raise typer.Exit(open_folder(folder, key, keys, code, output))


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as version_of

    typer.echo(f"eventveil {version_of('eventveil')}")


def main(arguments: list[str] | None = None) -> None:
    """The entry point: every error becomes a message without data and an exit code."""
    if os.name == "posix":
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = app(arguments, standalone_mode=False)
    except EventveilError as error:
        _tell(error)
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted: no half-written file was left; run again to complete", file=sys.stderr)
        _leave(130)
    except BrokenPipeError:
        _leave(141)
    except Exception as error:
        code = _usage(error)
    _leave(code if isinstance(code, int) else 0)


def _usage(error: Exception) -> int:
    """Wrong arguments in typer's words; anything else is a defect, told without its text."""
    show = getattr(error, "show", None)
    if callable(show):
        show()
        return int(getattr(error, "exit_code", 2))
    from eventveil.transforms.beam.guard import internal_error

    hidden = internal_error(error)
    _tell(hidden)
    return hidden.exit_code


def _tell(error: EventveilError) -> None:
    colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    for problem in error.problems:
        text = str(problem)
        print(text.replace(problem.code, f"\033[31m{problem.code}\033[0m", 1) if colour else text, file=sys.stderr)
    if not error.problems:
        print(error, file=sys.stderr)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _leave(code: int) -> None:
    """Leave at once: threads of a runner that was interrupted must not hold the process."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            pass
    os._exit(code)
