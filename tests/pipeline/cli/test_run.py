"""`eventveil run`, from flags and from job files: what it writes, says and answers."""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]

ROOT = Path(__file__).resolve().parents[3]
FLAGS = ["--policy", "policy.yaml", "--input", "orders.jsonl", "--output", "out", "--keys", "keyring.json"]
SEALED = ["--dead-letters", "refused", "--custodian", "custodian.pub"]
BAD = [
    b'{"tenant": "CANARY-1", "id": "CANARY-2", "time": "CANARY-3"}\n',
    b'{"CANARY-4\n',
]


@pytest.fixture
def spoiled(shop: Path) -> Path:
    """Ten orders and two that are refused."""
    orders = (shop / "orders.jsonl").read_bytes().splitlines(keepends=True)[:10]
    (shop / "orders.jsonl").write_bytes(b"".join([*orders[:5], BAD[0], *orders[5:], BAD[1]]))
    return shop


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def parts_of(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in files_of(folder).items() if "part-" in name}


class TestFromFlags:
    def test_writes_events_and_says_what_became_of_them(self, spoiled: Path, eventveil: Run) -> None:
        done = eventveil("run", *FLAGS, *SEALED, "--summary", "reports/summary.json", cwd=spoiled)
        lines = done.stderr.splitlines()
        rows = [json.loads(line) for content in parts_of(spoiled / "out").values() for line in content.splitlines()]
        told = json.loads((spoiled / "reports" / "summary.json").read_text())
        (policy,) = told["policies"]

        assert (0, "") == (done.returncode, done.stdout)
        assert (10, {"date", "group"}) == (len(rows), set().union(*rows))
        assert re.fullmatch(r"shipping-order \(version 1, policy digest [0-9a-f]{12}\)", lines[0])
        assert lines[1:4] == [
            "  in 12  out 10  refused 2",
            "  refused 1: EV501 not one JSON object",
            "  refused 1: EV503 a required field is missing or null",
        ]
        assert re.fullmatch(r"[0-9.]+ s, [0-9,]+ events/s, start-up included", lines[4])
        assert lines[5:] == []
        assert ["job", "seconds", "keys", "policies"] == list(told)
        assert ["policy", "version", "digest", "in", "out", "filtered", "refused", "drift", "rules"] == list(policy)
        assert (12, 10, 0, {"EV501": 1, "EV503": 1}, {}) == tuple(policy[name] for name in ("in", "out", "filtered", "refused", "drift"))
        assert 10 == policy["rules"]["fields.time[0]"]
        assert "CANARY" not in done.stderr + json.dumps(told)

    def test_a_second_run_writes_the_same_bytes(self, spoiled: Path, eventveil: Run) -> None:
        first = eventveil("run", *FLAGS, *SEALED, cwd=spoiled)
        before = files_of(spoiled / "out")
        names = sorted(files_of(spoiled / "refused"))
        second = eventveil("run", *FLAGS, *SEALED, cwd=spoiled)

        assert [0, 0] == [first.returncode, second.returncode]
        assert before == files_of(spoiled / "out")
        assert names == sorted(files_of(spoiled / "refused")) != []

    def test_another_policy_must_not_write_into_the_same_folder(self, shop: Path, eventveil: Run) -> None:
        (shop / "orders.jsonl").write_bytes(b"")
        assert 0 == eventveil("run", *FLAGS, *SEALED, "--quiet", cwd=shop).returncode

        done = eventveil("run", "--policy", "trusted.yaml", *FLAGS[2:], *SEALED, cwd=shop)

        assert 4 == done.returncode
        assert done.stderr.startswith("out: EV405 holds output of another job: digest, domain, policy differ\n  choose an empty folder")

    def test_reads_gzip_and_writes_parquet_by_window(self, shop: Path, eventveil: Run) -> None:
        lines = (shop / "orders.jsonl").read_bytes().splitlines(keepends=True)
        (shop / "in").mkdir()
        (shop / "in" / "a.jsonl.gz").write_bytes(gzip.compress(b"".join(lines[:100])))
        (shop / "in" / "b.jsonl.gz").write_bytes(gzip.compress(b"".join(lines[100:])))
        flags = ["--policy", "policy.yaml", "--input", "in/*.jsonl.gz", "--output", "out", "--keys", "keyring.json", "--format", "parquet"]

        done = eventveil("run", *flags, *SEALED, "--partition-by", "window", "--workers", "2", cwd=shop)
        tables = {name: pq.ParquetFile(shop / "out" / name).read() for name in parts_of(shop / "out")}

        assert 0 == done.returncode, done.stderr
        assert 200 == sum(table.num_rows for table in tables.values())
        for name, table in tables.items():
            day = re.match(r"window=([0-9-]{10})/part-[0-9a-f]+\.parquet$", name)
            assert day is not None
            assert {day[1]} == {str(date)[:10] for date in table["date"].to_pylist()}

    def test_an_empty_file_gives_no_events_and_no_error(self, shop: Path, eventveil: Run) -> None:
        (shop / "orders.jsonl").write_bytes(b"")

        done = eventveil("run", *FLAGS, *SEALED, cwd=shop)

        assert (0, "  in 0  out 0  refused 0") == (done.returncode, done.stderr.splitlines()[1])
        assert ["_eventveil.json"] == list(files_of(shop / "out"))

    def test_two_workers_write_what_one_writes(self, shop: Path, eventveil: Run) -> None:
        for number in range(4):
            shutil.copy(shop / "orders.jsonl", shop / f"more-{number}.jsonl")
        flags = ["--policy", "policy.yaml", "--input", "*.jsonl", "--keys", "keyring.json", *SEALED, "--quiet"]

        one = eventveil("run", *flags, "--output", "one", cwd=shop)
        two = eventveil("run", *flags, "--output", "two", "--workers", "2", cwd=shop)

        assert [(0, "", "")] * 2 == [(done.returncode, done.stdout, done.stderr) for done in (one, two)]
        assert 5 == len(parts_of(shop / "one"))
        assert files_of(shop / "one") == files_of(shop / "two")


