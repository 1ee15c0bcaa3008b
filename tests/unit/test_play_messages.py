"""What comes from a page is one of a few types, or one line says why not."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worldvq.errors import UsageError
from worldvq.play.messages import Act, WhatIf, pack, parse, unpack

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KINDS = ("act", "begin", "restart", "undo", "temperature", "overlay", "what_if", "take", "record", "clip")


def test_messages_are_read():
    assert parse('{"kind": "act", "action": 3}') == Act(kind="act", action=3)
    assert parse('{"kind": "act", "action": [0.5, 1]}') == Act(kind="act", action=[0.5, 1.0])
    found = parse('{"kind": "what_if", "actions": [0, [1, 2]], "steps": 8}')
    assert found == WhatIf(kind="what_if", actions=[0.0, [1.0, 2.0]], steps=8)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "null",
        "{",
        "[" * 10_000,
        '{"kind": "quit"}',
        '{"kind": "act"}',
        '{"kind": "act", "action": "forward"}',
        '{"kind": "act", "action": true}',
        '{"kind": "act", "action": NaN}',
        '{"kind": "act", "action": 1e999}',
        '{"kind": "act", "action": []}',
        '{"kind": "act", "action": [[1]]}',
        '{"kind": "act", "action": 1, "path": "/etc/passwd"}',
        '{"kind": "act", "action": %s}' % ([0] * 257),
        '{"kind": "begin", "start": -1}',
        '{"kind": "begin", "start": "../data"}',
        '{"kind": "undo", "steps": 0}',
        '{"kind": "undo", "steps": 1e3000}',
        '{"kind": "temperature", "value": -0.1}',
        '{"kind": "overlay", "on": 1}',
        '{"kind": "what_if", "actions": [], "steps": 1}',
        '{"kind": "what_if", "actions": [0,0,0,0,0,0,0], "steps": 1}',
        '{"kind": "what_if", "actions": [0], "steps": 33}',
        '{"kind": "clip", "fps": 0}',
        '{"kind": "record", "on": true, "out": "x"}',
    ],
)
def test_what_is_no_message_is_refused_in_a_short_line(text):
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert "\n" not in str(caught.value) and 0 < len(str(caught.value).encode()) <= 123  # what a close frame holds


@given(st.text() | JSON.map(json.dumps))
def test_any_text_is_a_message_or_refused(text):
    try:
        parse(text)
    except UsageError as error:
        assert "\n" not in str(error) and len(str(error).encode()) <= 123


@given(st.sampled_from(KINDS), st.dictionaries(st.sampled_from(["action", "actions", "steps", "on", "value"]), JSON))
def test_any_fields_are_a_message_or_refused(kind, fields):
    try:
        message = parse(json.dumps({"kind": kind, **fields}))
    except UsageError:
        return
    assert message.kind == kind and set(message.model_dump()) - {"kind"} <= set(fields)


@given(st.dictionaries(st.text(), st.integers() | st.text()), st.binary())
def test_packing_is_undone_by_unpacking(header, data):
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert unpack(pack(header, array, data)) == (header, array.tobytes() + data)
