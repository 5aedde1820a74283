"""What the requests of a file have in common, as keys for the prefix cache.

From chained hashes of blocks of the prompt (Mooncake, Bailian), or from conversations:
a turn whose prompt is at least as long as the turn before with its answer repeats both;
one that is shorter, but not than the prompt before, repeats that prompt; any other
starts a conversation. Hashes do not cover answers, so a later turn finds none of
them: the result is a lower bound. Of a log that has neither, but whose usage reports
cached tokens, the counts are taken as they are.
"""

import itertools
from collections.abc import Hashable, Sequence

from extproc.fleet.prefix_cache import Prefix
from extproc.fleet.workload import Recorded, Workload

#: What a prompt is, in order of its request; None for one that is like no other.
Prefixes = tuple[Prefix | None, ...]


def find_prefixes(workload: Workload) -> Prefixes | None:
    """Keys of every request of a file; None if it says nothing of them."""
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
    """Keys of prompts by their blocks' hashes; hashes that never part are one key."""
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
    """Keys of the turns of conversations, in order of their arrival."""
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
            # Less than the whole prompt before is another text.
            if repeated >= len(said.ends) - 1:
                keys, ends = said.keys[:repeated], said.ends[:repeated]
        if prompt > (ends[-1] if ends else 0):
            keys, ends = (*keys, (turn, "prompt")), (*ends, prompt)
        keys, ends = (*keys, (turn, "answer")), (*ends, prompt + output)
        last[session] = Prefix(keys, ends)
        prefixes.append(last[session])
    return tuple(prefixes)


def from_counts(cached: Sequence[int]) -> Prefixes | None:
    """What usage reports as found, by its count alone; None if nothing ever was."""
    if not any(cached):
        return None
    return tuple(Prefix((), (), count) if count else None for count in cached)


def are_counts(prefixes: Prefixes) -> bool:
    """Whether only counts are known, and not what requests have in common."""
    return not any(prefix is not None and prefix.keys for prefix in prefixes)


def hit_share(
    prefixes: Prefixes,
    prompts: Sequence[int],
    classes: Sequence[int] | None = None,
    block_size: int = 16,
) -> float:
    """Share of prompt tokens found in a cache that forgets nothing.

    Full blocks count, and the last token of a prompt never does.

    Args:
        classes: requests of different classes find nothing of each other's.
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
