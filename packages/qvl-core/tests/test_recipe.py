"""Recipes: what a value means, where an error is, and that nothing is lost on the way out and in again."""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from qvl_core.errors import BadInput
from qvl_core.recipe.blocks import Block, Recipe
from qvl_core.recipe.load import dump, load, name
from qvl_core.recipe.names import PEERS
from qvl_core.recipe.reference import reference, schema
from qvl_core.recipe.shipped import copy, shipped, show

GOOD = """\
# A recipe that is complete.
version: 1
model: {name: tiny}
tune:
  llm: {mode: lora, rank: 8}
data:
  train: [{source: a.jsonl}]
batch: {size: 4}
train: {steps: 10}
"""


class Values(Block):
    """One field of each type that a recipe may have."""

    text: str = ""
    number: float = 0.0
    count: int = 0
    flag: bool = False
    choice: Literal["on", "off", "1"] = "on"
    maybe: str | None = None
    size: int | Literal["auto"] = "auto"
    place: Path = Path(".")
    pair: tuple[float, float] = (0.0, 0.0)
    named: dict[str, str] = Field(default_factory=dict)
    anything: Any = None


def recipe(folder: Path, text: str) -> Path:
    file = folder / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def errors(file: Path, *overrides: str, kind: type[Any] = Recipe) -> list[str]:
    """The lines of the error, with the file's name in place of its path."""
    with pytest.raises(BadInput) as caught:
        load(kind, file, overrides)
    return str(caught.value).replace(str(file), "mine.yaml").splitlines()


@pytest.mark.parametrize(
    ("field", "written", "value"),
    [
        ("number", "5e-4", 5e-4),
        ("number", "1e-3", 1e-3),
        ("number", "1E3", 1000.0),
        ("number", ".5", 0.5),
        ("number", "3", 3.0),
        ("number", '"5e-4"', 5e-4),
        ("count", "1e3", 1000),
        ("count", "1_000", 1000),
        ("count", "010", 10),
        ("flag", "true", True),
        ("flag", "false", False),
        ("text", "on", "on"),
        ("text", "no", "no"),
        ("text", "true", "true"),
        ("text", "1e3", "1e3"),
        ("text", "0123456", "0123456"),
        ("text", "2026-11-20", "2026-11-20"),
        ("text", "12:30", "12:30"),
        ("text", '"null"', "null"),
        ("text", "训练", "训练"),
        ("choice", "off", "off"),
        ("choice", "1", "1"),
        ("maybe", "null", None),
        ("maybe", "", None),
        ("maybe", "~", None),
        ("size", "auto", "auto"),
        ("size", "16", 16),
        ("place", "2026", Path("2026")),
        ("pair", "[1e-3, 1]", (1e-3, 1.0)),
        ("named", "{a: no, b: 1}", {"a": "no", "b": "1"}),
        ("anything", "1e-3", 1e-3),
        ("anything", "no", "no"),
    ],
)
def test_the_declared_type_decides(tmp_path, field, written, value):
    from_file = load(Values, recipe(tmp_path, f"{field}: {written}\n"))
    from_override = load(Values, recipe(tmp_path, "text: x\n"), [f"{field}={written}"])
    for loaded in (from_file, from_override):
        assert getattr(loaded, field) == value
        assert type(getattr(loaded, field)) is type(value)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("flag: yes", '"flag" must be true or false, not "yes".'),
        ("flag: on", '"flag" must be true or false, not "on".'),
        ("flag: 1", '"flag" must be true or false, not 1.'),
        ("count: true", '"count" must be a whole number, not true.'),
        ("count: 1.5", '"count" must be a whole number, not 1.5.'),
        ("count:", '"count" must be a whole number, not null.'),
        ("number: many", '"number" must be a number, not "many".'),
        ("number: .inf", '"number" must be a number, not ".inf".'),
        ("number: nan", '"number" must be a number, not "nan".'),
        ("number: 1e999", '"number" must be a number, not "1e999".'),
        ("text:", '"text" must be text, not null.'),
        ("text: [a]", '"text" must be text, not a list of 1.'),
        ("choice: offf", '"choice" must be one of on, off, 1, not "offf"; did you mean "off"?'),
        ("size: big", '"size" must be a whole number or auto, not "big".'),
        ("pair: [1]", 'missing entry "pair.1".'),
        ("pair: 1", '"pair" must be a list, not 1.'),
        ("named: 1", '"named" must be a block of keys, not 1.'),
    ],
)
def test_a_wrong_value_is_one_sentence(tmp_path, line, sentence):
    assert errors(recipe(tmp_path, f"# head\n{line}\n"), kind=Values) == [f"mine.yaml:2: {sentence}"]


