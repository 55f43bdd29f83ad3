"""`eventveil check`, as a privacy officer and as continuous integration use it."""

from __future__ import annotations

import io
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import fastavro
import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]

ROOT = Path(__file__).resolve().parents[3]
RETAIL = ROOT / "examples" / "online_retail"
KEYED = (
    "note  keys are derived: who holds the keyring can make any window's pseudonyms again, test guesses against them, and take the "
    "noise off; deleting events does not delete that"
)


@pytest.fixture
def quiet(shop: Path) -> Path:
    """A policy about which nothing is to be said."""
    dropped = ("tenant", "id", "status", "shipping", "products")
    head = "policy: quiet\nversion: 1\nschema: shipping_order.avsc\ndomain: research\nevent: {time: time}\nfields:\n  time: {floor: 1d}\n"
    policy = head + "".join(f"  {name}: drop\n" for name in dropped)
    (shop / "quiet.yaml").write_text(policy)
    return shop / "quiet.yaml"


class TestAPolicy:
    def test_is_told_field_by_field_with_what_it_discloses(self, shop: Path, eventveil: Run) -> None:
        done = eventveil("check", "policy.yaml", cwd=shop)
        lines = [" ".join(line.split()) for line in done.stdout.splitlines()]

        assert (0, "") == (done.returncode, done.stderr)
        assert lines[0].startswith("shipping-order version 1, digest ") and lines[0].endswith(": complete")
        assert "date time shift, floor the time to within 10min; the time to within 1min" in lines
        assert "group[].delta products[].quantity noise the value up to noise (Laplace, scale 1)" in lines
        assert (
            "dropped: tenant, id, status, shipping.country, shipping.zip, shipping.line1, shipping.to, shipping.carrier, products[].name, "
            "products[].price"
        ) in lines
        assert " ".join(KEYED.split()) in lines

    def test_without_keyed_rules_says_nothing_of_keys(self, quiet: Path, eventveil: Run) -> None:
        done = eventveil("check", "quiet.yaml", "--strict", cwd=quiet.parent)

        assert (0, "") == (done.returncode, done.stderr)
        assert "note" not in done.stdout
        assert "warning" not in done.stdout

    def test_with_warnings_fails_when_strict_and_says_why(self, shop: Path, eventveil: Run) -> None:
        done = eventveil("check", "policy.yaml", "--strict", cwd=shop)

        assert (1, "3 warnings, and --strict was given\n") == (done.returncode, done.stderr)

    def test_reads_no_events_and_needs_no_keys(self, shop: Path, eventveil: Run) -> None:
        for name in ("orders.jsonl", "keyring.json", "custodian.pub", "custodian.key"):
            (shop / name).unlink()

        before = sorted(path.name for path in shop.iterdir())

        assert 0 == eventveil("check", "trusted.yaml", cwd=shop).returncode
        assert before == sorted(path.name for path in shop.iterdir())

    def test_is_found_from_another_folder_and_so_is_its_schema(
        self, shop: Path, tmp_path_factory: pytest.TempPathFactory, eventveil: Run
    ) -> None:
        done = eventveil("check", shop / "policy.yaml", cwd=tmp_path_factory.mktemp("elsewhere"))

        assert 0 == done.returncode

    def test_without_a_terminal_has_no_colours(self, shop: Path, eventveil: Run) -> None:
        assert "\x1b" not in eventveil("check", "policy.yaml", cwd=shop).stdout

    def test_can_be_read_where_output_is_not_unicode(self, shop: Path, eventveil: Run) -> None:
        done = eventveil("check", "policy.yaml", cwd=shop, env={"PYTHONIOENCODING": "ascii"})

        assert (0, "") == (done.returncode, done.stderr)


