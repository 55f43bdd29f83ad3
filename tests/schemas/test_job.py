"""The job's grammar: what it reads, what the environment fills in, and what never stands in it."""

from __future__ import annotations

import glob
import json
import pickle
from fractions import Fraction
from pathlib import Path

import pytest

from eventveil.schemas.durations import Duration
from eventveil.schemas.errors import PolicyError
from eventveil.schemas.job import (
    DataflowDoc,
    DeadLettersDoc,
    FlinkDoc,
    InputDoc,
    Job,
    Limit,
    OutputDoc,
    PubsubAddress,
    RegistryDoc,
    StopWhen,
    StreamAddress,
    TableAddress,
    VariantDoc,
    fill_references,
    job_json_schema,
    load_job,
    parse_job,
)

HEAD = "job: retail\n"
INPUT = "input: {uri: in.jsonl}\n"
VARIANTS = "variants:\n- {policy: p.yaml, output: {uri: out}}\n"


def read(text: str = "", file: str = "job.yaml", **environ: str) -> Job:
    for name, default in (("variants", VARIANTS), ("input", INPUT), ("job", HEAD)):
        if f"\n{name}:" not in f"\n{text}":
            text = text + default
    return parse_job(text, file, environ)


def refused(text: str, **environ: str) -> list[str]:
    with pytest.raises(PolicyError) as caught:
        read(text, **environ)
    return [f"{problem.line} {problem.code} {problem.fact}" for problem in caught.value.problems]


class TestWhatAJobSays:
    def test_the_least_job_has_defaults(self) -> None:
        found = read()

        assert ("retail", InputDoc(("in.jsonl",))) == (found.name, found.input)
        assert (VariantDoc(None, Path("p.yaml"), OutputDoc("out")),) == found.variants
        assert (None, None, False, "local", 1) == (found.keys, found.dead_letters, found.allow_loss, found.runner, found.workers)
        assert [None] * 5 == [found.max_refused, found.max_event_bytes, found.part_bytes, found.batch_bytes, found.summary]
        assert [None] * 5 == [found.checkpoint, found.roll, found.slice, found.idle_after, found.stop_when_refused]
        assert (None, None, None, False) == (found.max_slice_bytes, found.max_window_bytes, found.metrics, found.is_live)

    def test_a_full_job(self) -> None:
        found = read(
            "input: {uri: [a.gz, b.gz], format: jsonl, compression: gzip}\n"
            "variants:\n"
            "- {name: x, policy: x.yaml, output: {uri: out/x, format: parquet, partition_by: window}}\n"
            "- {name: y, policy: y.yaml, output: {uri: out/y}}\n"
            "keys: keyring.json\n"
            "dead_letters: {uri: refused/, custodian: custodian.pub}\n"
            "allow_loss: true\nrunner: local\nworkers: 2\nmax_refused: 5%\n"
            "max_event_bytes: 1000\npart_bytes: 2000\nbatch_bytes: 3000\nsummary: summary.json\n"
        )

        assert InputDoc(("a.gz", "b.gz"), "jsonl", "gzip") == found.input
        assert (
            VariantDoc("x", Path("x.yaml"), OutputDoc("out/x", "parquet", partition_by="window")),
            VariantDoc("y", Path("y.yaml"), OutputDoc("out/y")),
        ) == found.variants
        assert ("keyring.json", DeadLettersDoc("refused", Path("custodian.pub"))) == (found.keys, found.dead_letters)
        assert (True, "local", 2, Limit(share=Fraction(1, 20))) == (found.allow_loss, found.runner, found.workers, found.max_refused)
        assert (1000, 2000, 3000, Path("summary.json")) == (found.max_event_bytes, found.part_bytes, found.batch_bytes, found.summary)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("workers: 0\n", "1 EV103 workers must be at least 1, not 0"),
            ("workers: 65\n", "1 EV103 workers must be at most 64, not 65"),
            ('workers: "2"\n', "1 EV103 workers must be a whole number, not '2'"),
            ("workers: true\n", "1 EV103 workers must be a whole number, not true"),
            ("part_bytes: 33554433\n", "1 EV103 part_bytes must be at most 33554432, not 33554433"),
            ("batch_bytes: 0\n", "1 EV103 batch_bytes must be at least 1, not 0"),
            ("allow_loss: yes\n", "1 EV103 allow_loss must be true or false, not 'yes'"),
            ("runner: spark\n", "1 EV103 runner cannot be 'spark'"),
            ("keys:\n", "1 EV107 keys is empty"),
            ("keys: ''\n", "1 EV107 keys is empty"),
            ("summary: 5\n", "1 EV108 summary must be text, and 5 is a number"),
            ("job: a/b\n", "1 EV103 job 'a/b': not a name"),
            ("input: in.jsonl\n", "1 EV103 input must be a mapping, not 'in.jsonl'"),
            ("input: {}\n", "1 EV104 input.uri is missing"),
            ("input: {uri: []}\n", "1 EV107 input.uri is empty"),
            ("input: {uri: [a, 5]}\n", "1 EV108 input.uri[1] must be text, and 5 is a number"),
            ("input: {uri: a, format: json}\n", "1 EV103 input.format cannot be 'json'"),
            ("input: {uri: a, compression: bz2}\n", "1 EV103 input.compression cannot be 'bz2'"),
            ("input: {uri: a, url: b}\n", "1 EV102 unknown entry 'url' in input"),
            ("variants: []\n", "1 EV107 variants is empty"),
            ("variants: {}\n", "1 EV103 variants must be a list, not a mapping"),
            ("variants:\n- {policy: p, output: out}\n", "2 EV103 variants[0].output must be a mapping, not 'out'"),
            ("variants:\n- {policy: p, output: {uri: o, partition_by: day}}\n", "2 EV103 variants[0].output.partition_by cannot be 'day'"),
            ("variants:\n- {policy: p, output: {uri: o, fromat: avro}}\n", "2 EV102 unknown entry 'fromat' in variants[0].output"),
            ("dead_letters: {uri: refused}\n", "1 EV104 dead_letters.custodian is missing"),
            ("dead_letters: refused\n", "1 EV103 dead_letters must be a mapping, not 'refused'"),
            ("wokers: 2\n", "1 EV102 unknown entry 'wokers'"),
            ("input: {uri: 'ftp://x/y'}\n", "1 EV103 input.uri 'ftp://x/y': no kind of place that we know"),
            ("input: {uri: a, client: {}}\n", "1 EV103 input.client is for streams"),
            ("input: {uri: a, registry: {url: 'http://r'}}\n", "1 EV103 input.registry is for streams"),
            ("input: {uri: a, format: avro, envelope: debezium}\n", "1 EV103 input.envelope does not go with avro"),
            ("metrics: '9464'\n", "1 EV103 metrics '9464': not an address to listen at"),
            ("watch: 10s\n", "1 EV103 watch must be true or false, not '10s'"),
            ("watch: true\ncheckpoint: c\nroll: 1w\n", "3 EV103 roll '1w': not counted in these units"),
        ],
    )
    def test_what_is_wrong_says_where(self, text: str, expected: str) -> None:
        assert [expected] == refused(text)

    @pytest.mark.parametrize("name", ["job", "input", "variants"])
    def test_what_is_missing_is_named(self, name: str) -> None:
        entries = {"job": HEAD, "input": INPUT, "variants": VARIANTS}
        with pytest.raises(PolicyError) as caught:
            parse_job("".join(text for entry, text in entries.items() if entry != name), "job.yaml", {})

        assert [("EV104", f"{name} is missing")] == [(found.code, found.fact) for found in caught.value.problems]

    def test_all_problems_come_at_once(self) -> None:
        found = refused("workers: 0\nkeys:\ninput: {uri: '${X}', password: p}\nrunner: spark\n")

        assert ["1 EV103", "2 EV107", "3 EV102", "3 EV117", "3 EV118", "4 EV103"] == [problem[:7] for problem in found]