def test_ranges_are_named(tmp_path):
    file = recipe(tmp_path, GOOD)
    assert errors(file, "optim.lr=0", "tune.llm.dropout=1", "data.max_bad=-1", "schedule.min_factor=2") == [
        'tune.llm.dropout=1: "tune.llm.dropout" must be less than 1, not 1.',
        'data.max_bad=-1: "data.max_bad" must be at least 0, not -1.',
        'optim.lr=0: "optim.lr" must be greater than 0, not 0.',
        'schedule.min_factor=2: "schedule.min_factor" must be at most 1, not 2.',
    ]


def test_all_errors_at_once_in_the_order_of_the_file(tmp_path):
    text = GOOD.replace("steps: 10", "stepps: 10").replace("{name: tiny}", "{revision: main}") + (
        "optimm: {lr: 1}\noptim:\n  lr: -1\n"
    )
    assert errors(recipe(tmp_path, text), "log.evry=1") == [
        'mine.yaml:3: missing key "model.name": Hub id, local folder, '
        "or `tiny` (a small random Qwen3-VL built on the spot).",
        'mine.yaml:9: unknown key "train.stepps"; did you mean "train.steps"?',
        'mine.yaml:10: unknown key "optimm"; did you mean "optim"?',
        'mine.yaml:12: "optim.lr" must be greater than 0, not -1.',
        'log.evry=1: unknown key "log.evry"; did you mean "log.every"?',
    ]


def test_a_missing_block_has_the_file_as_its_place(tmp_path):
    text = GOOD.replace("batch: {size: 4}\n", "").replace("version: 1\n", "")
    assert errors(recipe(tmp_path, text)) == [
        'mine.yaml: missing key "version": Version of the recipe format.',
        'mine.yaml: missing key "batch": How samples become optimizer steps.',
    ]


def test_rules_between_keys_keep_their_own_words(tmp_path):
    file = recipe(tmp_path, GOOD)
    assert errors(file, "batch.tokens=9000") == ["mine.yaml:8: batch: give exactly one of `size` and `tokens`."]


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("learning_rate", "optim.lr"),
        ("per_device_train_batch_size", "batch.micro"),
        ("lora_r", "tune.llm.rank"),
        ("save_total_limit", "checkpoint.keep"),
        ("warmup_ratio", "schedule.warmup"),
        ("lr", "optim.lr"),  # right name, wrong block
        ("max_length", "batch.max_length"),
        ("Optim", "optim"),
    ],
)
def test_names_of_peers_and_of_other_blocks_are_known(tmp_path, key, meant):
    assert errors(recipe(tmp_path, GOOD + f"{key}: 1\n")) == [
        f'mine.yaml:10: unknown key "{key}"; did you mean "{meant}"?'
    ]


def test_a_peer_name_inside_a_block(tmp_path):
    file = recipe(tmp_path, GOOD)
    assert errors(file, "tune.merger.lora_r=8") == [
        'tune.merger.lora_r=8: unknown key "tune.merger.lora_r"; did you mean "tune.merger.rank"?'
    ]
    assert errors(file, "train.max_grad_norm=1") == [
        'train.max_grad_norm=1: unknown key "train.max_grad_norm"; did you mean "train.clip"?'
    ]


def test_without_a_guess_the_allowed_keys_are_listed(tmp_path):
    [line] = errors(recipe(tmp_path, GOOD), "log.zzz=1")
    assert line == 'log.zzz=1: unknown key "log.zzz"; allowed here: every, to.'