class TestAWrongPolicy:
    def test_is_told_all_at_once_with_lines_and_remedies(self, shop: Path, eventveil: Run) -> None:
        text = (
            (shop / "policy.yaml")
            .read_text()
            .replace("floor:", "flor:")
            .replace("  status: drop\n", "")
            .replace("price: drop", "price: maks")
        )
        (shop / "policy.yaml").write_text(text)

        done = eventveil("check", "policy.yaml", cwd=shop)
        first = [line.split(" known:")[0] for line in done.stderr.splitlines()]

        assert (2, "") == (done.returncode, done.stdout)
        assert [
            "policy.yaml: EV203 field status has no rule",
            "  add a rule, or say `keep` on purpose",
            "policy.yaml:15: EV101 unknown operator 'flor' in fields.time",
            "  did you mean 'floor'?",
            "policy.yaml:21: EV101 unknown operator 'maks' in fields.products[].price",
            "  did you mean 'mask'?",
        ] == first

    @pytest.mark.parametrize(
        ("old", "new", "expected"),
        [
            pytest.param(
                "domain:", "domian:", ["EV102 unknown entry 'domian'", "did you mean 'domain'?", "EV104 domain is missing"], id="entry"
            ),
            pytest.param("window: 1d", "window: 1m", ["EV109 window '1m'"], id="minutes_or_months"),
            pytest.param(
                "within:", "withn:", ["EV102 unknown parameter 'withn' of shift in fields.time", "did you mean 'within'?"], id="parameter"
            ),
            pytest.param("  tenant:", "  tennant:", ["EV204", "tennant", "EV203 field tenant has no rule"], id="field"),
            pytest.param(
                "shipping_order.avsc", "shipping_order.avcs", ["policy.yaml:4: ", "shipping_order.avcs", "no such file"], id="schema_file"
            ),
            pytest.param("subject: shipping.to", "subject: shiping.to", ["EV204", "shiping.to"], id="subject"),
        ],
    )
    def test_typos_are_named_with_what_was_meant(self, shop: Path, eventveil: Run, old: str, new: str, expected: list[str]) -> None:
        text = (shop / "policy.yaml").read_text()
        assert old in text
        (shop / "policy.yaml").write_text(text.replace(old, new, 1))

        done = eventveil("check", "policy.yaml", cwd=shop)

        assert 2 == done.returncode
        assert [] == [piece for piece in expected if piece not in done.stderr]

    def test_is_told_as_json_for_an_editor(self, shop: Path, eventveil: Run) -> None:
        (shop / "policy.yaml").write_text((shop / "policy.yaml").read_text().replace("floor:", "flor:"))

        done = eventveil("check", "policy.yaml", "--json", cwd=shop)
        found = json.loads(done.stdout)

        assert (2, "") == (done.returncode, done.stderr)
        assert [("policy.yaml", 15, "EV101", "unknown operator 'flor' in fields.time")] == [
            (one["file"], one["line"], one["code"], one["fact"]) for one in found["problems"]
        ]
        assert ([], []) == (found["policies"], found["matching"])

    def test_cannot_command_the_terminal_by_its_names(self, shop: Path, eventveil: Run) -> None:
        name = 'policy: "\\e]0;owned\\a\\u202Eevil"'
        (shop / "policy.yaml").write_text((shop / "policy.yaml").read_text().replace("policy: shipping-order", name))

        done = eventveil("check", "policy.yaml", cwd=shop)

        assert 2 == done.returncode
        assert set() == {"\x1b", "\x07", "\u202e"} & set(done.stderr + done.stdout)

    def test_a_missing_one_is_named(self, shop: Path, eventveil: Run) -> None:
        done = eventveil("check", "nowhere.yaml", cwd=shop)

        expected = "nowhere.yaml: EV115 the document cannot be read: no such file or directory\n  correct the path\n"
        assert (2, expected) == (done.returncode, done.stderr)

    def test_no_policy_named_is_an_error_of_the_arguments(self, shop: Path, eventveil: Run) -> None:
        done = eventveil("check", cwd=shop)

        assert 2 == done.returncode
        assert "Usage: eventveil check [OPTIONS]" in done.stderr


