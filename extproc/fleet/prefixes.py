"""Shared prefixes of the requests of a file, as keys for the prefix cache.

The keys come from chained hashes of prompt blocks (Mooncake, Bailian) or from
conversations. If a turn's prompt is at least as long as the previous prompt and answer
together, it is taken to repeat both. If it is shorter, but at least as long as the
previous prompt, it repeats only that prompt. Any other turn starts a new conversation.
Hashes do not cover answers, so later turns do not find cached answers, and the result
is a lower bound. If a log has neither hashes nor conversations, the cached tokens that
its usage reports are used unchanged.
"""

import itertools
from collections.abc import Hashable, Sequence

from extproc.fleet.prefix_cache import Prefix
from extproc.fleet.workload import Recorded, Workload

#: The prefix of each request, in order; None for a request without a shared prefix.
Prefixes = tuple[Prefix | None, ...]


def find_prefixes(workload: Workload) -> Prefixes | None:
    """Return the keys of every request of a file, or None if the file has none."""
    if not isinstance(workload.lengths, Recorded):
        return None
    prompts = workload.lengths.prompts.tolist()
    if workload.hash_ids is not None and workload.hash_block_tokens is not None:
        return from_hashes(workload.hash_ids, workload.hash_block_tokens, prompts)
    if workload.sessions is not None:
        return from_sessions(
            workload.sessions, prompts, workload.lengths.outputs.tolist()
        )
    if workload.cached_tokens is not None:
        return from_counts(workload.cached_tokens.tolist())
    return None


def from_hashes(
    hash_ids: Sequence[Sequence[int]], block_tokens: int, prompts: Sequence[int]
) -> Prefixes:
    """Return keys from block hashes; hashes that always occur together share a key."""
    full = [
        ids[: prompt // block_tokens]
        for ids, prompt in zip(hash_ids, prompts, strict=True)
    ]
    following: dict[int, int] = {}
    parting = {ids[-1] for ids in full if ids}
    for ids in full:
        for here, after in itertools.pairwise(ids):
            if following.setdefault(here, after) != after:
                parting.add(here)
    prefixes: list[Prefix | None] = []
    for ids in full:
        places = [place for place, key in enumerate(ids) if key in parting]
        prefixes.append(
            Prefix(
                tuple(ids[place] for place in places),
                tuple((place + 1) * block_tokens for place in places),
            )
            if ids
            else None
        )
    return tuple(prefixes)


def from_sessions(
    sessions: Sequence[str | None], prompts: Sequence[int], outputs: Sequence[int]
) -> Prefixes:
    """Return keys for the turns of conversations, in order of arrival."""
    last: dict[str, Prefix] = {}
    prefixes: list[Prefix | None] = []
    for turn, (session, prompt, output) in enumerate(
        zip(sessions, prompts, outputs, strict=True)
    ):
        if session is None:
            prefixes.append(None)
            continue
        keys: tuple[Hashable, ...] = ()
        ends: tuple[int, ...] = ()
        said = last.get(session)
        if said is not None:
            repeated = sum(end <= prompt for end in said.ends)
            # A prompt that is shorter than the previous one is a different text.
            if repeated >= len(said.ends) - 1:
                keys, ends = said.keys[:repeated], said.ends[:repeated]
        if prompt > (ends[-1] if ends else 0):
            keys, ends = (*keys, (turn, "prompt")), (*ends, prompt)
        keys, ends = (*keys, (turn, "answer")), (*ends, prompt + output)
        last[session] = Prefix(keys, ends)
        prefixes.append(last[session])
    return tuple(prefixes)


def from_counts(cached: Sequence[int]) -> Prefixes | None:
    """Return prefixes from reported counts of cached tokens; None if all are zero."""
    if not any(cached):
        return None
    return tuple(Prefix((), (), count) if count else None for count in cached)


def are_counts(prefixes: Prefixes) -> bool:
    """Return whether only counts of cached tokens are known, not shared prefixes."""
    return not any(prefix is not None and prefix.keys for prefix in prefixes)


def hit_share(
    prefixes: Prefixes,
    prompts: Sequence[int],
    classes: Sequence[int] | None = None,
    block_size: int = 16,
) -> float:
    """Return the share of prompt tokens found in a cache of unlimited size.

    Only full blocks are counted, and never the last token of a prompt.

    Args:
        classes: class of each request; requests of different classes share nothing.
    """
    cached: set[tuple[int, Hashable]] = set()
    found = 0
    for row, (prefix, prompt) in enumerate(zip(prefixes, prompts, strict=True)):
        if prefix is None:
            continue
        group = classes[row] if classes is not None else 0
        reached = prefix.reported
        for key, end in zip(prefix.keys, prefix.ends, strict=True):
            if (group, key) not in cached:
                break
            reached = end
        found += min(reached, prompt - 1) // block_size * block_size
        cached.update((group, key) for key in prefix.keys)
    total = sum(prompts)
    return found / total if total else 0.0
