"""The histogram of latencies."""

from __future__ import annotations

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from leakhunt.prove.latency import Histogram, LatencySummary

SECONDS = st.floats(min_value=0, max_value=10_000)


@given(st.lists(SECONDS, min_size=1, max_size=200), st.sampled_from([0.5, 0.99, 1.0]))
def test_a_percentile_is_never_too_small_and_hardly_too_large(values, share):
    """The error is at most one microsecond or 1.6 %, upwards."""
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    exact = sorted(values)[max(0, math.ceil(share * len(values) - 1e-9) - 1)]
    found = histogram.percentile(share)
    assert exact <= found * (1 + 1e-12)
    assert found <= max(exact * 1.0162, exact + 1.1e-6)
    assert histogram.summary().max_s == max(values)
    assert histogram.summary().count == len(values)


@given(st.lists(SECONDS, max_size=50), st.lists(SECONDS, max_size=50))
def test_merging_is_as_if_recorded_together(one, other):
    """Histograms of several processes, sent as JSON, make one."""
    together = Histogram()
    for value in one + other:
        together.record(value)
    merged = Histogram()
    for values in (one, other):
        part = Histogram()
        for value in values:
            part.record(value)
        merged.merge(Histogram.from_json(**json.loads(json.dumps(part.to_json()))))
    assert merged.summary() == together.summary()


def test_nothing_measured_is_none_and_another_clock_counts_as_zero():
    """An empty summary has no numbers; a time from the future does not go below zero."""
    histogram = Histogram()
    assert histogram.summary() == LatencySummary(0, None, None, None)
    histogram.record(-5.0)
    assert histogram.summary().max_s == 0.0
    histogram.reset()
    assert histogram.summary().count == 0
