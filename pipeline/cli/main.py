"""eventveil: the command line. One file per command; each is imported when it is used."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from typing import Annotated, Any, NoReturn, Optional

import typer
from typer.core import TyperGroup

from eventveil.pipeline.cli.screen import has_colour, printable
from eventveil.schemas.errors import EventveilError

__all__ = ["app", "main"]

_EXIT_CODES = """\b
Exit codes:
  0    done
  1    a limit or a test failed, or a letter is forged or damaged
  2    wrong policy, schema or arguments
  3    keys
  4    input or output
  70   internal error
  130  interrupted"""


class _AsUsed(TyperGroup):
    """Lists commands in the order in which they are used."""

    def list_commands(self, _: Any) -> list[str]:
        order = ["check", "preview", "keys", "run", "dead-letters", "version"]
        return sorted(super().list_commands(_), key=lambda name: order.index(name) if name in order else len(order))


def _group(**settings: Any) -> typer.Typer:
    # Without markup a help text keeps its lines, and a square bracket is a square bracket.
    context = {"help_option_names": ["-h", "--help"]}
    return typer.Typer(
        cls=_AsUsed,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings=context,
        **settings,
    )


app = _group(
    name="eventveil",
    help="""Anonymize domain events in flight, under a policy that a privacy officer can read.

    \b
    From nothing to anonymous events:
      eventveil check policy.yaml
      eventveil preview policy.yaml --input orders.jsonl
      eventveil keys new keyring.json
      eventveil keys custodian custodian
      eventveil run --policy policy.yaml --input 'in/*.jsonl' --output out \\
        --keys keyring.json --dead-letters refused --custodian custodian.pub
    """,
    epilog=_EXIT_CODES,
)
keys_app = _group(help="Make keyrings, and key pairs for custodians. Nothing is ever overwritten.")
letters_app = _group(help="List refused events, and open them.")
app.add_typer(keys_app, name="keys")
app.add_typer(letters_app, name="dead-letters")

_interruption = threading.Event()
_told = threading.Lock()

# typer reads annotations at run time; Python 3.10 needs Optional there.
Text = Optional[str]  # noqa: UP045
Texts = Optional[list[str]]  # noqa: UP045
Number = Optional[int]  # noqa: UP045

_INPUT = "A file, a folder or a pattern in quotes; may be given several times."
_SOURCE = f"{_INPUT} Or a stream: kafka://host:port/topic?group=name."
_FORMATS = "jsonl, avro or parquet"


@app.command(short_help="Is a policy complete and sound? What does it still disclose?")
def check(
    document: Annotated[str, typer.Argument(help="A policy, or a job file with its policies.", metavar="POLICY_OR_JOB")],
    output_schema: Annotated[Text, typer.Option(help="Print the schema of the output instead: avro or json.", metavar="LANGUAGE")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings, or all that is wrong, as JSON.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 when there are notes.")] = False,
) -> None:
    """Is the policy complete and sound, and what does it still disclose?

    Reads the policy, its event schema and the files that it names; no events, no keys. All that is wrong is said at once, each with
    its line and what to do (exit code 2). Of a job file, each policy is checked, and by what two outputs can be matched is told.

    \b
    eventveil check policy.yaml
    eventveil check job.yaml --strict       for continuous integration
    eventveil check policy.yaml --output-schema avro
    """
    # A short command, and most of it imports: looking for garbage meanwhile costs more than it finds.
    gc.disable()
    from eventveil.pipeline.cli.check import check_document

    raise typer.Exit(check_document(document, output_schema, as_json=as_json, strict=strict))


@app.command(short_help="Events before and after, side by side. Nothing is written.")
def preview(
    policy: Annotated[str, typer.Argument(help="The policy.", metavar="POLICY")],
    input: Annotated[list[str], typer.Option("--input", "-i", help=_INPUT, metavar="PATH")],
    number: Annotated[int, typer.Option("--number", "-n", min=1, max=1000, help="How many events to show.", metavar="N")] = 5,
    input_format: Annotated[Text, typer.Option(help=f"{_FORMATS}; default: by the name.", metavar="FORMAT")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per event: before (as text), after, refused, left_out.")
    ] = False,
) -> None:
    """Show the first events as they are and as they become, side by side.

    Writes nothing, and uses keys that are thrown away: pseudonyms and noise will be others in a run. Shows events in clear: run it where
    you may see them.

    \b
    eventveil preview policy.yaml --input orders.jsonl -n 2
    eventveil preview policy.yaml --input 'in/*.parquet' --json
    """
    from eventveil.pipeline.cli.preview import preview_events

    raise typer.Exit(preview_events(policy, input, number, input_format, as_json=as_json))


@app.command(short_help="Turn events into anonymous events: files, or a stream, live.")
def run(
    job: Annotated[Text, typer.Argument(help="A job file; then only options that say how to run it.", metavar="JOB")] = None,
    policy: Annotated[Text, typer.Option("--policy", "-p", help="The policy.", metavar="FILE")] = None,
    input: Annotated[Texts, typer.Option("--input", "-i", help=_SOURCE, metavar="PATH")] = None,
    output: Annotated[
        Text,
        typer.Option(
            "--output", "-o", help="The folder to write to: new, empty or of the same job; or kafka://host:port/topic.", metavar="FOLDER"
        ),
    ] = None,
    keys: Annotated[
        Text, typer.Option("--keys", "-k", help="The keyring file, or env:NAME for an environment variable.", metavar="FILE")
    ] = None,
    dead_letters: Annotated[Text, typer.Option(help="The folder for refused events, sealed to the custodian.", metavar="FOLDER")] = None,
    custodian: Annotated[Text, typer.Option(help="The custodian's public key (.pub).", metavar="FILE")] = None,
    allow_loss: Annotated[
        bool, typer.Option("--allow-loss", help="Start without --dead-letters and --custodian: refused events are counted and lost.")
    ] = False,
    max_refused: Annotated[
        Text, typer.Option(help="Fail (exit code 1) when more are refused: a number, or a share as 5%.", metavar="LIMIT")
    ] = None,
    input_format: Annotated[Text, typer.Option(help=f"{_FORMATS}; default: by the name.", metavar="FORMAT")] = None,
    format: Annotated[Text, typer.Option(help=f"Of the output: {_FORMATS}; default: that of the input.", metavar="FORMAT")] = None,
    compression: Annotated[Text, typer.Option(help="Of jsonl output: none, gzip or zstd.")] = None,
    partition_by: Annotated[Text, typer.Option(help="window: one folder per release window.", metavar="window")] = None,
    workers: Annotated[Number, typer.Option(min=1, max=64, help="How many cores to use; default: 1.", metavar="N")] = None,
    summary: Annotated[Text, typer.Option(help="Write the counts to this file, as JSON.", metavar="FILE")] = None,
    checkpoint: Annotated[
        Text, typer.Option(help="Of a stream: the folder that the job remembers in how far it has come.", metavar="FOLDER")
    ] = None,
    roll: Annotated[
        Text, typer.Option(help="Of files from a stream: begin new ones so often, in event time; default: 1min.", metavar="TIME")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on with files that appear later, each once. Needs --checkpoint.")] = False,
    until_caught_up: Annotated[
        bool, typer.Option("--until-caught-up", help="Of a stream: stop when all that is there is done. Open windows wait.")
    ] = False,
    from_now: Annotated[
        bool, typer.Option("--from-now", help="Of a stream: begin anew from what comes now; the old checkpoint is set aside.")
    ] = False,
    stop_when_refused: Annotated[
        Text, typer.Option(help="Of a stream: stop when a larger share is refused; default: 5%/10min. Or: never.", metavar="SHARE/TIME")
    ] = None,
    metrics: Annotated[
        Text, typer.Option(help="Of a stream: Prometheus metrics and /healthz at this address, as 127.0.0.1:9464.", metavar="HOST:PORT")
    ] = None,
    client: Annotated[
        Texts,
        typer.Option(help="A setting of the stream's client, as security.protocol=SSL; may be given several times.", metavar="NAME=VALUE"),
    ] = None,
    registry: Annotated[Text, typer.Option(help="Messages are Avro by this schema registry.", metavar="URL")] = None,
    key: Annotated[
        Text, typer.Option(help="Of messages: the output field that is their key; default: the record id.", metavar="FIELD")
    ] = None,
    runner: Annotated[Text, typer.Option(help="What runs the job: local, flink or dataflow; default: local.", metavar="RUNNER")] = None,
    flink_master: Annotated[Text, typer.Option(help="Of Flink: its REST interface, as localhost:8081.", metavar="HOST:PORT")] = None,
    worker_pool: Annotated[
        Text, typer.Option(help="Of Flink: the worker pool, as a TaskManager sees it; default: 127.0.0.1:50000.", metavar="HOST:PORT")
    ] = None,
    job_server: Annotated[
        Text, typer.Option(help="Of Flink: Beam's job server: a jar, a folder of jars, or host:port.", metavar="PLACE")
    ] = None,
    project: Annotated[Text, typer.Option(help="Of Dataflow: the project.", metavar="NAME")] = None,
    region: Annotated[Text, typer.Option(help="Of Dataflow: where its workers run.", metavar="NAME")] = None,
    temp_location: Annotated[Text, typer.Option(help="Of Dataflow: gs://bucket/folder for what is staged.", metavar="PLACE")] = None,
    template: Annotated[Text, typer.Option(help="Of Dataflow: write a template there, and start nothing.", metavar="PLACE")] = None,
    update: Annotated[bool, typer.Option("--update", help="Of Dataflow: take the place of the job of this name that runs.")] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help="Of a stream: logs as JSON, on a terminal too.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary; only errors.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Log what Beam does, to standard error. Never shows an event.")] = False,
) -> None:
    """Turn events into anonymous events, from files or a stream to files, tables or a topic.

    All that can be wrong with policy, keys and folders is found before an event is read. Output files appear whole or not at all, and a
    second run over the same input writes the same bytes: after an interruption, run again. What a policy refuses is kept, sealed:
    see eventveil dead-letters.

    \b
    eventveil run --policy policy.yaml --input 'in/*.jsonl.gz' --output out \\
      --format parquet --keys keyring.json --dead-letters refused \\
      --custodian custodian.pub --summary summary.json
    eventveil run job.yaml                  several policies on one read

    A stream is read until the job is asked to stop, by Ctrl-C or SIGTERM: it finishes what it is at, and a later run goes on from the
    checkpoint, as it does after a crash. What the checkpoint holds is sealed under the keyring.

    \b
    eventveil run --policy policy.yaml --input 'kafka://localhost:9092/orders?group=veil' \\
      --output out --format parquet --checkpoint state --keys keyring.json \\
      --dead-letters refused --custodian custodian.pub

    Where one machine is not enough the same job runs on Flink or Dataflow. On Flink this process stays with it, and stops it with a
    savepoint; a later run goes on from there.

    \b
    eventveil run job.yaml --runner flink --flink-master localhost:8081
    eventveil run job.yaml --runner dataflow --project p --region r --temp-location gs://b/tmp
    """
    from eventveil.pipeline.cli.run import LiveFlags, run_job

    flags = {
        "policy": policy,
        "input": input,
        "output": output,
        "keys": keys,
        "input_format": input_format,
        "format": format,
        "compression": compression,
        "partition_by": partition_by,
        "dead_letters": dead_letters,
        "custodian": custodian,
        "allow_loss": allow_loss or None,
        "max_refused": max_refused,
        "workers": workers,
        "summary": summary,
        "checkpoint": checkpoint,
        "roll": roll,
        "watch": watch or None,
        "stop_when_refused": stop_when_refused,
        "metrics": metrics,
        "client": client or None,
        "registry": registry,
        "key": key,
    }
    given = {name: value for name, value in flags.items() if value is not None}
    flink = {"master": flink_master, "worker_pool": worker_pool, "job_server": job_server}
    dataflow = {"project": project, "region": region, "temp_location": temp_location, "template": template, "update": update or None}
    engines = {
        name: {key: one for key, one in said.items() if one is not None} for name, said in (("flink", flink), ("dataflow", dataflow))
    }
    where = {**({} if runner is None else {"runner": runner}), **{name: said for name, said in engines.items() if said}}
    raise typer.Exit(run_job(job, given, LiveFlags(until_caught_up, from_now, log_json), where, quiet=quiet, debug=debug))


@app.command("worker-pool", short_help="Start Beam's Python workers for Flink on this machine.")
def worker_pool_command(
    listen: Annotated[str, typer.Option(help="Where Flink's TaskManagers ask for workers.", metavar="HOST:PORT")] = "127.0.0.1:50000",
    insecure: Annotated[bool, typer.Option("--insecure", help="Listen on all interfaces: whoever reaches it can run code here.")] = False,
) -> None:
    """Start the Python workers that a Flink on this machine asks for; runs until it is stopped, and ends them with it.

    One runs beside each TaskManager, or several TaskManagers of one machine share one. Beam's protocol knows no password: whoever
    reaches the address can run code as you, so it listens on loopback unless told otherwise.

    \b
    eventveil worker-pool
    eventveil worker-pool --listen 127.0.0.1:50001
    """
    from eventveil.pipeline.cli.worker_pool import start

    raise typer.Exit(start(listen, insecure))


@app.command("expansion-service", short_help="Give Anonymize to Beam pipelines in Java.")
def expansion_service_command(
    listen: Annotated[str, typer.Option(help="Where pipelines ask for it.", metavar="HOST:PORT")] = "127.0.0.1:8097",
    worker_pool: Annotated[
        str, typer.Option(help="Where the engine finds Python workers, when the pipeline runs.", metavar="HOST:PORT")
    ] = "127.0.0.1:50000",
    insecure: Annotated[bool, typer.Option("--insecure", help="Listen on all interfaces: whoever reaches it can run code here.")] = False,
) -> None:
    """Give the transform AnonymizeMessages to pipelines in Java, Go and other languages of Beam; runs until it is stopped.

    It is needed while a pipeline is built, not while it runs: then the workers of `eventveil worker-pool` do the work. Policies are read
    by this service, keyrings by the workers. Beam's protocol knows no password: whoever reaches the address can run code as you, so it
    listens on loopback unless told otherwise.

    \b
    eventveil expansion-service
    eventveil expansion-service --listen 127.0.0.1:8098 --worker-pool 127.0.0.1:50001
    """
    from eventveil.pipeline.cli.expansion_service import start

    raise typer.Exit(start(listen, worker_pool, insecure))


@keys_app.command("new", short_help="Make a keyring.")
def keys_new(
    path: Annotated[str, typer.Argument(help="The file to make.", metavar="FILE")],
    domain: Annotated[Texts, typer.Option(help="Give this domain a root of its own; may be given several times.", metavar="NAME")] = None,
) -> None:
    """Make a keyring: 32 random bytes in a file that only you can read.

    Pseudonyms and noise come from it: the same keyring makes the same ones again. With --domain that domain can be
    rotated or destroyed apart from the others.

    \b
    eventveil keys new keyring.json
    eventveil keys new keyring.json --domain analytics --domain fulfilment
    """
    from eventveil.pipeline.cli.keys import new_keys

    raise typer.Exit(new_keys(path, domain or []))


@keys_app.command("custodian", short_help="Make a custodian's key pair.")
def keys_custodian(
    prefix: Annotated[str, typer.Argument(help="Writes PREFIX.pub and PREFIX.key.", metavar="PREFIX")],
) -> None:
    """Make a custodian's key pair: refused events are sealed to PREFIX.pub, and opened with PREFIX.key alone.

    The pipeline needs PREFIX.pub only. PREFIX.key belongs to somebody else, on another machine.

    \b
    eventveil keys custodian custodian
    """
    from eventveil.pipeline.cli.keys import new_custodian_pair

    raise typer.Exit(new_custodian_pair(prefix))


@letters_app.command("list", short_help="What was refused, why and where. Shows no event.")
def letters_list(
    folder: Annotated[str, typer.Argument(help="The folder of dead letters, or one of its files.", metavar="FOLDER")],
    code: Annotated[Text, typer.Option(help="Only letters with this code.", metavar="EVnnn")] = None,
    keys: Annotated[Text, typer.Option("--keys", "-k", help="The run's keyring: tells forged letters.", metavar="FILE")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per letter.")] = False,
) -> None:
    """What was refused, why and where, counted. Shows no event, and needs no private key.

    Whoever has the custodian's public key can write letters: with --keys those that the run did not write are counted apart. Exit code 1
    when letters are forged or damaged.

    \b
    eventveil dead-letters list refused --keys keyring.json
    eventveil dead-letters list refused --code EV502 --json
    """
    from eventveil.pipeline.cli.dead_letters import list_folder

    raise typer.Exit(list_folder(folder, code, keys, as_json=as_json))


@letters_app.command("open", short_help="Open refused events: their exact bytes, in clear.")
def letters_open(
    folder: Annotated[str, typer.Argument(help="The folder of dead letters, or one of its files.", metavar="FOLDER")],
    key: Annotated[str, typer.Option("--key", help="The custodian's private key (.key).", metavar="FILE")],
    keys: Annotated[Text, typer.Option("--keys", "-k", help="The run's keyring: leave out forged letters.", metavar="FILE")] = None,
    code: Annotated[Text, typer.Option(help="Only letters with this code.", metavar="EVnnn")] = None,
    output: Annotated[
        Text, typer.Option("--output", "-o", help="A new file, readable by you alone; default: standard output.", metavar="FILE")
    ] = None,
) -> None:
    """Open refused events: their exact bytes, one per line as they came. They are in clear: handle them so.

    Without --keys it is not known who wrote a letter: do not feed it back into a job. On a terminal control characters are shown as
    U+FFFD; a file or a pipe gets the exact bytes. Exit code 3 when a letter cannot be opened; the others are.

    \b
    eventveil dead-letters open refused --key custodian.key \\
      --keys keyring.json --output refused.jsonl
    """
    from eventveil.pipeline.cli.dead_letters import open_folder

    raise typer.Exit(open_folder(folder, key, keys, code, output))


@app.command(short_help="Print the version.")
def version() -> None:
    """Print the version."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as version_of

    try:
        typer.echo(f"eventveil {version_of('eventveil')}")
    except PackageNotFoundError:
        typer.echo("eventveil, from sources that are not installed")