class TestRefusedEvents:
    def test_may_not_be_lost_without_a_word(self, shop: Path, eventveil: Run) -> None:
        done = eventveil("run", *FLAGS, cwd=shop)

        expected = (
            "EV119 refused events would be lost: no folder for dead letters, or no custodian's key to seal them to\n"
            "  name both (--dead-letters FOLDER --custodian FILE.pub), or say --allow-loss; "
            "make a key with: eventveil keys custodian NAME\n"
        )
        assert (2, "", expected) == (done.returncode, done.stdout, done.stderr)
        assert not (shop / "out").exists()

    def test_are_counted_where_loss_is_allowed(self, spoiled: Path, eventveil: Run) -> None:
        done = eventveil("run", *FLAGS, "--allow-loss", "--max-refused", "1", cwd=spoiled)

        assert 1 == done.returncode
        assert "  in 12  out 10  refused 2" in done.stderr.splitlines()
        assert done.stderr.endswith(
            "EV601 shipping-order: 2 of 12 events refused, more than 1\n"
            "  the output is complete; run with --dead-letters and --custodian to see them\n"
        )
        assert not (spoiled / "refused").exists()

    @pytest.mark.parametrize(
        ("limit", "code"),
        [pytest.param("16%", 1, id="share_passed"), pytest.param("17%", 0, id="share_kept"), pytest.param("2", 0, id="count_kept")],
    )
    def test_beyond_the_limit_fail_the_job_whose_output_is_complete(self, spoiled: Path, eventveil: Run, limit: str, code: int) -> None:
        done = eventveil("run", *FLAGS, *SEALED, "--max-refused", limit, "--summary", "summary.json", "--quiet", cwd=spoiled)

        fact = "EV601 shipping-order: 2 of 12 events refused, more than 16%\n"
        look = "  the output is complete; see why: eventveil dead-letters list refused\n"
        assert (code, fact + look if code else "") == (done.returncode, done.stderr)
        assert 10 == json.loads((spoiled / "summary.json").read_text())["policies"][0]["out"]
        assert 10 == sum(content.count(b"\n") for content in parts_of(spoiled / "out").values())