class TestApart:
    @pytest.mark.parametrize(
        ("first", "second"), [("out", "out"), ("out", "./out/"), ("out", "out/x"), ("out/x", "out"), ("a/../out", "out")], ids=str
    )
    def test_two_outputs_do_not_share_a_folder(self, first: str, second: str) -> None:
        text = f"variants:\n- {{policy: p, output: {{uri: {first}}}}}\n- {{policy: q, output: {{uri: {second}}}}}\n"

        assert ["3 EV103 variants[1].output.uri and variants[0].output.uri are one folder, or one is in the other"] == refused(text)

    def test_an_output_does_not_share_a_folder_with_dead_letters(self) -> None:
        found = refused("dead_letters: {uri: out/refused, custodian: c}\n")

        assert ["3 EV103 variants[0].output.uri and dead_letters.uri are one folder, or one is in the other"] == found

    @pytest.mark.parametrize(("checkpoint", "letters"), [("out/state", "refused"), ("refused", "refused"), ("x", "x/refused")], ids=str)
    def test_a_checkpoint_has_a_folder_of_its_own(self, checkpoint: str, letters: str) -> None:
        found = refused(f"watch: true\ncheckpoint: {checkpoint}\ndead_letters: {{uri: {letters}, custodian: c}}\n")

        assert 1 == len(found)
        assert "are one folder, or one is in the other" in found[0]

    def test_a_topic_is_neither_written_twice_nor_read(self) -> None:
        text = "checkpoint: state\nvariants:\n"
        text += "".join(f"- {{policy: p, output: {{uri: 'kafka://{one}'}}}}\n" for one in ("a:1/x", "a:1,b:2/y", "b:2/y", "b:2/x"))

        assert [
            "3 EV103 variants[0].output.uri and input.uri are one topic",
            "5 EV103 variants[2].output.uri and variants[1].output.uri are one topic",
        ] == refused(text + "input: {uri: 'kafka://a:1/x'}\n")

    def test_folders_side_by_side_pass(self) -> None:
        found = read("variants:\n- {policy: p, output: {uri: out/a}}\n- {policy: q, output: {uri: out/ab}}\n")

        assert ["out/a", "out/ab"] == [variant.output.uri for variant in found.variants]

    def test_two_variants_do_not_share_a_name(self) -> None:
        text = "variants:\n- {name: a, policy: p, output: {uri: o}}\n- name: a\n  policy: q\n  output: {uri: r}\n"

        assert ["3 EV103 variants[1].name is that of variants[0]"] == refused(text)