class TestJson:
    def test_holds_digest_output_dropped_and_warnings(self, shop: Path, eventveil: Run) -> None:
        done = eventveil("check", "trusted.yaml", "--json", cwd=shop)
        found = json.loads(done.stdout)
        (policy,) = found["policies"]
        by_name = {one["name"]: one for one in policy["output"]}

        assert (0, []) == (done.returncode, found["problems"])
        assert ["policy", "version", "digest", "domain", "output", "dropped", "warnings", "notes"] == list(policy)
        assert ("shipping-order-trusted", 1, 64, "fulfilment") == (
            policy["policy"],
            policy["version"],
            len(policy["digest"]),
            policy["domain"],
        )
        assert {
            "name": "shipping.area",
            "type": "string",
            "from": "shipping.zip",
            "operators": ["truncate"],
            "discloses": "the first 2 characters",
        } == by_name["shipping.area"]
        assert ["tenant", "id", "shipping.line1", "products[].name"] == policy["dropped"]

    def test_says_pseudonymous_and_never_anonymous(self, shop: Path, eventveil: Run) -> None:
        said = eventveil("check", "trusted.yaml", cwd=shop).stdout

        assert "pseudonymous: equal values within a key window can be recognised" in " ".join(said.split())
        assert "anonymous" not in said


class TestTheOutputsSchema:
    def test_as_avro_reads_what_a_job_writes(self, shop: Path, eventveil: Run) -> None:
        done = eventveil("check", "policy.yaml", "--output-schema", "avro", cwd=shop)
        schema = fastavro.parse_schema(json.loads(done.stdout))
        event = {"date": None, "group": [{"ref": 1, "delta": 2}]}

        assert (0, "") == (done.returncode, done.stderr)
        assert ["date", "group"] == [field["name"] for field in schema["fields"]]
        assert not fastavro.validate({**event, "group": "no list"}, schema, raise_errors=False)
        fastavro.schemaless_writer(io.BytesIO(), schema, {**event, "date": 1})

    def test_as_json_schema_names_every_field_and_refuses_others(self, shop: Path, eventveil: Run) -> None:
        done = eventveil("check", "policy.yaml", "--output-schema", "json", cwd=shop)
        schema = json.loads(done.stdout)

        assert (0, "") == (done.returncode, done.stderr)
        assert "https://json-schema.org/draft/2020-12/schema" == schema["$schema"]
        assert ["date", "group"] == list(schema["properties"])
        assert schema["additionalProperties"] is False

    def test_in_an_unknown_language_names_the_known_ones(self, shop: Path, eventveil: Run) -> None:
        done = eventveil("check", "policy.yaml", "--output-schema", "avrò", cwd=shop)

        assert (2, "EV120 --output-schema knows no 'avrò'\n  did you mean 'avro'? known: avro, json\n") == (done.returncode, done.stderr)


class TestAJob:
    def test_tells_every_policy_and_by_what_two_recipients_can_match(self, eventveil: Run) -> None:
        done = eventveil("check", "job.yaml", cwd=RETAIL)

        assert 0 == done.returncode
        assert done.stdout.splitlines()[-1] == (
            "two recipients  online-retail-marketing and online-retail-logistics can be matched by what both keep of: time, country, "
            "lines[].quantity; so can the length of their lists"
        )
        assert ["online-retail-marketing", "online-retail-logistics"] == [
            line.split()[0] for line in done.stdout.splitlines() if line.endswith(": complete")
        ]

    def test_with_several_policies_has_no_one_schema(self, eventveil: Run) -> None:
        done = eventveil("check", "job.yaml", "--output-schema", "avro", cwd=RETAIL)

        assert (2, "EV120 --output-schema takes one policy\n  name the policy, not the job\n") == (done.returncode, done.stderr)

    def test_of_one_domain_is_said_to_share_its_pseudonyms(self, tmp_path: Path, eventveil: Run) -> None:
        shutil.copytree(RETAIL, tmp_path, dirs_exist_ok=True)
        (tmp_path / "logistics.yaml").write_text(
            (tmp_path / "logistics.yaml").read_text().replace("domain: logistics", "domain: marketing")
        )

        done = eventveil("check", "job.yaml", "--json", "--strict", cwd=tmp_path)

        assert 1 == done.returncode
        assert "share the domain marketing: their pseudonyms and their order are the same" in " ".join(json.loads(done.stdout)["matching"])

    def test_with_a_wrong_policy_tells_it(self, tmp_path: Path, eventveil: Run) -> None:
        shutil.copytree(RETAIL, tmp_path, dirs_exist_ok=True)
        (tmp_path / "logistics.yaml").write_text((tmp_path / "logistics.yaml").read_text().replace("floor", "flor"))

        done = eventveil("check", "job.yaml", cwd=tmp_path)

        assert 2 == done.returncode
        assert "logistics.yaml:" in done.stderr and "EV101 unknown operator 'flor'" in done.stderr


