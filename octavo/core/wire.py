"""Messages as bytes: msgpack, typed in both directions, nothing that could run code.

Who reads names what it expects; anything else is refused with MalformedMessage and has had no effect.
"""

from __future__ import annotations

from typing import TypeAlias, TypeVar

import msgspec

from octavo.core.messages import (
    Abort,
    CoreStatus,
    Failed,
    Goodbye,
    Heartbeat,
    Hello,
    LaunchCore,
    LaunchFrontend,
    Query,
    Ready,
    Reply,
    StepOutputs,
    Stop,
    Submit,
)

ToCore: TypeAlias = Hello | Submit | Abort | Query | Goodbye
ToFrontend: TypeAlias = StepOutputs | Reply
Control: TypeAlias = LaunchCore | LaunchFrontend | Ready | Failed | Stop | Heartbeat | CoreStatus

_T = TypeVar("_T")

_encoder = msgspec.msgpack.Encoder()
_to_core: msgspec.msgpack.Decoder[ToCore] = msgspec.msgpack.Decoder(ToCore)
_to_frontend: msgspec.msgpack.Decoder[ToFrontend] = msgspec.msgpack.Decoder(ToFrontend)
_control: msgspec.msgpack.Decoder[Control] = msgspec.msgpack.Decoder(Control)
_SUBMIT = Submit.__name__


class MalformedMessage(Exception):
    """Bytes that are no message of the kind expected. Says what is wrong with them."""


def encode(message: ToCore | ToFrontend | Control) -> bytes:
    return _encoder.encode(message)


def decode_to_core(data: bytes) -> ToCore:
    """Raises MalformedMessage, also for sampling parameters outside their limits."""
    return _decode(_to_core, data)


def decode_to_frontend(data: bytes) -> ToFrontend:
    """Raises MalformedMessage."""
    return _decode(_to_frontend, data)


def decode_control(data: bytes) -> Control:
    """Raises MalformedMessage."""
    return _decode(_control, data)


def submitted_id(data: bytes) -> str | None:
    """Whose Submit a malformed message was meant to be, as far as that can be read: somebody waits for an answer."""
    try:
        match msgspec.msgpack.decode(data):
            case [str(tag), str(request_id), *_] if tag == _SUBMIT:
                return request_id
    except (msgspec.MsgspecError, ValueError, RecursionError):
        pass
    return None


def _decode(decoder: msgspec.msgpack.Decoder[_T], data: bytes) -> _T:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:  # ValueError: text that is no UTF-8
        raise MalformedMessage(str(error)) from None