def test_every_peer_name_leads_to_a_key_that_exists(tmp_path):
    good = recipe(tmp_path, GOOD)
    for theirs, ours in PEERS.items():
        assert any(ours in line for line in errors(good, f"{theirs}=1")), theirs
        with pytest.raises(BadInput) as caught:
            load(Recipe, good, [f"{ours}={{impossible: value}}"])
        assert f'unknown key "{ours}"' not in str(caught.value), ours


def test_duplicate_keys(tmp_path):
    text = GOOD + "optim: {lr: 1e-4}\nlog: {}\noptim: {lr: 2e-4}\n"
    assert errors(recipe(tmp_path, text)) == ['mine.yaml:12: duplicate key "optim" (first on line 10); keep one.']


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("optim.lr=1e-5", lambda r: r.optim.lr, 1e-5),  # a block that the file lacks
        ("data.train.0.weight=2", lambda r: r.data.train[0].weight, 2.0),
        ("data.train.0=b.jsonl", lambda r: r.data.train[0].source, "b.jsonl"),
        ("data.train=b.jsonl", lambda r: r.data.train[0].source, "b.jsonl"),
        ("data.validation=[b.jsonl, {source: c.jsonl, take: 5}]", lambda r: r.data.validation[1].take, 5),
        ("tune.merger={mode: full, lr: 1e-3}", lambda r: r.tune["merger"].lr, 1e-3),
        ("evaluate={every: 2, early_stop: {patience: 7}}", lambda r: r.evaluate.early_stop.patience, 7),
        ("parallel.nproc=2", lambda r: r.parallel.nproc, 2),
        ("model.name=a=b", lambda r: r.model.name, "a=b"),
        ("train.clip=null", lambda r: r.train.clip, None),
        ("train.clip=", lambda r: r.train.clip, None),
    ],
)
def test_overrides(tmp_path, override, key, value):
    assert key(load(Recipe, recipe(tmp_path, GOOD), [override])) == value


def test_later_overrides_win_and_empty_blocks_are_filled(tmp_path):
    loaded = load(Recipe, recipe(tmp_path, GOOD + "optim:\n"), ["optim.lr=1", "optim.lr=2", "optim.eps=1e-6"])
    assert (loaded.optim.lr, loaded.optim.eps) == (2, 1e-6)


def test_a_lone_source_takes_overrides_like_a_list(tmp_path):
    file = recipe(tmp_path, GOOD.replace("[{source: a.jsonl}]", "{source: a.jsonl}"))
    assert load(Recipe, file, ["data.train.0.weight=2"]).data.train[0].weight == 2


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("optim.lr", "an override is written key=value, such as optim.lr=1e-4."),
        ("=1", "an override is written key=value, such as optim.lr=1e-4."),
        ("optim..lr=1", "an override is written key=value, such as optim.lr=1e-4."),
        ("data.train.1.weight=2", '"data.train" has no entry 1; its entries are 0 to 0.'),
        ("data.train.-1.weight=2", '"data.train" has no entry -1; its entries are 0 to 0.'),
        ("data.test.0.source=x", '"data.test" is not set, so it has no entry to change; give the whole list.'),
        ("version.x=1", '"version" is a single value (mine.yaml:2), so "x" cannot be set in it; set "version" whole.'),
        ("model.name=[1", "not YAML: expected ',' or ']', but got '<stream end>'."),
        ("data.train.0.weight=-2", '"data.train.0.weight" must be greater than 0, not -2.'),
        ("optim={lr: 1, lr: 2}", 'duplicate key "lr"; keep one.'),
    ],
)
def test_a_wrong_override_is_its_own_place(tmp_path, override, sentence):
    assert errors(recipe(tmp_path, GOOD), override) == [f"{override}: {sentence}"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "mine.yaml: the recipe is empty."),
        ("# only a comment\n", "mine.yaml: the recipe is empty."),
        ("- 1\n", "mine.yaml: a recipe is a block of `key: value` lines, not a list."),
        ("hello\n", "mine.yaml: a recipe is a block of `key: value` lines, not a single value."),
        ("a: 1\n\tb: 2\n", "mine.yaml:2: not YAML: there is a tab; indent with spaces."),
        ("a: [1\nb: 2\n", "mine.yaml:2: not YAML: expected ',' or ']', but got ':'."),
        ("a: 1\n---\nb: 2\n", "mine.yaml:2: a recipe is one YAML document; remove the second one."),
        (
            "a: &x 1\nb: *x\n",
            "mine.yaml:1: anchors and aliases (& and *) have no place in a recipe; write the value out.",
        ),
        (
            "a: !!python/object/apply:os.system [exit]\n",
            "mine.yaml:1: the tag tag:yaml.org,2002:python/object/apply:os.system has no place in a recipe; "
            "write the plain value.",
        ),
        ("? [a]\n: 1\n", "mine.yaml:1: a key must be a single word."),
        ("[" * 5000, "mine.yaml: nested too deeply to be a recipe."),
    ],
)
def test_text_that_is_no_recipe(tmp_path, text, sentence):
    assert errors(recipe(tmp_path, text), kind=Values) == [sentence]


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("latin.yaml").write_bytes("name: caf\xe9".encode("latin-1"))
    expected = {
        "folder": "folder: this is a folder; give the YAML file in it.",
        "nowhere.yaml": "nowhere.yaml: there is no such file.",
        "latin.yaml": "latin.yaml: not UTF-8 text (byte 9); save it as UTF-8.",
        "nul\0.yaml": "nul\0.yaml: cannot be read: embedded null byte.",
    }
    for source, sentence in expected.items():
        with pytest.raises(BadInput) as caught:
            load(Recipe, source)
        assert str(caught.value) == sentence


