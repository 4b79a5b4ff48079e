"""Rows of every kind to test formats with."""

from typing import Any

from hypothesis import strategies as st

from qvl_data.errors import REASONS, BadSample

from .chats import file_of, picture

PNG = file_of(picture(8, 8))

texts = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.lists(st.sampled_from(["\\", "<image>", "<", "\n", " ", "\t", "猫", "é", "\u00a0"]), max_size=6).map("".join),
)
paths = st.sampled_from(["a.png", "b/c.jpg", "/abs/d.png", "http://host/f.png", "file:///abs/e.png", "猫 1.webp"])
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9) | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["p", "$bytes"]), inner, max_size=2),
    max_leaves=4,
)
odd = plain | st.binary(max_size=4) | st.just(float("inf")) | st.dates() | st.decimals(allow_nan=False)
"""What a table may hold."""
unknown = st.dictionaries(
    st.sampled_from(["origin", "quality", "layout", "fields", "schema", "$float"]), odd, max_size=2
)
identity = st.sampled_from([{}, {"id": "x-1"}, {"id": 17}, {"id": None}, {"id": ""}])
cells = st.one_of(
    paths,
    st.just(PNG),
    st.fixed_dictionaries({"bytes": st.just(PNG), "path": st.none() | st.sampled_from(["", "p/q.png"])}),
    st.fixed_dictionaries({"bytes": st.none(), "path": paths}),
    st.fixed_dictionaries({"path": paths}, optional={"width": st.integers(1, 9)}),
    st.fixed_dictionaries({"bytes": st.just(PNG)}),
)
"""A picture as it may stand in a column."""


def missing(name: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A field that may not be there at all."""
    return st.just({}) | values.map(lambda value: {name: value})


def anything(names: tuple[str, ...]) -> st.SearchStrategy[Any]:
    """Any value, among them objects that have some of the named fields."""
    value = odd | cells | st.lists(cells, max_size=2)
    return odd | st.dictionaries(st.sampled_from(names), value, max_size=len(names))


def read_or_refusal(form: Any, row: Any, place: str) -> Any:
    """The sample of a row, or the BadSample that it raises; any other error is a bug."""
    try:
        return form.read(row, place)
    except BadSample as error:
        return error


def check_anything(form: Any, row: Any, place: str) -> None:
    """A row is refused with a known reason at its place, or comes back as it was."""
    found = read_or_refusal(form, row, place)
    if isinstance(found, BadSample):
        assert found.reason in REASONS
        assert str(found).startswith(f"{place}: ")
    else:
        assert form.write(found) == row
