"""pseudonymize: a keyed stand-in, equal for equal values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import AfterValidator, Field, model_validator

from eventveil.transforms.context import Context
from eventveil.transforms.keys.canonical import canonical, canonical_tag
from eventveil.transforms.keys.prf import LONGEST, Prf, pseudonym_bytes, pseudonym_texts
from eventveil.transforms.operators._class_name import ClassName, printable
from eventveil.transforms.registry import Operator, Setting, operator

__all__ = ["Pseudonymize"]


@operator("pseudonymize")
class Pseudonymize(Operator):
    """Replace a value by a keyed hash of it, as text or bytes.

    Pseudonymous, never anonymous: equal values of one class can be recognised within a key window (under `stable` in
    the whole domain), and how often each occurs. Not reversible, but whoever holds the key can test a guess. Joins across fields
    and event types that name the same class, never across domains. Null stays null; empty text has a pseudonym like any other.

    Args:
        class: whose identifier it is; values of one class, domain and window share their pseudonyms. Default: the leaf's path.
        bits: length of the pseudonym, 80 to 256, a multiple of 8; at most 128 under ``aes-cmac``.
        prefix: text before it, up to 32 printable characters.
        prf: ``blake2b``, ``hmac-sha256`` (where FIPS is asked for) or ``aes-cmac`` (cheapest; whoever holds the key can
            invert a value of at most 16 bytes without guessing).
        stable: ``domain`` for classes of things: one pseudonym until the root is rotated, instead of one per key window.
        as: ``text`` (lower-case base32 without padding, RFC 4648) or ``binary``.

    Source: BLAKE2 (RFC 7693), HMAC (RFC 2104), AES-CMAC (RFC 4493).

    Example (keyed):
        {pseudonymize: {class: customer, prefix: c-}}: "ann@example.org" -> "c-" and 26 characters
    """

    purpose = "pseudonym"

    class_: ClassName | None = Field(default=None, alias="class")
    bits: int = Field(default=128, ge=80, le=256, multiple_of=8)
    prefix: Annotated[str, Field(max_length=32), AfterValidator(printable)] = ""
    prf: Prf = "blake2b"
    stable: Literal["domain"] | None = None
    as_: Literal["text", "binary"] = Field(default="text", alias="as")

    @model_validator(mode="after")
    def _fits_together(self) -> Pseudonymize:
        if self.bits > 8 * LONGEST[self.prf]:
            raise ValueError(f"EV103 {self.prf} gives at most {8 * LONGEST[self.prf]} bits")
        if self.prefix and self.as_ == "binary":
            raise ValueError("EV103 a prefix is for text: remove it, or `as: binary`")
        return self

    def returns(self, given: pa.DataType) -> pa.DataType | None:
        try:
            tag = canonical_tag(given)
        except TypeError:
            return None
        # A stand-in for one of two values hides nothing: whoever counts them knows which is which.
        return None if tag == "b" else pa.string() if self.as_ == "text" else pa.binary()

    def settle(self, setting: Setting) -> Operator:
        return self if self.class_ is not None else self.model_copy(update={"class_": setting.path})

    def key_scope(self) -> Literal["window", "domain"]:
        return "domain" if self.stable else "window"

    def key_info(self, path: str, position: int, given: pa.DataType) -> tuple[str, ...]:
        # Neither path nor position: fields that name one class share their pseudonyms.
        return ("class", self.class_ or path, canonical_tag(given), self.prf)

    def discloses(self) -> str:
        reach = "the domain, until its root is rotated," if self.stable else "a key window"
        return f"pseudonymous: equal values within {reach} can be recognised"

    def warnings(self, setting: Setting) -> Sequence[str]:
        found = []
        if self.prf == "aes-cmac":
            found.append("under aes-cmac whoever holds the key reads values of at most 16 bytes without guessing: let keys die soon")
        if pa.types.is_floating(setting.given):
            found.append("floats are poor identifiers: the same number, computed in two ways, may differ in its last bit")
        return found

    def apply(self, values: pa.Array[Any], context: Context) -> pa.Array[Any]:
        keys, codes = context.keys()
        forms: Any = canonical(values)
        if not forms.null_count:
            return self._stand_ins(keys, codes, forms)
        there = forms.is_valid().to_numpy(zero_copy_only=False)
        made: Any = self._stand_ins(keys, None if codes is None else codes[there], forms.drop_null())
        spread: pa.Array[Any] = made.take(pa.array(np.cumsum(there) - 1, mask=~there))
        return spread

    def _stand_ins(self, keys: Sequence[bytes], codes: Any, forms: Any) -> pa.Array[Any]:
        if self.as_ == "binary":
            return pseudonym_bytes(self.prf, keys, codes, forms, self.bits // 8)
        return pseudonym_texts(self.prf, keys, codes, forms, self.bits // 8, self.prefix)