def test_a_byte_order_mark_is_no_character_of_the_recipe(tmp_path):
    file = tmp_path / "notepad.yaml"
    file.write_text("\ufeff" + GOOD, encoding="utf-8")
    assert load(Recipe, file).train.steps == 10


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that ships two recipes."""
    folder = tmp_path / "site" / "shipping_package" / "recipes"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    (folder / "lora_4b.yaml").write_text(GOOD, encoding="utf-8")
    (folder / "full_2b.yaml").write_text(GOOD.replace("# A recipe that is complete.\n", ""), encoding="utf-8")
    (folder / "notes.txt").touch()
    monkeypatch.syspath_prepend(folder.parent.parent)
    monkeypatch.chdir(tmp_path)
    yield "shipping_package"
    sys.modules.pop("shipping_package", None)


def test_shipped_recipes(package, tmp_path):
    assert [(one.name, one.description) for one in shipped(package)] == [
        ("full_2b", ""),
        ("lora_4b", "A recipe that is complete."),
    ]
    assert show(package, "lora_4b") == GOOD
    assert load(Recipe, "lora_4b", ["train.steps=3"], package).train.steps == 3
    assert copy(package, "lora_4b").read_text(encoding="utf-8") == GOOD
    with pytest.raises(BadInput, match=r"lora_4b.yaml: exists already"):
        copy(package, "lora_4b")
    assert copy(package, "lora_4b", tmp_path / "deep" / "mine.yaml").is_file()
    assert load(Recipe, "lora_4b.yaml", (), package).train.steps == 10  # now a file of our own


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("lora_4bb", 'no recipe "lora_4bb"; did you mean "lora_4b"?'),
        ("zzz", 'no recipe "zzz"; shipping_package ships full_2b, lora_4b.'),
        ("lora_4.yaml", 'lora_4.yaml: there is no such file, and no recipe "lora_4"; did you mean "lora_4b"?'),
        ("x/lora_4b", 'x/lora_4b: there is no such file, and no recipe "lora_4b"; did you mean "lora_4b"?'),
    ],
)
def test_a_name_that_no_recipe_has(package, source, sentence):
    with pytest.raises(BadInput) as caught:
        load(Recipe, source, (), package)
    assert str(caught.value) == sentence


def test_errors_in_a_shipped_recipe_name_it(package):
    with pytest.raises(BadInput) as caught:
        load(Recipe, "lora_4b", ["batch.tokens=9000"], package)
    assert (
        str(caught.value) == "shipping_package/recipes/lora_4b.yaml:8: batch: give exactly one of `size` and `tokens`."
    )


@pytest.mark.parametrize(
    ("source", "expected"), [("lora_4b", "lora_4b"), ("x/my.yaml", "my"), ("qwen3.vl", "qwen3.vl")]
)
def test_the_name_of_a_recipe(source, expected):
    assert name(source) == expected


# Text that YAML can carry at all: no control characters but newline and tab, no lone surrogates.
texts = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t", exclude_characters="\x85\ufeff")
)


@given(
    st.builds(
        Values,
        text=texts | st.sampled_from(["1e-3", "null", "true", "yes", "0123", "1_0", "", "~", "- a", "a: b", "!!int 1"]),
        number=st.floats(allow_nan=False, allow_infinity=False),
        count=st.integers(-(2**63), 2**63),
        flag=st.booleans(),
        maybe=st.none() | texts,
        size=st.integers() | st.just("auto"),
        pair=st.tuples(st.floats(allow_nan=False, allow_infinity=False), st.floats(0, 1)),
        named=st.dictionaries(texts, texts, max_size=3),
        anything=st.none() | st.booleans() | st.integers() | texts | st.lists(texts, max_size=2),
    )
)
def test_what_is_dumped_is_loaded_again(tmp_path_factory, values):
    file = recipe(tmp_path_factory.getbasetemp(), dump(values))
    assert load(Values, file) == values


def test_a_dumped_recipe_is_plain_yaml(tmp_path):
    loaded = load(Recipe, recipe(tmp_path, GOOD), ["optim.lr=1e-5", "optim.eps=1e-8"])
    text = dump(loaded)
    assert load(Recipe, recipe(tmp_path, text)) == loaded
    assert "lr: 1e-05\n" in text
    assert "!!" not in text
    assert list(yaml.safe_load(text))[:3] == ["version", "model", "tune"]


@given(st.text(st.sampled_from("abc:-{}[]&*!'\"#|>%@`,? \n\t\\0.1~=")) | st.text())
def test_no_text_brings_the_loader_down(tmp_path_factory, text):
    folder = tmp_path_factory.getbasetemp()
    file = recipe(folder, "text: x\n")
    for overrides in ([text], [f"anything={text}"]):
        with suppress(BadInput):
            load(Values, file, overrides)
    with suppress(BadInput):
        load(Values, recipe(folder, text.encode("utf-8", "replace").decode()))


def test_the_reference_names_every_key():
    class Method(Recipe):
        """A method's recipe."""

        ratio: Annotated[float, Field(gt=0, le=1)] = 0.5
        """Share of | something."""

    page = reference(Method)
    assert "| `ratio` | number > 0 and <= 1 | `0.5` | Share of \\| something. |" in page
    assert "| `tune.*.mode` | `frozen`, `lora`, `full` | `frozen` |" in page
    assert "| `batch.size` | whole number >= 1 or null | `null` |" in page
    assert "| `model.name` | text | required |" in page
    assert "| `optim.betas` | list of 2: number >= 0 and < 1, number >= 0 and < 1 | `[0.9, 0.999]` |" in page
    assert "## `evaluate.early_stop`" in page
    assert "The same keys as `data.train.N`." in page


