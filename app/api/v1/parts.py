"""Parts of a message's content in OpenAI's chat format: text, images, audio, files. Checked here, and never fetched by us.

What is sent as data must be what it says it is. An address of an image is handed to the model's vendor as it came.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from msgspec import Meta, Struct

from app.api.v1.common import Text, check_storable, refuse
from app.core.errors import InvalidRequest

MAX_IMAGE_BYTES: Final = 20 << 20
MAX_FILE_BYTES: Final = 32 << 20
MAX_URL: Final = 4096
MAX_PARTS: Final = 256
_MAX_DATA: Final = 48 << 20
_IMAGES: Final = ("image/png", "image/jpeg", "image/gif", "image/webp")
_MAGIC: Final = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a")
_FILES: Final = ("application/pdf", "text/plain")
_DATA_URL = re.compile(r"data:([a-z0-9.+-]{1,64}/[a-z0-9.+-]{1,64});base64,", re.IGNORECASE)
_NOT_IN_URL = re.compile(r"[\x00-\x20\x7f\\\"<>]")

Data = Annotated[str, Meta(min_length=1, max_length=_MAX_DATA)]


class CacheControlBody(Struct, frozen=True, forbid_unknown_fields=True):
    """Anthropic's marker of the end of a prefix that is worth keeping; passed on to its models."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class PartBody(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", kw_only=True):
    """What all parts may carry."""

    cache_control: CacheControlBody | None = None
    prompt_cache_breakpoint: Any = None


class TextPart(PartBody, frozen=True, tag="text"):
    """Text."""

    text: Text


class RefusalPart(PartBody, frozen=True, tag="refusal"):
    """What the assistant said when it refused; it becomes text."""

    refusal: Text


class ImageUrlBody(Struct, frozen=True, forbid_unknown_fields=True):
    """``data:image/png;base64,…`` (PNG, JPEG, GIF, WebP, at most 20 MiB) or an http(s) address."""

    url: Data
    detail: Literal["auto", "low", "high", "original"] | None = None


class ImagePart(PartBody, frozen=True, tag="image_url"):
    """An image."""

    image_url: ImageUrlBody


class InputAudioBody(Struct, frozen=True, forbid_unknown_fields=True):
    """Base64."""

    data: Data
    format: Literal["wav", "mp3"]


class AudioPart(PartBody, frozen=True, tag="input_audio"):
    """Spoken input."""

    input_audio: InputAudioBody


class FileBody(Struct, frozen=True, forbid_unknown_fields=True):
    """A file as ``data:application/pdf;base64,…`` with its name. There is no store of uploaded files."""

    file_data: Data | None = None
    file_id: str | None = None
    filename: Annotated[str, Meta(min_length=1, max_length=255)] | None = None


class FilePart(PartBody, frozen=True, tag="file"):
    """A file."""

    file: FileBody


Part = TextPart | RefusalPart | ImagePart | AudioPart | FilePart


def content_of(content: str | Sequence[Part], *, field: str) -> str | list[dict[str, Any]]:
    """Content as `Message.content` holds it; one plain text alone becomes a string. Raises InvalidRequest."""
    if isinstance(content, str):
        return check_storable(content, field=field)
    parts = [_part(part, f"{field}[{index}]") for index, part in enumerate(content)]
    if not parts:
        raise InvalidRequest(f"{field} is empty.", field=field)
    if len(parts) == 1 and set(parts[0]) == {"type", "text"}:
        text: str = parts[0]["text"]
        return text
    return parts


def length_of(content: str | list[dict[str, Any]] | None) -> int:
    """Characters of the texts in ``content``."""
    if isinstance(content, list):
        return sum(len(part.get("text", "")) for part in content)
    return len(content or "")


def check_image_url(url: str, *, field: str) -> str:
    """``url`` itself: a data URL that holds an image, or an http(s) address. Raises InvalidRequest."""
    if url[:5].lower() == "data:":
        check_data_url(url, kinds=_IMAGES, limit=MAX_IMAGE_BYTES, field=field)
        return url
    if len(url) > MAX_URL or _NOT_IN_URL.search(url) or not _is_web_address(url):
        raise InvalidRequest(
            f"{field} must be an http(s) address of at most {MAX_URL} characters, or data:image/png;base64,… .", field=field
        )
    return url


def check_data_url(url: str, *, kinds: Sequence[str], limit: int, field: str) -> tuple[str, bytes]:
    """Media type and bytes of a base64 data URL. Raises InvalidRequest where it is none of ``kinds``, or too long."""
    found = _DATA_URL.match(url)
    if found is None:
        raise InvalidRequest(f"{field} must be a data URL of the form data:{kinds[0]};base64,… .", field=field)
    kind = found.group(1).lower()
    if kind not in kinds:
        raise InvalidRequest(f"{field} has a media type that is none of {', '.join(kinds)}.", field=field)
    return kind, check_base64(url[found.end() :], kind=kind, limit=limit, field=field)


def check_base64(text: str, *, kind: str, limit: int, field: str) -> bytes:
    """The bytes of ``text``; those of an image begin as one does. Raises InvalidRequest."""
    if len(text) > limit // 3 * 4 + 4:
        raise InvalidRequest(f"{field} holds more than {limit} bytes.", field=field)
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except (ValueError, binascii.Error):
        raise InvalidRequest(f"{field} is not valid base64.", field=field) from None
    if not data:
        raise InvalidRequest(f"{field} is empty.", field=field)
    if kind in _IMAGES and not data.startswith(_MAGIC) and not (data[:4] == b"RIFF" and data[8:12] == b"WEBP"):
        raise InvalidRequest(f"{field} holds no PNG, JPEG, GIF or WebP image.", field=field)
    return data


def _is_web_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None and parts.port != 0
    except ValueError:
        return False


def _part(part: Part, field: str) -> dict[str, Any]:
    wire = _plain(part, field)
    if part.cache_control is not None:
        marker = part.cache_control
        wire["cache_control"] = {"type": marker.type} if marker.ttl is None else {"type": marker.type, "ttl": marker.ttl}
    return wire


def _plain(part: Part, field: str) -> dict[str, Any]:
    match part:
        case TextPart():
            return {"type": "text", "text": check_storable(part.text, field=f"{field}.text")}
        case RefusalPart():
            return {"type": "text", "text": check_storable(part.refusal, field=f"{field}.refusal")}
        case ImagePart():
            image: dict[str, Any] = {"url": check_image_url(part.image_url.url, field=f"{field}.image_url.url")}
            if part.image_url.detail is not None:
                image["detail"] = part.image_url.detail
            return {"type": "image_url", "image_url": image}
        case AudioPart():
            audio = part.input_audio
            check_base64(audio.data, kind=audio.format, limit=MAX_FILE_BYTES, field=f"{field}.input_audio.data")
            return {"type": "input_audio", "input_audio": {"data": audio.data, "format": audio.format}}
        case FilePart():
            return {"type": "file", "file": _file(part.file, f"{field}.file")}


def _file(body: FileBody, field: str) -> dict[str, Any]:
    if body.file_id is not None:
        refuse(f"{field}.file_id", "There is no store of files; send file_data.")
    if body.file_data is None:
        raise InvalidRequest(f"Missing required parameter: '{field}.file_data'.", field=f"{field}.file_data")
    check_data_url(body.file_data, kinds=_FILES, limit=MAX_FILE_BYTES, field=f"{field}.file_data")
    wire = {"file_data": body.file_data}
    if body.filename is not None:
        wire["filename"] = check_storable(body.filename, field=f"{field}.filename")
    return wire
