"""Anonymize for Beam YAML: rows with one message each in, rows with one anonymous event each out, as JSON."""

from __future__ import annotations

import apache_beam as beam

from eventveil.transforms.beam.messages import EVENTS, REFUSED, AnonymizeMessages


class Veil(beam.PTransform):
    """What Beam YAML can say: names of files alone.

    Takes rows with a field `message` (bytes or text), and gives rows with the field `event` (text, JSON). What the policy refuses is
    counted and lost unless `refused` names a place: then letters, sealed to the custodian, are written there as lines.

    Args:
        policy: path of the policy. keys: path of the keyring, or ``env:NAME``. custodian: path of the custodian's public key.
        refused: prefix of the files of letters.
    """

    def __init__(self, policy: str, keys: str, custodian: str | None = None, refused: str | None = None) -> None:
        super().__init__()
        if (custodian is None) != (refused is None):
            raise ValueError("custodian and refused belong together: without one of them refused events would be lost")
        self._anonymize = AnonymizeMessages(policy, keys, custodian, allow_loss=custodian is None)
        self._refused = refused

    def expand(self, rows: beam.PCollection) -> beam.PCollection:
        found = rows | "TakeMessages" >> beam.Map(message_of).with_output_types(bytes) | "Anonymize" >> self._anonymize
        if self._refused is not None:
            found[REFUSED] | "WriteLetters" >> beam.io.WriteToText(self._refused, ".jsonl", coder=beam.coders.BytesCoder())
        return found[EVENTS] | "GiveRows" >> beam.Map(row_of).with_output_types(_ROW)


def message_of(row: beam.Row) -> bytes:
    message = row.message
    return message.encode() if isinstance(message, str) else message


def row_of(event: bytes) -> beam.Row:
    return beam.Row(event=event.decode())


_ROW = beam.typehints.row_type.RowTypeConstraint.from_fields([("event", str)])
