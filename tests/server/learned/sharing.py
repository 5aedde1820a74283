"""Processes that learn, and an in-memory store that these processes share."""

import asyncio

import numpy as np

from extproc.routing.mergeable import DecayedSums
from extproc.server.learned.store import StoreError, UnreadableDocument
from extproc.server.learned.sync import StateKeeper

KEEP = 0.75


class Mergeable:
    """A decayed sum of observations, with the number of observations."""

    def __init__(self, component="sums.1"):
        self.component = component
        self.groups = {}
        self.moved = 0

    def teach(self, value, key="key"):
        group = self.groups.get(key, DecayedSums(KEEP, 0, np.zeros(1)))
        sums = KEEP * group.sums + value
        self.groups[key] = DecayedSums(KEEP, group.observations + 1, sums)

    def group_keys(self):
        return list(self.groups)

    def group(self, key):
        self.moved += 1
        return self.groups.get(key)

    def restore(self, groups):
        self.groups |= groups

    def counts(self):
        return {key: group.observations for key, group in self.groups.items()}


class MemoryStore:
    """A store that keeps the document in memory, and fails on request."""

    def __init__(self):
        self.document = None
        self.failing = None
        self.written = 0
        self.meanwhile = lambda: None

    def update(self, change):
        self.meanwhile()
        if self.failing == "away":
            raise StoreError("away")
        try:
            changed = change(self.document)
        except UnreadableDocument:
            changed = change(None)
        if self.failing == "refuses to write":
            raise StoreError("read-only")
        if changed is not None:
            self.document = changed
            self.written += 1
        if self.failing == "answer lost":
            raise StoreError("the connection broke after the write")


class Process:
    """A learner and the keeper of its state."""

    def __init__(self, store):
        self.learner = Mergeable()
        self.brought = []
        """Learners that a later configuration adds."""
        self.results = []
        self.keeper = StateKeeper(
            lambda: [self.learner, *self.brought],
            store,
            1.0,
            self.results.append,
            wait_s=0.2,
        )

    def sync(self):
        asyncio.run(self.keeper.sync())

    @property
    def sum(self):
        return float(self.learner.groups["key"].sums[0])


def in_turn(*values):
    learner = Mergeable()
    for value in values:
        learner.teach(value)
    return float(learner.groups["key"].sums[0])