class TestPaths:
    def test_they_are_relative_to_the_job(self) -> None:
        text = "keys: k.json\nsummary: s.json\ndead_letters: {uri: d, custodian: c.pub}\n"
        found = read(text, "jobs/here/job.yaml")

        assert ("jobs/here/in.jsonl",) == found.input.uri
        assert (Path("jobs/here/p.yaml"), "jobs/here/out") == (found.variants[0].policy, found.variants[0].output.uri)
        assert ("jobs/here/k.json", Path("jobs/here/s.json")) == (found.keys, found.summary)
        assert DeadLettersDoc("jobs/here/d", Path("jobs/here/c.pub")) == found.dead_letters

    def test_absolute_ones_stay(self) -> None:
        found = read("input: {uri: [/a/*.jsonl, 'file:///b.jsonl']}\nkeys: /k.json\n", "jobs/job.yaml")

        assert (("/a/*.jsonl", "/b.jsonl"), "/k.json") == (found.input.uri, found.keys)

    def test_keys_from_the_environment_are_no_path(self) -> None:
        assert "env:ROOT_SECRET" == read("keys: env:ROOT_SECRET\n", "jobs/job.yaml").keys

    def test_a_folder_whose_name_looks_like_a_pattern_is_found(self, tmp_path: Path) -> None:
        folder = tmp_path / "jobs [1]*"
        folder.mkdir()
        (folder / "a.jsonl").touch()
        found = read("input: {uri: '*.jsonl'}\n", str(folder / "job.yaml"))

        assert [str(folder / "a.jsonl")] == glob.glob(found.input.uri[0])


