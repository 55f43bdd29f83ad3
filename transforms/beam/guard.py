"""What all our DoFns share. No exception of theirs may show a value: ours do not, and any other is told by its type and place alone."""

from __future__ import annotations

import copy
import functools
import inspect
import traceback
from collections.abc import Callable, Iterator
from types import FunctionType, MethodType
from typing import Any

import apache_beam as beam
from apache_beam.transforms.core import get_function_args_defaults

from eventveil.schemas.errors import EventveilError

__all__ = ["Step", "guarded", "internal_error", "take_failures"]

_failures: list[EventveilError] = []
_MOST_FAILURES = 64


class Step(beam.DoFn):
    """A DoFn of ours. Beam asks for the parameters of all its methods several times in every pass: a fifth of what a small one costs."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        of: Any = cls
        for name in dir(cls):
            if isinstance(getattr(cls, name, None), (FunctionType, MethodType)):
                # Under this name Beam looks for an answer before it inspects the method.
                setattr(cls, f"_inspect_{name}", staticmethod(functools.partial(_parameters, of, name)))


@functools.cache
def _parameters(cls: Any, name: str) -> tuple[list[str], list[Any]]:
    """Names and defaults of a method's parameters, as Beam would find them."""
    method = getattr(cls, name)
    if isinstance(method, FunctionType) and not isinstance(inspect.getattr_static(cls, name), staticmethod):
        method = MethodType(method, object())  # without its self
    found: tuple[list[str], list[Any]] = get_function_args_defaults(method)
    return found


def internal_error(error: BaseException) -> EventveilError:
    """A defect as an error without its text: a library's message may quote an event."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if "eventveil" in frame.filename or "/transforms/" in frame.filename
    ]
    last = frames[-1] if frames else None
    place = f" in {last.filename.rsplit('/', 1)[-1]}:{last.lineno}" if last else ""
    return EventveilError.of("EV901", f"{type(error).__name__}{place}", "its text is withheld, because it may quote an event")


def guarded(method: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Wrap a DoFn's generator method.

    Beam turns exceptions into text on their way to the launcher. An error is also noted here, so that a launcher in
    the same process can tell a full disk from a defect.
    """

    @functools.wraps(method)
    def wrapper(*args: Any, **kwargs: Any) -> Iterator[Any]:
        try:
            yield from method(*args, **kwargs) or ()
        except EventveilError as error:
            _note(error)
            raise
        except (GeneratorExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 - any text but ours may quote an event; and what Rust raises is no Exception
            hidden = internal_error(error)
        else:
            return
        _note(hidden)
        # Behind the handler, so that the other error does not hang on ours as its context.
        raise hidden

    # Beam would look the method's parameters up by names that the wrapper does not have; types are said where DoFns are used.
    del wrapper.__wrapped__
    wrapper.__annotations__ = {}
    return wrapper


def _note(error: EventveilError) -> None:
    """Keep the first few, for in a pipeline of others' nobody takes them; as copies, because a traceback holds on to a batch of events."""
    if len(_failures) < _MOST_FAILURES:
        _failures.append(copy.copy(error))


def take_failures() -> list[EventveilError]:
    """The first errors noted in this process since the last call."""
    found = list(_failures)
    _failures.clear()
    return found