def test_every_key_of_the_shared_blocks_has_a_description():
    rows = [line for line in reference(Recipe).splitlines() if line.startswith("| `")]
    assert len(rows) > 60
    assert not [row for row in rows if row.endswith("|  |")]


def test_the_schema_is_one_that_editors_read():
    made = schema(Recipe)
    assert made["$schema"].startswith("https://json-schema.org/")
    assert made["required"] == ["version", "model", "tune", "data", "batch", "train"]
    assert made["additionalProperties"] is False
    assert made["$defs"]["Optim"]["properties"]["lr"]["description"].startswith("Peak learning rate")


def test_a_recipe_needs_no_torch(tmp_path):
    code = (
        "import sys; from qvl_core.recipe.load import load; from qvl_core.recipe.blocks import Recipe;"
        f"load(Recipe, {str(recipe(tmp_path, GOOD))!r}); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("metric", "mode", "larger"),
    [
        ("validation_loss", "auto", False),
        ("validation_exact_match", "auto", True),
        ("validation_exact_match", "min", False),
        ("validation_loss", "max", True),
    ],
)
def test_early_stopping_knows_which_way_a_figure_should_go(metric, mode, larger):
    from qvl_core.recipe.blocks import EarlyStop

    assert EarlyStop(metric=metric, mode=mode).larger_is_better is larger
