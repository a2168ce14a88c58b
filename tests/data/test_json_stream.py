"""JSON read and edited piece by piece: any value, any spacing, wherever the reads cut it."""

import io
import json

import pytest
from format_samples import json_values
from hypothesis import given, settings
from hypothesis import strategies as st

from posefix_jax.data import json_stream
from posefix_jax.data.json_stream import JsonStream, edit


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.dictionaries(st.text(), json_values, max_size=3), max_size=4),
    st.sampled_from([None, 1]),
    st.sampled_from(["", " ", "\n\t "]),
    st.integers(3, 40),
    st.booleans(),
)
def test_any_list_streams_as_it_is(elements, indent, space, chunk, ascii_only):
    """Whatever its values, spacing, and where the reads cut it: texts joined are the file, values are json's."""
    text = space + json.dumps(elements, indent=indent, ensure_ascii=ascii_only) + space
    data = text.encode("utf-8", "surrogatepass")
    try:
        data.decode()
    except UnicodeDecodeError:
        return  # lone surrogates written raw are not UTF-8
    whole, json_stream.CHUNK = json_stream.CHUNK, chunk
    try:
        stream = JsonStream(io.BytesIO(data), "f")
        items = list(stream.items(stream.space()))
        assert "".join(item.lead + item.text for item in items) + stream.rest() == text
        assert repr([item.value for item in items[:-1]]) == repr(json.loads(text))
    finally:
        json_stream.CHUNK = whole


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.text(), json_values, min_size=1, max_size=4), json_values, st.data())
def test_any_edit_is_the_edit_of_the_value(value, new, data):
    """`edit` of the text is the change of the value; a name that is not there is added, at the end of lists too."""
    text = json.dumps(value, indent=data.draw(st.sampled_from([None, 2])))
    name = data.draw(st.sampled_from([*value, "a name that is not there"]))
    path, expected = (name,), json.loads(text)
    inner = expected.get(name)
    if isinstance(inner, list):
        place = data.draw(st.integers(0, len(inner)))
        path = name, place
        inner[place : place + 1] = [new]
    elif isinstance(inner, dict):
        path = name, "k"
        inner["k"] = new
    else:
        expected[name] = new
    assert repr(json.loads(edit(text, {path: new}))) == repr(expected)


@pytest.mark.parametrize("chunk", range(20, 34))
def test_numbers_cut_by_a_read(chunk, monkeypatch):
    monkeypatch.setattr(json_stream, "CHUNK", chunk)
    text = '[{"a": 1.25, "b": -1.5E+10, "c": true, "d": 12}, 3.5e-7, 17]'
    stream = JsonStream(io.BytesIO(text.encode()), "f")
    assert [item.value for item in stream.items()][:-1] == json.loads(text)
    stream = JsonStream(io.BytesIO(b'{"some name": 1.3, "another": -2E+5}'), "f")
    found = {name: stream.value()[0] for name, _ in stream.members() if name}
    assert found == {"some name": 1.3, "another": -2e5}