class TestEnvironment:
    def test_it_fills_any_text(self) -> None:
        found = read('input: {uri: ["${IN}/a", "b"], format: "${F}"}\nkeys: ${KEYS}\n', IN="/data", F="avro", KEYS="env:X")

        assert (("/data/a", "b"), "avro", "env:X") == (found.input.uri, found.input.format, found.keys)

    def test_it_fills_numbers_and_booleans(self) -> None:
        found = read("workers: ${W}\nallow_loss: ${A}\nmax_refused: ${M}\n", W="3", A="true", M="0.5%")

        assert (3, True, Limit(share=Fraction(1, 200))) == (found.workers, found.allow_loss, found.max_refused)

    def test_a_doubled_dollar_is_the_character(self) -> None:
        assert Path("a${B}$C.json") == read("summary: a$${B}$C.json\n").summary

    def test_what_it_fills_in_is_not_filled_again(self) -> None:
        assert Path("${B}") == read("summary: ${A}\n", A="${B}", B="x").summary

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("summary: ${NOT_SET}\n", "1 EV117 summary: the environment variable NOT_SET is not set"),
            ("workers: ${NOT_SET}\n", "1 EV117 workers: the environment variable NOT_SET is not set"),
            ("input:\n  uri:\n  - a\n  - ${NOT_SET}/b\n", "4 EV117 input.uri[1]: the environment variable NOT_SET is not set"),
            ("summary: '${'\n", "1 EV103 summary has ${ without the name of a variable"),
            ("summary: '${}'\n", "1 EV103 summary has ${ without the name of a variable"),
            ("summary: '${1A}'\n", "1 EV103 summary has ${ without the name of a variable"),
            ("summary: ${EMPTY}\n", "1 EV107 summary is empty"),
        ],
    )
    def test_what_cannot_be_filled_says_so(self, text: str, expected: str) -> None:
        assert [expected] == refused(text, EMPTY="")

    @pytest.mark.parametrize(
        "text",
        [
            "job: ${C}\n",
            "workers: ${C}\n",
            "runner: ${C}\n",
            "allow_loss: ${C}\n",
            "max_refused: ${C}\n",
            "input: {uri: a, format: '${C}'}\n",
            "input: {uri: 'ftp://${C}'}\n",
            "input: '${C}'\n",
        ],
    )
    def test_what_it_fills_in_is_never_repeated(self, text: str) -> None:
        with pytest.raises(PolicyError) as caught:
            read(text, C="can a ry")

        assert "can a ry" not in str(caught.value)

    def test_the_real_one_is_the_default(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("EVENTVEIL_TEST_OUT", "/elsewhere")
        (tmp_path / "job.yaml").write_text(HEAD + INPUT + 'variants: [{policy: p, output: {uri: "${EVENTVEIL_TEST_OUT}"}}]\n')

        assert "/elsewhere" == load_job(tmp_path / "job.yaml").variants[0].output.uri


class TestSecrets:
    @pytest.mark.parametrize(
        "key",
        [
            "password",
            "sasl.password",
            "ssl.key.password",
            "clientSecret",
            "auth_token",
            "token",
            "api-key",
            "apiKey",
            "private_key",
            "AWS_SECRET_ACCESS_KEY",
        ],
    )
    def test_a_literal_secret_is_refused_and_not_repeated(self, key: str) -> None:
        with pytest.raises(PolicyError) as caught:
            read(f"input: {{uri: a, {key}: hunter2}}\n")

        assert "EV118" in {found.code for found in caught.value.problems}
        assert "hunter2" not in str(caught.value)

    @pytest.mark.parametrize("value", ["'x${P}'", "12345", "[a]", "{b: c}"], ids=["partly", "number", "list", "mapping"])
    def test_in_any_form(self, value: str) -> None:
        assert any(" EV118 " in found for found in refused(f"input: {{uri: a, password: {value}}}\n", P="p"))

    def test_one_from_the_environment_is_no_literal(self) -> None:
        assert ["1 EV102 unknown entry 'password' in input"] == refused("input: {uri: a, password: '${P}'}\n", P="p")

    def test_a_password_in_an_address_is_refused_and_not_repeated(self) -> None:
        with pytest.raises(PolicyError) as caught:
            read("input: {uri: 'ftp://me:hunter2@host/x'}\n")

        assert ["EV103", "EV118"] == sorted(found.code for found in caught.value.problems)
        assert "hunter2" not in str(caught.value)

    @pytest.mark.parametrize("key", ["tokenizer", "monkey", "keys", "bypassword", "secretary"])
    def test_other_names_are_only_unknown(self, key: str) -> None:
        assert [f"1 EV102 unknown entry '{key}' in input"] == refused(f"input: {{uri: a, {key}: b}}\n")


LIVE = "checkpoint: state\n"


def stream(address: str, more: str = "", **environ: str) -> InputDoc:
    return read(f"{LIVE}input: {{uri: '{address}'{more}}}\n", **environ).input


class TestStreams:
    def test_a_stream_with_all_that_it_takes(self) -> None:
        text = (
            "input:\n"
            "  uri: kafka://a:9093,[::1]:9094/orders,returns?group=veil&start=latest\n"
            "  format: avro\n"
            "  security.protocol: SASL_SSL\n"
            "  registry: {url: 'https://registry:8081/path', basic.auth.user.info: 'me:${P}', bearer.auth.token: '${P}'}\n"
            "  client: {socket.timeout.ms: 1000, sasl.password: '${P}', ssl.endpoint.check: false}\n"
            "variants:\n"
            "- policy: p\n"
            "  output: {uri: 'kafka://b/anonymous', format: json, key: id, linger.ms: 0.5}\n"
            "- policy: q\n"
            "  output: {uri: 'kafka://b:9092/other', registry: {url: 'http://registry:8081'}}\n"
        )
        found = read(
            text + "checkpoint: state\nroll: 5min\nslice: 2s\nidle_after: 30s\nmax_slice_bytes: 1000\nmax_window_bytes: 2000\n"
            "metrics: 127.0.0.1:9464\nstop_when_refused: 5%/10min\n",
            P="hunter2",
        )

        address = StreamAddress("kafka", "a:9093,[::1]:9094", ("orders", "returns"), "veil", "latest")
        assert InputDoc(
            ("kafka://a:9093,[::1]:9094/orders,returns",),
            "avro",
            stream=address,
            client=(
                ("sasl.password", "${P}"),
                ("security.protocol", "SASL_SSL"),
                ("socket.timeout.ms", "1000"),
                ("ssl.endpoint.check", "false"),
            ),
            registry=RegistryDoc("https://registry:8081/path", (("basic.auth.user.info", "me:${P}"), ("bearer.auth.token", "${P}"))),
        ) == (found.input)
        assert [
            OutputDoc(
                "kafka://b:9092/anonymous",
                "jsonl",
                stream=StreamAddress("kafka", "b:9092", ("anonymous",)),
                client=(("linger.ms", "0.5"),),
                key="id",
            ),
            OutputDoc(
                "kafka://b:9092/other",
                "avro",
                stream=StreamAddress("kafka", "b:9092", ("other",)),
                registry=RegistryDoc("http://registry:8081"),
            ),
        ] == [variant.output for variant in found.variants]
        assert ("state", Duration(5, "min"), Duration(2, "s")) == (found.checkpoint, found.roll, found.slice)
        assert (Duration(30, "s"), 1000, 2000) == (found.idle_after, found.max_slice_bytes, found.max_window_bytes)
        assert ("127.0.0.1:9464", StopWhen(Fraction(1, 20), 600_000_000)) == (found.metrics, found.stop_when_refused)
        assert (True, False) == (found.is_live, found.watch)

    def test_the_least_stream_has_defaults(self) -> None:
        found = stream("kafka://broker/orders")

        assert StreamAddress("kafka", "broker:9092", ("orders",), "eventveil-retail", "earliest") == found.stream
        assert ("jsonl", (), None) == (found.format, found.client, found.registry)

    @pytest.mark.parametrize("written", ["json", "jsonl"])
    def test_json_has_two_names(self, written: str) -> None:
        assert "jsonl" == stream("kafka://broker/orders", f", format: {written}, envelope: debezium").format

    @pytest.mark.parametrize(
        "address",
        [
            "kafka://",
            "kafka:///orders",
            "kafka://broker",
            "kafka://broker/",
            "kafka://broker/a/b",
            "kafka://broker/.",
            "kafka://broker/a,",
            "kafka://broker/a,a",
            "kafka://broker/^a.*",
            "kafka://broker/" + 250 * "a",
            "kafka://broker,/a",
            "kafka://bro ker/a",
            "kafka://broker:0/a",
            "kafka://broker:65536/a",
            "kafka://broker:x/a",
            "kafka://me@broker/a",
            "kafka://broker/a?",
            "kafka://broker/a?group=",
            "kafka://broker/a?group=a&group=b",
            "kafka://broker/a?start=now",
            "kafka://broker/a?acks=0",
            "kafka://broker/a#b",
        ],
    )
    def test_what_is_no_address_is_refused(self, address: str) -> None:
        assert ["EV103"] == [found.split()[1] for found in refused(f"{LIVE}input: {{uri: '{address}'}}\n")]

    def test_a_stream_stands_alone(self) -> None:
        assert "EV103" in refused(f"{LIVE}input: {{uri: [a, 'kafka://broker/orders']}}\n")[0]
        assert read(f"{LIVE}input: {{uri: ['kafka://broker/orders']}}\n").input == stream("kafka://broker/orders")

    @pytest.mark.parametrize("text", ["input: {uri: 'kafka://broker/orders'}\n", "watch: true\n"])
    def test_it_needs_a_checkpoint(self, text: str) -> None:
        assert ["EV104"] == [found.split()[1] for found in refused(text)]

    @pytest.mark.parametrize("entry", ["checkpoint: c", "slice: 1s", "idle_after: 1s", "max_slice_bytes: 1"])
    def test_what_is_for_streams_alone_is_not_ignored_with_files(self, entry: str) -> None:
        assert ["EV103"] == [found.split()[1] for found in refused(entry + "\n")]

    def test_files_that_are_read_once_may_be_rolled_too(self) -> None:
        assert (Duration(1, "h"), False) == (read("roll: 1h\n").roll, read("roll: 1h\n").is_live)

    def test_a_folder_is_watched(self) -> None:
        found = read(f"{LIVE}watch: true\nroll: 1h\n")

        assert (True, True, "state") == (found.watch, found.is_live, found.checkpoint)

    @pytest.mark.parametrize("key", ["enable.auto.commit", "group.id", "auto.offset.reset", "transactional.id", "bootstrap.servers"])
    @pytest.mark.parametrize("form", ["{}: x", "client: {{{}: x}}"])
    def test_settings_that_are_ours_are_refused(self, key: str, form: str) -> None:
        assert ["EV103"] == [found.split()[1] for found in refused(f"{LIVE}input: {{uri: 'kafka://b/t', {form.format(key)}}}\n")]

    @pytest.mark.parametrize(
        "more",
        ["a.b: [x]", "a.b: {c: d}", "'a b.c': x", "a.b: c, client: {a.b: c}", "client: x", "client: [x]", "registry: {url: x}"],
    )
    def test_settings_that_are_none_are_refused(self, more: str) -> None:
        assert ["EV103"] == [found.split()[1] for found in refused(f"{LIVE}input: {{uri: 'kafka://b/t', {more}}}\n")]

    def test_settings_beside_a_path_are_unknown(self) -> None:
        assert ["1 EV102 unknown entry 'sasl.username' in input"] == refused("input: {uri: a, sasl.username: me}\n")


class TestReferences:
    def test_a_setting_keeps_its_references(self, tmp_path: Path) -> None:
        (tmp_path / "secret").write_bytes(b"hunter2\n")
        text = f"input: {{uri: 'kafka://b/t', sasl.password: '${{P}}', ssl.key.password: '${{file:secret}}'}}\n{LIVE}"
        found = read(text, str(tmp_path / "job.yaml"), P="hunter1")

        assert b"hunter" not in pickle.dumps(found)
        assert ("hunter1", "hunter2") == tuple(fill_references(value, {"P": "hunter1"}) for _, value in found.input.client)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [("a", "a"), ("${A}", "1"), ("${A}:${B}", "1:${A}"), ("$${A}", "${A}"), ("$A}", "$A}")],
    )
    def test_they_are_filled_once(self, text: str, expected: str) -> None:
        assert expected == fill_references(text, {"A": "1", "B": "${A}"})

    @pytest.mark.parametrize("value", [b"a\nb\n", b"a\r\n", b"", "ä".encode()], ids=["lines", "windows", "empty", "unicode"])
    def test_a_file_loses_its_last_line_end_alone(self, value: bytes, tmp_path: Path) -> None:
        (tmp_path / "secret").write_bytes(value)

        assert value.decode().removesuffix("\n").removesuffix("\r") == fill_references(f"${{file:{tmp_path}/secret}}", {})

    @pytest.mark.parametrize(
        ("value", "code"), [("${NOT_SET}", "EV117"), ("${file:/no/such/file}", "EV115"), ("${", "EV103"), ("${a b}", "EV103")]
    )
    def test_what_cannot_be_filled_is_found_at_once(self, value: str, code: str) -> None:
        text = f"{LIVE}input: {{uri: 'kafka://b/t', ssl.ca.location: '{value}', client: {{ssl.certificate.location: '{value}'}}}}\n"

        assert [code, code] == [found.split()[1] for found in refused(text)]
        with pytest.raises(PolicyError, match=code):
            fill_references(value, {})

    @pytest.mark.parametrize("data", [b"\xff", b"a\0b", b"a" * 65_537], ids=["not UTF-8", "NUL", "large"])
    def test_a_file_that_is_no_secret_is_refused(self, data: bytes, tmp_path: Path) -> None:
        (tmp_path / "secret").write_bytes(data)
        with pytest.raises(PolicyError, match="EV115"):
            fill_references(f"${{file:{tmp_path}/secret}}", {})

    @pytest.mark.parametrize(
        ("setting", "is_refused"),
        [
            ("ssl.key.pem: x", True),
            ("sasl.password: '${P}'", False),
            ("sasl.password: '${file:/dev/null}'", False),
            ("registry: {url: 'http://r', basic.auth.user.info: 'me:hunter2'}", True),
            ("registry: {url: 'http://r', basic.auth.user.info: '${P}:${P}'}", False),
            ("registry: {url: 'http://me:hunter2@r'}", True),
            ("ssl.key.location: key.pem", False),
            ("sasl.oauthbearer.token.endpoint.url: 'http://x'", False),
        ],
    )
    def test_a_secret_in_clear_is_refused(self, setting: str, is_refused: bool) -> None:
        text = f"{LIVE}input: {{uri: 'kafka://b/t', format: avro, {setting}}}\n"
        if is_refused:
            assert any(" EV118 " in found for found in refused(text, P="p"))
        else:
            assert read(text, P="p").input.stream is not None

    def test_nor_does_it_stand_in_the_query(self) -> None:
        with pytest.raises(PolicyError) as caught:
            read(f"{LIVE}input: {{uri: 'kafka://b/t?sasl.password=hunter2'}}\n")

        assert {"EV103", "EV118"} == {found.code for found in caught.value.problems}
        assert "hunter2" not in str(caught.value)