class TestFromAJobFile:
    def test_two_policies_share_one_read(self, tmp_path: Path, eventveil: Run) -> None:
        shutil.copytree(ROOT / "examples" / "online_retail", tmp_path, dirs_exist_ok=True)
        for command in (["keys", "new", "keyring.json"], ["keys", "custodian", "custodian"]):
            assert 0 == eventveil(*command, cwd=tmp_path).returncode

        done = eventveil("run", "job.yaml", cwd=tmp_path)
        told = json.loads((tmp_path / "out" / "summary.json").read_text())

        assert 0 == done.returncode, done.stderr
        assert ["online-retail-marketing", "online-retail-logistics"] == [one["policy"] for one in told["policies"]]
        for one in told["policies"]:
            assert 302 == one["in"] == one["out"] + one["filtered"] + sum(one["refused"].values())
        assert any(name.endswith(".parquet") and name.startswith("window=") for name in parts_of(tmp_path / "out" / "marketing"))
        assert any(name.endswith(".jsonl") for name in parts_of(tmp_path / "out" / "logistics"))

    def test_flags_beside_it_are_refused_by_name(self, shop: Path, eventveil: Run) -> None:
        done = eventveil("run", "job.yaml", "--workers", "2", "--max-refused", "5%", cwd=shop)

        expected = "EV120 a job file and flags were given: --max-refused, --workers\n  write them into the job file\n"
        assert (2, "", expected) == (done.returncode, done.stdout, done.stderr)

    def test_a_policy_in_its_place_is_recognised(self, shop: Path, eventveil: Run) -> None:
        done = eventveil("run", "policy.yaml", cwd=shop)

        fact = "policy.yaml: EV120 this is a policy, not a job\n"
        remedy = "  say: eventveil run --policy policy.yaml --input ... --output ...\n"
        assert (2, fact + remedy) == (done.returncode, done.stderr)

    def test_it_in_the_place_of_a_policy_is_recognised(self, tmp_path: Path, eventveil: Run) -> None:
        shutil.copytree(ROOT / "examples" / "online_retail", tmp_path, dirs_exist_ok=True)

        done = eventveil("run", "--policy", "job.yaml", "--input", "sample.jsonl", "--output", "out", cwd=tmp_path)

        assert (2, "job.yaml: EV120 --policy names a job file\n  say: eventveil run job.yaml\n") == (done.returncode, done.stderr)

    def test_its_errors_name_lines_all_at_once(self, shop: Path, eventveil: Run) -> None:
        (shop / "job.yaml").write_text(
            "job: a\ninput: {uri: x, fromat: jsonl}\nvariants:\n  - policy: policy.yaml\n    ouput: {uri: out}\nworkers: two\n"
        )

        done = eventveil("run", "job.yaml", cwd=shop)

        assert 2 == done.returncode
        for piece in (
            "job.yaml:2: EV102 unknown entry 'fromat' in input",
            "job.yaml:5: EV102 unknown entry 'ouput'",
            "job.yaml:6: EV103 workers",
        ):
            assert piece in done.stderr


class TestWrongArguments:
    def test_are_told_by_the_flags_name(self, shop: Path, eventveil: Run) -> None:
        wrong = ["--format", "xml", "--input-format", "csv", "--partition-by", "day", "--max-refused", "200%"]

        done = eventveil("run", *FLAGS, *SEALED, *wrong, cwd=shop)

        assert 2 == done.returncode
        assert [
            "EV103 --format cannot be 'xml'",
            "EV103 --input-format cannot be 'csv'",
            "EV103 --max-refused '200%': not a limit",
            "EV103 --partition-by cannot be 'day'",
        ] == [line for line in done.stderr.splitlines() if not line.startswith(" ")]

    @pytest.mark.parametrize(
        ("arguments", "code", "expected"),
        [
            pytest.param([], 2, "EV120 --policy, --input, --output are missing", id="nothing"),
            pytest.param(["--nope"], 2, "No such option: --nope", id="unknown_option"),
            pytest.param(["--workers", "0"], 2, "Invalid value for '--workers'", id="no_workers"),
            pytest.param([*FLAGS[:6], *SEALED], 3, "EV301 no keyring is named", id="no_keys"),
            pytest.param([*FLAGS[:6], "--keys", "nowhere.json", *SEALED], 3, "nowhere.json: EV301", id="missing_keys"),
            pytest.param([*FLAGS[:6], "--keys", "env:NOWHERE", *SEALED], 3, "EV305", id="variable_not_set"),
            pytest.param(
                [*FLAGS, "--dead-letters", "refused", "--custodian", "custodian.key"], 3, "custodian.key: EV306", id="private_for_public"
            ),
            pytest.param([*FLAGS[:2], "--input", "no*.jsonl", *FLAGS[4:], *SEALED], 4, "EV401 nothing matches 'no*.jsonl'", id="no_input"),
            pytest.param(
                [*FLAGS[:2], "--input", "policy.yaml", *FLAGS[4:], *SEALED], 4, "name it with --input-format", id="unknown_format"
            ),
            pytest.param(
                [*FLAGS[:4], "--output", ".", *FLAGS[6:], "--allow-loss"],
                2,
                "EV120 the output folder . holds input of this job",
                id="folder_is_read",
            ),
            pytest.param([*FLAGS, *SEALED, "--summary", "keyring.json/s.json"], 4, "keyring.json: EV404 a file stands where", id="summary"),
        ],
    )
    def test_end_the_run_before_an_event_is_read(self, shop: Path, eventveil: Run, arguments: list[str], code: int, expected: str) -> None:
        done = eventveil("run", *arguments, cwd=shop)

        assert (code, "") == (done.returncode, done.stdout)
        assert expected in done.stderr
        assert {} == parts_of(shop)


