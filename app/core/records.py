"""Rows of the database as frozen dataclasses: ``db`` makes them, ``security``, ``models`` and ``api`` read them.

Times are timezone-aware UTC datetimes; ids are UUIDv7 text; hashes are SHA-256 in hex.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from app.core.types import Role, Scope

Rating = Literal["up", "down"]
PredictionStatus = Literal["ok", "cancelled", "error"]
ReviewStatus = Literal["pending", "approved", "rejected"]
Rotation = Literal["rotated", "repeat", "reused", "gone"]
"""What became of a refresh token that was presented; see `SessionRecord`."""


class Unset(enum.Enum):
    """The type of `UNSET`: "leave it as it is", where None is a value of its own."""

    UNSET = "unset"


UNSET = Unset.UNSET


@dataclass(frozen=True, slots=True)
class UserRecord:
    id: str
    username: str
    role: Role
    password_hash: str = field(repr=False)
    created_at: datetime
    disabled_at: datetime | None = None
    last_login_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class InviteRecord:
    """``token_hash``: the token itself is shown once and not stored."""

    id: str
    token_hash: str = field(repr=False)
    role: Role
    created_by: str | None
    created_at: datetime
    expires_at: datetime
    used_at: datetime | None = None
    used_by: str | None = None


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A login and its family of refresh tokens. Only the newest token is good; an older one shown again ends the family."""

    id: str
    user_id: str
    created_at: datetime
    last_seen_at: datetime
    expires_at: datetime
    refresh_hash: str = field(repr=False)
    previous_refresh_hash: str | None = field(default=None, repr=False)
    rotated_at: datetime | None = None
    revoked_at: datetime | None = None
    user_agent: str = ""
    address: str = ""


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """An API key. ``prefix``: its first characters, to tell keys apart in a list."""

    id: str
    user_id: str
    name: str
    prefix: str
    key_hash: str = field(repr=False)
    scopes: tuple[Scope, ...]
    created_at: datetime
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
    revoked_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class PredictionRecord:
    """One answered call. ``input``: ``{"messages": [...], "sampling": {...}}``, structured, before templating; with ``raw`` or
    ``door`` where the request had them, and ``examples``: ids of the feedback that was shown with it.

    ``fallback``: slug of the error for which another target than the first one answered, or None. ``cost_nanousd``: the
    price in billionths of a US dollar; None: no price is known. ``reasoning``: the model's visible thinking.

    Durations in milliseconds: ``queue_ms`` waiting for a slot, ``first_token_ms`` and ``total_ms`` from the call's start.
    """

    id: str
    user_id: str
    created_at: datetime
    provider: str
    model: str
    version: str
    input: Mapping[str, Any]
    output: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    queue_ms: float
    first_token_ms: float | None
    total_ms: float
    status: PredictionStatus = "ok"
    error: str | None = None
    cached: bool = False
    key_id: str | None = None
    conversation_id: str | None = None
    request_id: str = ""
    alias: str | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    cached_tokens: int = 0
    cost_nanousd: int | None = None
    fallback: str | None = None
    reasoning: str = ""


UsageGroup = Literal["model", "key", "user", "day"]


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """Sums over predictions. ``name``: what they have in common, see `UsageGroup`; None: made without a key."""

    name: str | None
    requests: int
    cached: int
    errors: int
    prompt_tokens: int
    completion_tokens: int
    cost_nanousd: int


@dataclass(frozen=True, slots=True)
class FeedbackRecord:
    """One feedback. ``rater``: a user's id, or ``token:<prediction id>`` for a vote cast with a feedback token.

    ``superseded_at`` is set on all but the newest of one rater on one prediction.
    ``checksum``: SHA-256 over the content, checked on read.
    """

    id: str
    prediction_id: str
    rater: str
    created_at: datetime
    user_id: str | None = None
    rating: Rating | None = None
    correction: str | None = None
    preferred_over: str | None = None
    comment: str | None = None
    tags: tuple[str, ...] = ()
    review: ReviewStatus = "pending"
    superseded_at: datetime | None = None
    idempotency_key: str | None = None
    checksum: str = ""
    edited: str | None = None
    """The correction as its reviewer put it; stands in its place for training and as an example."""
    reviewed_at: datetime | None = None
    reviewed_by: str | None = None
    review_checksum: str = ""
    """SHA-256 over id, review, edited, reviewed_by and reviewed_at, checked on read; empty before a review."""


@dataclass(frozen=True, slots=True)
class ConversationRecord:
    """A thread of predictions: its turns are the predictions that carry its id."""

    id: str
    user_id: str
    title: str
    created_at: datetime
    updated_at: datetime
    summary: str | None = None
    """What the turns up to ``summary_until`` were about; None: nothing is summarised."""
    summary_until: str | None = None
    """Id of the newest prediction that ``summary`` covers."""


DocumentState = Literal["storing", "queued", "indexing", "ready", "failed"]
"""``storing``: its bytes are still being written; nobody is shown such a one."""


@dataclass(frozen=True, slots=True)
class DocumentRecord:
    """An uploaded document. Its bytes lie in pieces beside it (`app.db.documents`), its text in chunks.

    ``format``: ``txt``, ``md``, ``html``, ``pdf``, ``docx`` or ``csv``, told by what is in the file. ``sha256``: of the file.
    ``progress``: 0 to 1. ``space``: which embedder made the vectors of its chunks; None: none did. ``error``: why it failed, in
    words for its owner. ``claimed_until``: whoever indexes it says that it lives; later than that, somebody else may.
    """

    id: str
    user_id: str
    collection: str
    name: str
    format: str
    bytes: int
    sha256: str
    state: DocumentState
    created_at: datetime
    updated_at: datetime
    progress: float = 0.0
    chunks: int = 0
    characters: int = 0
    space: str | None = None
    error: str | None = None
    claimed_until: datetime | None = None
    notes: tuple[str, ...] = ()
    """What did not come out of the file whole: pages without text, say."""