class TestStopWhen:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("5%/10min", StopWhen(Fraction(1, 20), 600_000_000)),
            ("0.5%/1h", StopWhen(Fraction(1, 200), 3_600_000_000)),
            ("0%/1s", StopWhen(Fraction(0), 1_000_000)),
            ("never", StopWhen(Fraction(1), 0)),
        ],
    )
    def test_a_share_over_a_time(self, text: str, expected: StopWhen) -> None:
        assert expected == StopWhen.parse(text) == StopWhen.parse(str(expected))
        assert (text == "never") == expected.is_never

    @pytest.mark.parametrize("value", ["", "5%", "5/10min", "10min", "5%/1mo", "5%/0s", "101%/1s", "Never", 5, None, True])
    def test_nothing_else(self, value: object) -> None:
        with pytest.raises(ValueError, match="EV103"):
            StopWhen.parse(value)


class TestNotYet:
    @pytest.mark.parametrize(
        "text",
        [
            "input: {uri: 'delta://broker/topic', group.id: g, sasl.password: '${P}'}\n",
            "input: {uri: [a, 'iceberg:///warehouse/shop.orders']}\n",
            "input: {uri: 'gs://bucket/x'}\n",
            "variants: [{policy: p, output: {uri: 's3://bucket/x', region: r}}]\n",
            "dead_letters: {uri: 'gs://bucket/x', custodian: c}\n",
            "dead_letters: {uri: 'kafka://broker/refused', custodian: c}\n",
            "watch: true\ncheckpoint: 's3://bucket/state'\n",
        ],
    )
    def test_it_is_named_and_not_available(self, text: str) -> None:
        assert ["EV111"] == [found.split()[1] for found in refused(text, P="p")]