def test_help_teaches(shop: Path, eventveil: Run) -> None:
    done = eventveil("check", "--help", cwd=shop)

    assert (0, "") == (done.returncode, done.stderr)
    for piece in ("eventveil check policy.yaml --output-schema avro", "--strict", "--json", "exit code 2", "POLICY_OR_JOB"):
        assert piece in done.stdout


# --- what it costs ------------------------------------------------------------------------------------------------------------

_LOADED = """
import json, os, sys
def leave(code):
    sys.stdout.flush()
    names = [name for name in sys.modules if name.partition(".")[0] not in sys.stdlib_module_names]
    print(json.dumps(names), file=sys.stderr, flush=True)
    end(code)
end, os._exit = os._exit, leave
from eventveil.pipeline.cli.main import main
main(["check", "policy.yaml"])
"""
_CHECK = 'from eventveil.pipeline.cli.main import main; main(["check", "policy.yaml"])'
_IMPORTABLE = """
import importlib, json
found = []
for name in {names!r}:
    try:
        importlib.import_module(name)
        found.append(name)
    except ImportError:
        pass
print(json.dumps(found))
"""
_IMPORTS = "import importlib, os\nfor name in {names!r}:\n    importlib.import_module(name)\nos._exit(0)"


def loaded_by_check(shop: Path, env: dict[str, str]) -> list[str]:
    """The modules of others that `check` has loaded when it ends."""
    done = subprocess.run([sys.executable, "-c", _LOADED], cwd=shop, env=env, capture_output=True, text=True, check=True)
    return json.loads(done.stderr.splitlines()[-1])


def cpu_seconds(code: str, shop: Path, env: dict[str, str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], cwd=shop, env=env, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


class TestItsCost:
    def test_imports_no_beam_and_nothing_that_only_a_job_needs(self, shop: Path, environment: dict[str, str]) -> None:
        names = loaded_by_check(shop, environment)

        assert "eventveil.transforms.compile" in names
        # The bare namespace is opened at every start, by a .pth file of one of Google's libraries.
        libraries = {name.partition(".")[0] for name in set(names) - {"google", "google.cloud"}}
        assert set() == libraries & {"apache_beam", "fastavro", "msgspec", "google", "grpc", "pandas"}
        assert set() == {"pyarrow.parquet", "pyarrow.dataset", "eventveil.schemas.job", "eventveil.pipeline.prepare"} & set(names)

    def test_is_at_most_one_and_a_half_times_its_imports_of_libraries(
        self, shop: Path, tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]
    ) -> None:
        """Both with compiled bytecode; the minimum of interleaved runs, because other processes only ever add."""
        env = {**environment, "PYTHONPYCACHEPREFIX": str(tmp_path_factory.mktemp("bytecode"))}
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        # What cannot be imported by its name was made by another module, and costs nothing itself.
        names = [name for name in loaded_by_check(shop, env) if name.partition(".")[0] not in ("eventveil", "__main__")]
        done = subprocess.run([sys.executable, "-c", _IMPORTABLE.format(names=names)], env=env, capture_output=True, text=True, check=True)
        imports = _IMPORTS.format(names=json.loads(done.stdout))
        check = alone = float("inf")
        for _ in range(12):
            check = min(check, cpu_seconds(_CHECK, shop, env))
            alone = min(alone, cpu_seconds(imports, shop, env))
        print(f"check {check:.3f} CPU-s, its libraries alone {alone:.3f}: {check / alone:.2f} times", file=sys.stderr)

        assert alone > 0.05
        assert check <= 1.5 * alone