def main(arguments: list[str] | None = None) -> None:
    """The entry point: every error becomes a message without data and an exit code."""
    # Plugins of pydantic are not ours, and would be shown what we validate; looking for them takes longer than our own start.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    for stream in (sys.stdout, sys.stderr):
        # What an old terminal cannot show is escaped: never a reason to fail.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    try:
        code = app(arguments, prog_name="eventveil", standalone_mode=False)
    except BaseException as error:  # noqa: BLE001 - all that is told of it, _code says
        code = _code(error)
    # Beam and typer make other errors of an interruption on its way here, or none at all.
    _leave(_interrupted() if _interruption.is_set() else code if isinstance(code, int) else 0)


def _code(error: BaseException) -> int:
    """Tell an error; its exit code."""
    if _interruption.is_set() or isinstance(error, (KeyboardInterrupt, typer.Abort)):
        _interruption.set()
        return 130
    if isinstance(error, (BrokenPipeError, SystemExit)):
        return 141  # rich leaves by SystemExit when nobody reads on
    if isinstance(error, EventveilError):
        _tell(error)
        return error.exit_code
    return _usage(error)


def _usage(error: BaseException) -> int:
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
    colour = has_colour(sys.stderr.isatty())
    for problem in error.problems:
        text = printable(str(problem))
        print(text.replace(problem.code, f"\033[31m{problem.code}\033[0m", 1) if colour else text, file=sys.stderr)


def _interrupt(*_: Any) -> None:
    """Unwind once, so that temporary files go; leave at once on a second signal, or when threads hold us."""
    _interruption.set()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(130))
    held = threading.Timer(1, lambda: _leave(_interrupted()))
    held.daemon = True
    held.start()
    raise KeyboardInterrupt


def _interrupted() -> int:
    # Once, whoever comes first: the timer, or the main thread.
    if _told.acquire(blocking=False):
        print("interrupted: every file that was written is whole; run again to complete", file=sys.stderr)
    return 130


def _leave(code: int) -> NoReturn:
    """Leave at once: threads of a runner that was interrupted must not hold the process."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            pass
    os._exit(code)