class TestWhereItRuns:
    FLINK = "runner: flink\nflink: {master: 'localhost:8081'}\n"
    TABLE = "input: {uri: 'pubsub://shop/orders'}\nvariants: [{policy: p, output: {uri: 'delta+gs://shop-veil/orders'}}]\n"
    CLOUD = "runner: dataflow\ndataflow: {project: shop, region: europe-west1, temp_location: 'gs://shop-veil/tmp'}\n"

    def test_the_entries_of_an_engine(self) -> None:
        entries = "worker_pool: 'pool:50000', job_server: jars, checkpointing: 5s, restarts: 3, options: ['--parallelism=4']"

        found = read(f"runner: flink\nflink: {{master: 'm:8081', {entries}}}\n").flink

        assert FlinkDoc("m:8081", "pool:50000", str(Path("jars").absolute()), None, Duration(5, "s"), 3, ("--parallelism=4",)) == found
        assert DataflowDoc("shop", "europe-west1", "gs://shop-veil/tmp") == read(self.CLOUD + self.TABLE).dataflow

    def test_what_is_said_beside_the_job_goes_first(self) -> None:
        where = {"runner": "flink", "flink": {"master": "other:1"}}

        found = parse_job(HEAD + INPUT + VARIANTS + "flink: {master: 'm:8081', restarts: 3}\nrunner: local\n", "job.yaml", {}, where)

        assert ("flink", FlinkDoc("other:1", restarts=3)) == (found.runner, found.flink)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("runner: flink\n", "EV104 the runner is flink, and nothing says where that is"),
            ("runner: dataflow\n", "EV104 the runner is dataflow, and nothing says where that is"),
            ("flink: {master: 'm:8081'}\n", "EV103 flink does not go with runner: local"),
            (FLINK + "part_bytes: 1000\n", "EV103 part_bytes is for the local runner, and this job runs on flink"),
            (FLINK + "watch: true\ncheckpoint: state\n", "EV103 watch is for the local runner, and this job runs on flink"),
        ],
    )
    def test_what_does_not_go_together(self, text: str, expected: str) -> None:
        (found,) = refused(text)

        assert expected == found.partition(" ")[2]

    @pytest.mark.parametrize("uri", ["out", "delta:///lake/orders", "iceberg:///lake/shop.orders"])
    def test_workers_of_dataflow_have_no_folder_that_lasts(self, uri: str) -> None:
        rest = "dead_letters: {uri: refused, custodian: c}\ncheckpoint: state\ninput: {uri: 'pubsub://shop/orders'}\n"
        found = refused(f"{self.CLOUD}{rest}variants: [{{policy: p, output: {{uri: '{uri}'}}}}]\n")

        assert ["dead_letters", "checkpoint", "variants[0].output.uri"] == [one.split()[2] for one in found]

    def test_nor_do_they_see_files_of_this_machine(self) -> None:
        (found,) = refused(self.CLOUD + self.TABLE.replace("pubsub://shop/orders", "orders.jsonl"))

        assert "EV103 input.uri is a folder or file, and workers of Dataflow see none of this machine" in found

    @pytest.mark.parametrize("master", ["localhost", "http://localhost:8081", "a b:1", "x:0", "x:70000"])
    def test_an_address_is_a_host_and_a_port(self, master: str) -> None:
        (found,) = refused(f"runner: flink\nflink: {{master: '{master}'}}\n")

        assert "EV103 flink.master" in found