@dataclass(frozen=True, slots=True)
class ChunkRecord:
    """A piece of a document's text, as it is searched and cited.

    ``words``: the text folded for search by words (`app.memory.words`). ``place``: where in the source, see
    `app.core.types.Passage`. ``vector``: 32-bit little-endian floats of length 1, made by the embedder ``space``
    (``name@version/dimensions``) of ``content_hash``'s text; both None until it is embedded.
    """

    id: str
    document_id: str
    user_id: str
    collection: str
    position: int
    text: str
    words: str
    place: Mapping[str, Any]
    content_hash: str
    space: str | None = None
    vector: bytes | None = field(default=None, repr=False)


FactState = Literal["proposed", "kept"]


@dataclass(frozen=True, slots=True)
class FactRecord:
    """Something that a user said of themselves. Only what is ``kept``, with the user's consent, is ever recalled.

    ``prediction_id``: the answer to the message in which it was said; None: written by the user. ``vector``, ``space``,
    ``content_hash``: as in `ChunkRecord`.
    """

    id: str
    user_id: str
    text: str
    state: FactState
    created_at: datetime
    updated_at: datetime
    content_hash: str
    prediction_id: str | None = None
    recalled_at: datetime | None = None
    space: str | None = None
    vector: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """A version that has been loaded here at least once; fields as in `app.core.types.VersionInfo`."""

    id: str
    provider: str
    model: str
    base_hash: str | None
    adapter_hash: str | None
    template_hash: str | None
    created_at: datetime
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AliasRecord:
    """Where an alias points. ``configured``: the ``provider/model`` that the configuration named when the alias was moved.

    A restart follows the alias only while the configuration still says the same: the database never overrides a setting.
    ``previous``: what it pointed at before, for rollback.
    """

    name: str
    provider: str
    model: str
    device: str
    version: str
    configured: str
    moved_at: datetime
    moved_by: str | None = None
    adapter: str | None = None
    previous: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One line of the audit log: who did what to what. ``checksum``: SHA-256 over the line, checked on read."""

    id: str
    at: datetime
    actor: str | None
    action: str
    target: str
    details: Mapping[str, Any] = field(default_factory=dict)
    request_id: str = ""
    address: str = ""
    checksum: str = ""


RunState = Literal["queued", "running", "succeeded", "failed", "cancelled"]
RunPhase = Literal["waiting", "snapshot", "prepare", "train", "export", "gate", "promote", "done"]
PromotePolicy = Literal["never", "if_passed"]
SplitName = Literal["train", "heldout", "quarantined", "folded"]
RowKind = Literal["sft", "dpo", "kto"]
CanaryState = Literal["running", "promoted", "rolled_back", "stopped"]


@dataclass(frozen=True, slots=True)
class SnapshotRecord:
    """A frozen dataset. Its rows lie in ``<data>/snapshots/<id>``; ``digest``: SHA-256 over rows, rules and seed.

    ``config``: the rules as asked; ``report``: counts, what is missing, what was quarantined and why, what a scan found.
    ``erased_at``: its files are gone, because a person's data was in them.
    """

    id: str
    created_at: datetime
    created_by: str | None
    digest: str
    source: str
    config: Mapping[str, Any]
    report: Mapping[str, Any]
    erased_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class SnapshotRowRecord:
    """One row of a snapshot: where it came from and on which side of the split it stands.

    ``user_id``: whose data it is (who asked); ``rater``: who judged; ``group``: hash of the prompt's group, equal over
    snapshots; ``reason``: why it was set aside.
    """

    snapshot_id: str
    position: int
    split: SplitName
    kind: RowKind
    group: str
    weight: float
    feedback_id: str | None = None
    prediction_id: str | None = None
    user_id: str | None = None
    rater: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One training run. Its files lie in ``<data>/runs/<id>``, its adapter in ``<data>/adapters/<id>``: the id is its name.

    ``config``: see `app.training.config.TrainConfig`; ``base``: what is trained and what it is judged against; ``progress``: of
    the phase, as last heard; ``gate``: the gate report without any text of users; ``retired_at``: may never serve (again).
    """

    id: str
    created_at: datetime
    created_by: str | None
    state: RunState
    phase: RunPhase
    method: str
    promote: PromotePolicy
    config: Mapping[str, Any]
    base: Mapping[str, Any] = field(default_factory=dict)
    progress: Mapping[str, Any] = field(default_factory=dict)
    snapshot_id: str | None = None
    version: str | None = None
    adapter_hash: str | None = None
    gate: Mapping[str, Any] | None = None
    error: str | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    retired_at: datetime | None = None
    retired_reason: str | None = None


@dataclass(frozen=True, slots=True)
class GateAttemptRecord:
    """That a run was judged on held-out feedback: what repeated tries on the same feedback cost. ``groups``: of its rows."""

    id: str
    at: datetime
    run_id: str
    groups: tuple[str, ...]
    alpha: float
    p_value: float
    passed: bool


@dataclass(frozen=True, slots=True)
class CanaryRecord:
    """A version on trial with a share of the sessions. ``counts``: ratings of both sides as last judged."""

    id: str
    alias: str
    version: str
    control_version: str
    share: float
    state: CanaryState
    started_at: datetime
    started_by: str | None = None
    run_id: str | None = None
    ended_at: datetime | None = None
    reason: str | None = None
    counts: Mapping[str, Any] = field(default_factory=dict)
