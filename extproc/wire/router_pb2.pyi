from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DecideRequest(_message.Message):
    __slots__ = ("path", "body", "features", "content_encoding", "category_hint", "model")
    PATH_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    CONTENT_ENCODING_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_HINT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    path: str
    body: bytes
    features: Features
    content_encoding: str
    category_hint: str
    model: str
    def __init__(self, path: _Optional[str] = ..., body: _Optional[bytes] = ..., features: _Optional[_Union[Features, _Mapping]] = ..., content_encoding: _Optional[str] = ..., category_hint: _Optional[str] = ..., model: _Optional[str] = ...) -> None: ...

class Features(_message.Message):
    __slots__ = ("model", "text_bytes", "text_sample", "messages", "images", "audios", "files", "prompt_tokens", "max_tokens")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TEXT_BYTES_FIELD_NUMBER: _ClassVar[int]
    TEXT_SAMPLE_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    AUDIOS_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    model: str
    text_bytes: int
    text_sample: bytes
    messages: int
    images: int
    audios: int
    files: int
    prompt_tokens: int
    max_tokens: int
    def __init__(self, model: _Optional[str] = ..., text_bytes: _Optional[int] = ..., text_sample: _Optional[bytes] = ..., messages: _Optional[int] = ..., images: _Optional[int] = ..., audios: _Optional[int] = ..., files: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., max_tokens: _Optional[int] = ...) -> None: ...

class DecideResponse(_message.Message):
    __slots__ = ("pool", "reason", "category", "prompt_tokens", "bound_tokens", "output_tokens", "budget_tokens", "decision", "model")
    POOL_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BOUND_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BUDGET_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    pool: str
    reason: str
    category: str
    prompt_tokens: int
    bound_tokens: int
    output_tokens: int
    budget_tokens: int
    decision: bytes
    model: str
    def __init__(self, pool: _Optional[str] = ..., reason: _Optional[str] = ..., category: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., bound_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., budget_tokens: _Optional[int] = ..., decision: _Optional[bytes] = ..., model: _Optional[str] = ...) -> None: ...

class ObserveRequest(_message.Message):
    __slots__ = ("decision", "status", "prompt_tokens", "completion_tokens", "truncated", "attempts")
    DECISION_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    decision: bytes
    status: int
    prompt_tokens: int
    completion_tokens: int
    truncated: bool
    attempts: int
    def __init__(self, decision: _Optional[bytes] = ..., status: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., truncated: bool = ..., attempts: _Optional[int] = ...) -> None: ...

class ObserveResponse(_message.Message):
    __slots__ = ("skipped", "misroute")
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    MISROUTE_FIELD_NUMBER: _ClassVar[int]
    skipped: str
    misroute: str
    def __init__(self, skipped: _Optional[str] = ..., misroute: _Optional[str] = ...) -> None: ...
