"""`eventveil dead-letters`: what was refused and why, without showing it; and opened, byte for byte, by who may."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from eventveil.pipeline.testing import run_job  # noqa: F401 - Beam is imported once, here
from eventveil.transforms.batch import refused_batch
from eventveil.transforms.keys.custodian import load_public, new_custodian
from eventveil.transforms.keys.keyring import load_keys
from eventveil.transforms.keys.providers.keyring_file import new_keyring
from eventveil.transforms.seal import Sealer

Run = Callable[..., "subprocess.CompletedProcess[str]"]

ESCAPES = "\x1b[31mred\x1b[0m \x9b2J \u202etxt.exe"
