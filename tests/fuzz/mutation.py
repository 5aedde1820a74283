"""Random variants of known inputs, without coverage guidance."""

import random
from collections.abc import Sequence

WORDS = (
    *(b'"', b"{", b"}", b"[", b"]", b":", b",", b"\\", b"\\u", b"\\ud800", b"\\n"),
    *(b"null", b"true", b"-1", b"1e999", b"9" * 30, b"\xff", b"\xed\xa0\x80", b"\0"),
    *(b"data:", b"data: ", b"\n\n", b"\r\n\r\n", b"\r", b"[DONE]", b"event: "),
    *(b'"usage":', b'"prompt_tokens":', b'"messages":', b'"content":', b'"tools":'),
    *(b'"max_tokens":', b'"model":', b'"stream":true', b'"finish_reason":"length"'),
    *(b'"stream_options":', b'"input":', b'"prompt":', b'"response":', b'"image_url"'),
    *(b"\x1f\x8b\x08\0", b"\x28\xb5\x2f\xfd", b"\x78\x9c"),
    *(b"vllm:num_requests_waiting ", b"{", b"} ", b"NaN", b"+Inf"),
    *(b"\0\0\0\4\0\0\0\0\0", b"\0\0\x08\6\0\0\0\0\0" + bytes(8)),
)
MAX_BYTES = 1 << 16


def mutate(random_: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Return a variant of one of the seeds."""
    data = bytearray(random_.choice(seeds))
    for _ in range(1 + int(random_.expovariate(0.4))):
        at = random_.randrange(len(data) + 1)
        match random_.randrange(8):
            case 0:
                data[at:at] = random_.choice(WORDS)
            case 1:
                data[at : at + random_.choice((1, 2, 8, 64))] = b""
            case 2 if data:
                data[at % len(data)] ^= 1 << random_.randrange(8)
            case 3 if data:
                data[at % len(data)] = random_.randrange(256)
            case 4:
                other = random_.choice(seeds)
                begin = random_.randrange(len(other) + 1)
                data[at:] = other[begin:]
            case 5:
                piece = bytes(data[at : at + random_.choice((1, 4, 30, 200))])
                data[at:at] = piece * random_.choice((1, 2, 10, 100))
            case 6:
                data[at:at] = random_.randbytes(random_.choice((1, 4, 16)))
            case _:
                data[at:at] = random_.choice(WORDS) * random_.choice((1, 20, 500))
    return bytes(data[:MAX_BYTES])
