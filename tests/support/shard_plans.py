"""The plans of `prepare videos`, caught before any shard is made."""

from pathlib import Path

import pytest

from comodal.data.shards import ingest
from comodal.data.shards.shard_report import ShardSummary
from comodal.data.shards.shard_runner import RunPlan


def catch_plans(monkeypatch: pytest.MonkeyPatch) -> list[RunPlan]:
    """A list to which each plan is appended, while no shards are made."""
    plans: list[RunPlan] = []

    def catch(plan: RunPlan, *_: object) -> ShardSummary:
        plans.append(plan)
        return ShardSummary(Path("out"), {}, {}, {}, 0, plan.options, plan.compute_fingerprint(), plan.dataset or {})

    monkeypatch.setattr(ingest, "make_shards", catch)
    return plans