class TestKafkaByJava:
    INPUT = "checkpoint: s\ninput: {uri: 'kafka+java://b:1/orders?group=g', expansion_service: 'localhost:8097', client: {x.y: 1}}\n"

    def test_is_read_on_an_engine(self) -> None:
        found = read(TestWhereItRuns.FLINK + self.INPUT).input

        assert StreamAddress("kafka+java", "b:1", ("orders",), "g") == found.stream
        assert ("localhost:8097", (("x.y", "1"),)) == (found.expansion_service, found.client)

    def test_and_not_on_this_machine(self) -> None:
        (found,) = refused(self.INPUT)

        assert "EV103 kafka+java:// is read by Java, on an engine, and this job runs on local" in found

    def test_it_is_not_written(self) -> None:
        (found,) = refused(TestWhereItRuns.FLINK + self.INPUT + "variants: [{policy: p, output: {uri: 'kafka+java://b:1/veiled'}}]\n")

        assert "kafka+java:// is for what is read" in found

    @pytest.mark.parametrize("setting", ["sasl.jaas.config: '${SECRET}'", "ssl.keystore.location: '${SECRET}'"])
    def test_what_would_stand_in_the_graph(self, setting: str) -> None:
        text = self.INPUT.replace("x.y: 1", setting)
        (found,) = refused(TestWhereItRuns.FLINK + text, SECRET="hidden")

        assert f"EV118 input.{setting.partition(':')[0]} would stand in the job's graph" in found
        assert "hidden" not in found

    def test_the_same_topic_is_not_written_by_another_name(self) -> None:
        (found,) = refused(TestWhereItRuns.FLINK + self.INPUT + "variants: [{policy: p, output: {uri: 'kafka://b:1/orders'}}]\n")

        assert "are one topic" in found

    def test_an_expansion_service_is_for_it_alone(self) -> None:
        (found,) = refused("checkpoint: s\ninput: {uri: 'kafka://b/orders', expansion_service: 'localhost:8097'}\n")

        assert "EV103 input.expansion_service is for kafka+java://" in found


class TestPubsub:
    def test_a_subscription_is_read_and_a_topic_written(self) -> None:
        output = "variants: [{policy: p, output: {uri: 'pubsub://shop/veiled', key: customer}}]\n"
        found = read(f"checkpoint: s\ninput: {{uri: 'pubsub://shop/orders-veil'}}\n{output}")

        assert (True, PubsubAddress("shop", "orders-veil"), "jsonl") == (found.is_live, found.input.stream, found.input.format)
        assert (PubsubAddress("shop", "veiled"), "pubsub://shop/veiled") == (found.variants[0].output.stream, found.variants[0].output.uri)

    @pytest.mark.parametrize(
        "uri", ["pubsub://shop", "pubsub:///orders", "pubsub://shop/goog-x", "pubsub://shop/a/b", "pubsub://shop/x?y=z"]
    )
    def test_anything_else_is_no_address(self, uri: str) -> None:
        (found,) = refused(f"checkpoint: s\ninput: {{uri: '{uri}'}}\n")

        assert "EV103 input.uri" in found

    def test_two_variants_do_not_share_a_topic(self) -> None:
        twice = "".join(f"- {{name: {name}, policy: p, output: {{uri: 'pubsub://shop/veiled'}}}}\n" for name in "ab")

        assert ["3 EV103 variants[1].output.uri and variants[0].output.uri are one topic"] == refused(f"variants:\n{twice}")