_PLUGIN = '''
import pyarrow as pa
from eventveil.transforms.registry import Operator, operator

@operator("explode")
class Explode(Operator):
    """Fails on a value, and quotes it."""

    def returns(self, given):
        return given

    def discloses(self):
        return "nothing"

    def apply(self, values, context):
        raise ValueError(f"cannot treat {values[0].as_py()}")
'''


class TestInternalErrors:
    def test_have_an_exit_code_of_their_own_and_never_quote_an_event(self, shop: Path, eventveil: Run) -> None:
        """A defect in somebody's operator, registered through the entry point group."""
        plugin = shop / "plugin"
        (plugin / "explosive-1.0.dist-info").mkdir(parents=True)
        (plugin / "explosive-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: explosive\nVersion: 1.0\n")
        (plugin / "explosive-1.0.dist-info" / "entry_points.txt").write_text("[eventveil.operators]\nexplode = explosive\n")
        (plugin / "explosive.py").write_text(_PLUGIN)
        text = (shop / "policy.yaml").read_text()
        (shop / "policy.yaml").write_text(text.replace("  status: drop", "  status: explode"))
        path = os.pathsep.join([str(plugin), *filter(None, [os.environ.get("PYTHONPATH")])])

        done = eventveil("run", *FLAGS, *SEALED, cwd=shop, env={"PYTHONPATH": path})

        assert (70, "") == (done.returncode, done.stdout)
        assert re.match(r"EV901 ValueError.*\n  its text is withheld, because it may quote an event\n$", done.stderr)
        assert {} == parts_of(shop)


def on_a_terminal(arguments: list[str], cwd: Path, env: dict[str, str], columns: int = 60) -> tuple[int, str]:
    """Exit code, and all that reached the terminal that standard error was."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    command = [sys.executable, "-c", "from eventveil.pipeline.cli.main import main; main()", *arguments]
    process = subprocess.Popen(command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    try:
        while chunk := os.read(ours, 65536):
            seen += chunk
    except OSError:  # Linux says so when the other side is closed
        pass
    os.close(ours)
    return process.wait(60), seen.decode()


class TestTheTerminal:
    def test_shows_progress_that_fits_and_vanishes(self, shop: Path, environment: dict[str, str]) -> None:
        code, seen = on_a_terminal(["run", *FLAGS, *SEALED], shop, environment, columns=30)
        shown = re.findall(r"\r\x1b\[K([^\r]*)", seen)
        progress = [line for line in shown if line.startswith(("0 events", "200 events"))]

        assert 0 == code
        assert progress
        assert set() == {line for line in progress if len(line) > 29}
        assert seen.split("\r\x1b[K")[-1].startswith("shipping-order (version 1")

    @pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=["no_colour", "dumb"])
    def test_errors_have_colour_on_one_that_wants_it_only(self, shop: Path, environment: dict[str, str], variables: dict[str, str]) -> None:
        code, coloured = on_a_terminal(["run", *FLAGS], shop, environment)
        _, plain = on_a_terminal(["run", *FLAGS], shop, {**environment, **variables})

        assert (2, True) == (code, "\x1b[31mEV119\x1b[0m refused events would be lost" in coloured)
        assert "EV119 refused events would be lost" in plain
        assert "\x1b" not in plain

    def test_without_one_there_is_no_progress_and_quiet_says_nothing(self, shop: Path, eventveil: Run) -> None:
        done = eventveil("run", *FLAGS, *SEALED, "--quiet", cwd=shop)

        assert (0, "", "") == (done.returncode, done.stdout, done.stderr)

    def test_with_debug_what_beam_does_is_logged_and_no_event(self, spoiled: Path, eventveil: Run) -> None:
        done = eventveil("run", *FLAGS, *SEALED, "--debug", cwd=spoiled)

        assert 0 == done.returncode
        assert "DEBUG apache_beam" in done.stderr
        assert "ApplyPolicy/shipping-order" in done.stderr
        for value in ("CANARY", "contsco", "Kitchen Aid", "Abdullin"):
            assert value not in done.stderr


def test_help_teaches(shop: Path, eventveil: Run) -> None:
    done = eventveil("run", "--help", cwd=shop)

    assert (0, "") == (done.returncode, done.stderr)
    for piece in ("eventveil run job.yaml", "--policy policy.yaml --input 'in/*.jsonl.gz'", "--max-refused LIMIT", "run again", "env:NAME"):
        assert piece in done.stdout
