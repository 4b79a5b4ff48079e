"""Sources as text: what each form means, that nothing is lost on the way, and what is said about what is wrong."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvl_core.errors import BadInput
from qvl_core.recipe.blocks import Data, Recipe, Source
from qvl_core.recipe.load import dump, load
from qvl_core.recipe.sources import parse_sources, spell

RECIPE = """\
version: 1
model: {name: tiny}
tune: {llm: {mode: lora}}
data:
  train: TRAIN
batch: {size: 4}
train: {steps: 10}
"""


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("digits", {}),
        ("digits%50", {"percent": 50}),
        ("digits % 12.5", {"percent": 12.5}),
        ("digits%250", {"percent": 250}),
        ("0.5*digits", {"weight": 0.5}),
        ("digits * 2", {"weight": 2}),
        ("1e-1*digits%50", {"weight": 0.1, "percent": 50}),
        ("digits[train:1000,test:100]", {"parts": {"train": 1000, "test": 100}}),
        ("digits[ train : 1_000 , test:100 ]", {"parts": {"train": 1000, "test": 100}}),
        ("2*digits[validation:5]%300", {"weight": 2, "percent": 300, "parts": {"validation": 5}}),
        ("digits[dev]", {"split": "dev"}),
        ("digits['a:b']", {"split": "a:b"}),
        ("digits[':']", {"split": ":"}),
    ],
)
def test_each_form(text, fields):
    assert parse_sources(text) == [{"source": "digits", **fields}]
    assert parse_sources(f"other+{text} + more") == [
        {"source": "other"},
        {"source": "digits", **fields},
        {"source": "more"},
    ]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("data/receipts.jsonl", "data/receipts.jsonl"),
        (r"C:\data\a.jsonl", r"C:\data\a.jsonl"),
        ("jp1924/KoDocumentTableVisualSFT", "jp1924/KoDocumentTableVisualSFT"),
        ("자료.jsonl", "자료.jsonl"),
        ("'my data/a+b.jsonl'", "my data/a+b.jsonl"),
        ('"a%50.jsonl"', "a%50.jsonl"),
        ("'it''s.jsonl'", "it's.jsonl"),
        ("'5'", "5"),
        ("a-b_c.d~e", "a-b_c.d~e"),
    ],
)
def test_names(text, name):
    assert parse_sources(text) == [{"source": name}]
    assert parse_sources(f"2*{text}%50") == [{"source": name, "percent": 50, "weight": 2}]


@pytest.mark.parametrize(
    ("text", "position", "problem"),
    [
        ("", 1, "the name of a source is missing."),
        ("a +", 4, "the name of a source is missing."),
        ("+ a", 1, "the name of a source is missing."),
        ("0.5", 4, "the name of a source is missing (a name that is a number is quoted)."),
        ("2*3*a", 3, "a second weight; keep one, and quote a name that is a number."),
        ("a*b", 3, "a number is missing: a weight stands before or after the name, such as 0.5*digits."),
        ("0*a", 1, "a weight or percentage is a finite number above 0."),
        ("a%1e999", 3, "a weight or percentage is a finite number above 0."),
        ("a%-5", 3, "a weight or percentage is a finite number above 0."),
        ("a%", 3, 'a number is missing after "%", such as digits%50; quote a name that holds a "%".'),
        ("a%20b.jsonl", 3, 'a number is missing after "%", such as digits%50; quote a name that holds a "%".'),
        ("a, b", 2, 'sources are joined by "+", not by ",".'),
        ("my data.jsonl", 4, '"data.jsonl" is out of place; quote a name that holds a space, or join sources by "+".'),
        ("a%50[train:5]", 5, '"[" is out of place; the order is name[train:1000,test:100]%50.'),
        ("a[trian:5]", 3, 'no list is called "trian"; did you mean "train"?'),
        ("a[train:5,val:5]", 11, 'no list is called "val"; did you mean "validation"?'),
        ("a[x:5]", 3, 'no list is called "x"; the lists are train, validation, test.'),
        ("a[train:5,train:5]", 11, '"train" is there twice; keep one.'),
        ("a[train:0]", 3, '"train" needs a number of samples, such as [train:1000].'),
        ("a[train:many]", 3, '"train" needs a number of samples, such as [train:1000].'),
        ("a[train,test]", 3, '"train" needs a number of samples, such as [train:1000].'),
        ("a[train:5", 10, '"," or "]" is missing.'),
        ("a[]", 3, "the name of a split is missing."),
        ("'a", 1, "the quote ' is not closed."),
        ("''", 1, "the name of a source is missing."),
    ],
)
def test_errors_name_the_position(text, position, problem):
    with pytest.raises(BadInput) as caught:
        parse_sources(text)
    assert str(caught.value) == f'"{text}", position {position}: {problem}'


names = st.text(min_size=1).filter(lambda name: not any("\ud800" <= c <= "\udfff" for c in name))
numbers = st.floats(1e-9, 1e20) | st.integers(1, 10**6).map(float)
sources = st.fixed_dictionaries(
    {"source": names},
    optional={
        "split": names,
        "percent": numbers,
        "weight": numbers.filter(lambda weight: weight != 1),
        "parts": st.dictionaries(st.sampled_from(["train", "validation", "test"]), st.integers(1), min_size=1),
    },
).filter(lambda source: not {"split", "parts"} <= source.keys())


@given(st.lists(sources, min_size=1, max_size=4))
def test_text_and_fields_say_the_same(found):
    assert parse_sources(" + ".join(spell(source) for source in found)) == found


@given(st.text(alphabet="ab0.5*+%[]:,'\" train"))
def test_any_text_is_read_or_refused(text):
    found = []
    with suppress(BadInput):
        found = parse_sources(text)
    if found:
        spelled = parse_sources(" + ".join(map(spell, found)))
        assert [{"weight": 1.0} | source for source in spelled] == [{"weight": 1.0} | source for source in found]


def recipe(tmp_path, train):
    file = tmp_path / "mine.yaml"
    file.write_text(RECIPE.replace("TRAIN", train), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    "train",
    [
        "2*a%50 + b",
        "[2*a%50, b]",
        "[2*a%50 + b]",
        "[{source: a, weight: 2, percent: 50}, b]",
        '["2*a%50", {source: b}]',
    ],
)
def test_text_and_blocks_make_the_same_recipe(train, tmp_path):
    loaded = load(Recipe, recipe(tmp_path, train))
    assert loaded.data.train == [Source(source="a", weight=2, percent=50), Source(source="b")]
    file = tmp_path / "again.yaml"
    file.write_text(dump(loaded), encoding="utf-8")
    assert load(Recipe, file) == loaded


def test_an_override_changes_one_key_of_a_source_given_as_text(tmp_path):
    loaded = load(
        Recipe,
        recipe(tmp_path, "a[train:10,test:5] + b"),
        ["data.train.0.weight=2", "data.train.0.parts.test=7", "data.train.1.source=a+b.jsonl"],
    )
    assert loaded.data.train[0] == Source(source="a", weight=2, parts={"train": 10, "test": 7})
    assert loaded.data.train[1].source == "a+b.jsonl"  # in a block a name is a name
    loaded = load(Recipe, recipe(tmp_path, "a"), ["data.test=b%50 + c", "data.test.1.take=3"])
    assert loaded.data.test == [Source(source="b", percent=50), Source(source="c", take=3)]


@pytest.mark.parametrize(
    ("train", "sentence"),
    [
        ("a%", '"data.train": "a%", position 3: a number is missing after "%", such as digits%50'),
        ("[b, a%]", '"data.train.1": "a%", position 3: a number is missing after "%", such as digits%50'),
        ("{source: a, parts: {trian: 5}}", '"data.train.parts.trian" must be one of train, validation, test'),
        ("{source: a, take: 5, percent: 5}", "data.train: `take` and `percent` exclude each other; keep one"),
        ("{source: a, take: 5, parts: {train: 5}}", "data.train: `parts` says what `take` and `split` say; keep"),
        ("a[train:5]%50", "data.train.0: `parts` and a `percent` below 100 exclude each other; keep one"),
    ],
)
def test_what_is_wrong_has_its_line(train, sentence, tmp_path):
    with pytest.raises(BadInput) as caught:
        load(Recipe, recipe(tmp_path, train))
    assert str(caught.value).startswith(f"{tmp_path / 'mine.yaml'}:5: {sentence}")
    assert len(str(caught.value).splitlines()) == 1


def test_text_in_python():
    assert Data(train="a%50 + b").train == [Source(source="a", percent=50), Source(source="b")]
    assert Data(train=["a", Source(source="b+c")]).train == [Source(source="a"), Source(source="b+c")]
    with pytest.raises(ValueError, match="position 3"):
        Data(train="a%")


def test_parts_of_one_source_are_the_same_in_every_list():
    Data(train="a[train:10,test:5]", test="a[test:5,train:10] + b[test:1]")
    with pytest.raises(ValueError, match="`parts` of a differ between two sources, which may then overlap"):
        Data(train="a[train:10]", test="a[test:5]")