class TestTables:
    @pytest.mark.parametrize(
        ("uri", "expected"),
        [
            ("delta:///lake/orders", TableAddress("delta", "/lake/orders")),
            ("delta+s3://bucket/lake/orders", TableAddress("delta", "s3://bucket/lake/orders")),
            ("iceberg:///lake/shop.orders", TableAddress("iceberg", "/lake", "shop.orders")),
            ("iceberg+gs://bucket/lake/a.b.orders", TableAddress("iceberg", "gs://bucket/lake", "a.b.orders")),
            ("bigquery://shop-prod/sales/orders", TableAddress("bigquery", "shop-prod/sales", "orders")),
        ],
    )
    def test_an_address(self, uri: str, expected: TableAddress) -> None:
        (variant,) = read(f"variants: [{{policy: p, output: {{uri: '{uri}', evolve: true}}}}]\n").variants

        assert (expected, uri, True) == (variant.output.table, variant.output.uri, variant.output.evolve)

    @pytest.mark.parametrize(
        "uri", ["delta://lake", "delta:///", "delta+ftp://x/y", "iceberg:///lake", "iceberg:///x/orders", "bigquery://a/b"]
    )
    def test_anything_else_is_none(self, uri: str) -> None:
        (found,) = refused(f"variants: [{{policy: p, output: {{uri: '{uri}'}}}}]\n")

        assert "EV103 variants[0].output.uri" in found

    @pytest.mark.parametrize("entry", ["format: parquet", "compression: none", "key: customer", "registry: {url: 'http://r:1'}"])
    def test_what_is_not_for_tables(self, entry: str) -> None:
        (found,) = refused(f"variants: [{{policy: p, output: {{uri: 'delta:///lake/orders', {entry}}}}}]\n")

        assert f"EV103 variants[0].output.{entry.partition(':')[0]}" in found

    def test_a_stream_does_not_evolve_a_table(self) -> None:
        end = "variants: [{policy: p, output: {uri: 'delta:///lake/orders', evolve: true}}]\n"

        (found,) = refused(f"checkpoint: s\ninput: {{uri: 'kafka://b:1/orders'}}\n{end}")
        assert "EV103 variants[0].output.evolve is for files" in found

    def test_two_variants_do_not_share_a_table(self) -> None:
        twice = "".join(f"- {{name: {name}, policy: p, output: {{uri: 'iceberg:///lake/shop.orders'}}}}\n" for name in "ab")

        assert ["3 EV103 variants[1].output.uri and variants[0].output.uri are one table"] == refused(f"variants:\n{twice}")


class TestLimit:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (0, Limit(count=0)),
            (12, Limit(count=12)),
            ("12", Limit(count=12)),
            ("0%", Limit(share=Fraction(0))),
            ("5%", Limit(share=Fraction(1, 20))),
            ("0.1%", Limit(share=Fraction(1, 1000))),
            ("100%", Limit(share=Fraction(1))),
        ],
    )
    def test_a_count_or_a_share(self, value: object, expected: Limit) -> None:
        assert expected == Limit.parse(value)
        assert expected == Limit.parse(str(expected))

    @pytest.mark.parametrize("value", [-1, True, 0.05, None, "", "%", "-1%", "100.1%", "5 %", "1e2%", "0.5", "5%%", "٥%"])
    def test_nothing_else(self, value: object) -> None:
        with pytest.raises(ValueError, match="EV103"):
            Limit.parse(value)

    @pytest.mark.parametrize(
        ("text", "refused", "events", "expected"),
        [
            ("5%", 5, 100, False),
            ("5%", 6, 100, True),
            ("0.1%", 1, 1000, False),
            ("0.1%", 2, 1999, True),
            ("0%", 0, 0, False),
            ("0%", 1, 10, True),
            ("100%", 10, 10, False),
            ("3", 3, 10, False),
            ("3", 4, 10, True),
        ],
    )
    def test_it_is_passed_only_above_it(self, text: str, refused: int, events: int, expected: bool) -> None:
        assert expected == Limit.parse(text).is_passed(refused, events)


class TestDocument:
    def test_line_of(self) -> None:
        found = read("workers: 2\nvariants:\n- policy: p\n  output:\n    uri: o\n")

        assert [1, 3, 5, 0] == [
            found.line_of("workers"),
            found.line_of("variants", 0),
            found.line_of("variants", 0, "output", "uri"),
            found.line_of("variants", 1),
        ]

    def test_a_job_may_be_json(self) -> None:
        text = json.dumps({"job": "retail", "input": {"uri": "in.jsonl"}, "variants": [{"policy": "p.yaml", "output": {"uri": "out"}}]})

        assert read() == parse_job(text, "job.yaml", {})

    def test_a_job_survives_pickling(self) -> None:
        found = read("max_refused: 5%\n")

        assert found == pickle.loads(pickle.dumps(found))

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(PolicyError) as caught:
            load_job(tmp_path / "job.yaml")

        assert ["EV115"] == [found.code for found in caught.value.problems]


def test_the_published_schema_has_what_the_language_has_now() -> None:
    found = job_json_schema()

    assert ["job", "input", "variants"] == found["required"]
    assert set(vars(read())) - {"name", "file", "document"} | {"job"} == set(found["properties"])
