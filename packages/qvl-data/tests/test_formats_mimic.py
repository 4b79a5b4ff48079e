"""The format mimic: studies of MIMIC-CXR-JPG, locally made; reports taken apart; end to end."""

import csv
import gzip
import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvl_core.errors import BadInput
from qvl_core.recipe.blocks import Source
from qvl_data.convert import convert
from qvl_data.dataset import Dataset, splits
from qvl_data.errors import BadSample
from qvl_data.formats import get_format, mimic, recognise
from qvl_data.formats.mimic import sections
from qvl_data.mimic_rows import Rows, is_mimic
from qvl_data.sample import read_sample
from qvl_data.sources import Mixture, shared
from qvl_data.walk import open_splits

from .chats import build, file_of, picture
from .rows import anything, cells, check_anything, missing, texts, unknown

MIMIC, QVL = get_format("mimic"), get_format("qvl")
PLACE = "mimic/files/p10/p10000032/s50414267.txt"

REPORT = """\
                                 WET READ: ___ ___ ___ 9:03 PM
  No focal FINDINGS: preliminary.
 ______________________________________________________________________________
                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)
 
 INDICATION:  ___F with new onset ascites  // eval for infection
 
 TECHNIQUE:  Chest PA and lateral
 
 COMPARISON:  None.
 
 FINDINGS: 
 
 There is no focal consolidation, pleural effusion or
 pneumothorax.  Bilateral nodular opacities.
 
 LUNGS: clear at 10:30.
 
 IMPRESSION: 
 
 No acute cardiopulmonary process.
"""


def test_a_report_is_taken_apart():
    assert sections(REPORT) == {
        "findings": "There is no focal consolidation, pleural effusion or pneumothorax. Bilateral nodular opacities."
        "\n\nLUNGS: clear at 10:30.",
        "impression": "No acute cardiopulmonary process.",
    }


@pytest.mark.parametrize(
    ("report", "found"),
    [
        ("", {}),
        ("FINAL REPORT\n", {}),
        ("The lungs are clear.", {}),
        ("FINDINGS:\n\nIMPRESSION:  ", {}),
        ("FINDINGS: Clear.", {"findings": "Clear."}),
        ("IMPRESSION:\n1. One.\n\n2. Two.", {"impression": "1. One.\n\n2. Two."}),
        ("Findings: Clear.\nImpression: Normal.", {"findings": "Clear.", "impression": "Normal."}),
        (
            "FINAL REPORT\nPA AND LATERAL VIEWS OF THE CHEST:  Clear.\nIMPRESSION: Ok.",
            {"findings": "Clear.", "impression": "Ok."},
        ),
        ("CHEST, TWO VIEWS: Old.\nFINDINGS: New.", {"findings": "New."}),
        ("FINDINGS AND IMPRESSION: Both.", {"findings": "Both."}),
        ("CONCLUSION: Done.\nRECOMMENDATION(S): Follow up.", {"impression": "Done."}),
        ("IMPRESSION: First.\nADDENDUM: Later.\nIMPRESSION: Second.", {"impression": "First.\n\nSecond."}),
        ("IMPRESSION: Clear.\n______\nFINDINGS: None", {"impression": "Clear. ______", "findings": "None"}),
        ("The heart: findings: small.\nIMPRESSION : Ok.", {"impression": "Ok."}),
        ("COMPARISON:  CHEST RADIOGRAPH FROM ___: none\nFINDINGS: Ok.", {"findings": "Ok."}),
    ],
)
def test_reports_of_many_kinds(report, found):
    assert sections(report) == found


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from(["FINDINGS:", "IMPRESSION:", "\n", " ", "FINAL REPORT\n", "CHEST:", "A", "___", "a b"]))
)
def test_any_text_is_taken_apart(words):
    for text in sections(" ".join(words)).values():
        assert text.strip() == text
        assert text


@st.composite
def rows(draw):
    row = {"study_id": draw(st.just("50414267") | st.just(7)), "subject_id": "10000032"}
    entry = st.fixed_dictionaries(
        {"path": st.just("files/a.jpg"), "ViewPosition": st.sampled_from(["PA", "AP", "LL", "", None])}
    )
    if draw(st.booleans()):
        row["images"] = draw(st.lists(entry | cells, min_size=1, max_size=4))
        row |= draw(missing("ViewPosition", st.lists(st.sampled_from(["PA", "LATERAL"]), max_size=5)))
    else:
        row |= {"image": draw(entry | cells)} | draw(missing("ViewPosition", st.just("AP")))
    if draw(st.booleans()):
        row["report"] = REPORT + draw(texts)
    else:
        row |= {"findings": draw(texts.filter(lambda text: bool(text.strip())))} | draw(missing("impression", texts))
    return row | draw(missing("split", st.sampled_from(["train", "validate", None, 3]))) | draw(unknown)


@settings(max_examples=100, deadline=None)
@given(rows(), st.sampled_from([{}, {"views": "PA+AP"}, {"section": "findings"}]))
def test_round_trip(row, options):
    form = get_format("mimic", options)
    try:
        sample = form.read(row, PLACE)
    except BadSample as error:
        if error.reason != "report_views":
            raise
        return
    assert form.write(sample) == row
    assert MIMIC.write(read_sample(QVL.write(sample))) == row
    assert type(recognise(row, PLACE)) is mimic.Mimic


@settings(max_examples=100, deadline=None)
@given(anything(("image", "images", "report", "findings", "impression", "study_id", "id", "split", "ViewPosition")))
def test_anything_else_is_a_bad_sample(row):
    check_anything(MIMIC, row, PLACE)


def study(**more):
    images = [
        {"path": f"files/{name}.jpg", "dicom_id": name, "ViewPosition": view}
        for name, view in (("a", "LATERAL"), ("b", "AP"), ("c", "PA"), ("d", ""))
    ]
    return {"study_id": "5", "subject_id": "10", "split": "validate", "report": REPORT, "images": images} | more


def test_frontal_views_come_first():
    sample = MIMIC.read(study(), PLACE)
    assert [media.path for media in sample.media] == ["files/c.jpg", "files/b.jpg", "files/a.jpg", "files/d.jpg"]
    assert (sample.id, sample.meta.split, sample.meta.license) == ("s5", "validation", mimic.LICENSE)
    chosen = get_format("mimic", {"views": "AP+LATERAL"})
    assert [media.path for media in chosen.read(study(), PLACE).media] == ["files/b.jpg", "files/a.jpg"]


def test_the_section_that_is_asked_for():
    both = MIMIC.read(study(), PLACE)
    assert both.messages[0].text == mimic.QUESTIONS["findings", "impression"]
    assert both.messages[1].text.startswith("Findings: There is no focal")
    assert both.messages[1].text.endswith("\n\nImpression: No acute cardiopulmonary process.")
    one = get_format("mimic", {"section": "impression"}).read(study(), PLACE)
    assert (one.messages[0].text, one.messages[1].text) == (
        mimic.QUESTIONS["impression",],
        "No acute cardiopulmonary process.",
    )
    only = MIMIC.read(study(report="IMPRESSION: Normal."), PLACE)
    assert (only.messages[0].text, only.messages[1].text) == (mimic.QUESTIONS["impression",], "Normal.")


@pytest.mark.parametrize(
    ("row", "options", "reason", "sentence"),
    [
        ([], {}, "mimic", "expected an object with columns by name"),
        (study(images=[]), {}, "mimic", '"images" is no list of pictures'),
        (study(report=None), {}, "report_missing", "no report of this study"),
        (study(report=3), {}, "mimic", '"report" is int, no text'),
        (
            study(report="IMPRESSION: x"),
            {"section": "findings"},
            "report_section",
            "no findings in the report (only impression)",
        ),
        (study(report="Nothing."), {}, "report_section", "(neither findings nor impression)"),
        (study(), {"views": "LPO"}, "report_views", "no picture of the views LPO; only , AP, LATERAL, PA"),
    ],
)
def test_refusals(row, options, reason, sentence):
    with pytest.raises(BadSample) as caught:
        get_format("mimic", options).read(row, PLACE)
    assert caught.value.reason == reason
    assert sentence in str(caught.value)
    assert str(caught.value).startswith(f"{PLACE}: ")


def test_options_are_checked():
    with pytest.raises(BadInput, match=r"section=history: use one of findings, impression, findings\+impression"):
        get_format("mimic", {"section": "history"})
    with pytest.raises(BadInput, match='no field "view"; did you mean "views"'):
        get_format("mimic", {"view": "PA"})


def test_what_it_cannot_say_is_refused():
    with pytest.raises(BadSample, match="a chat that was not read from it"):
        MIMIC.write(build(("user", "a"), ("assistant", "b")))
    data = MIMIC.read(study(), PLACE).to_dict()
    data["messages"][1]["parts"][0]["text"] = "Something else."
    with pytest.raises(BadSample, match="that is not from the report"):
        MIMIC.write(read_sample(data))


# the folder

STUDIES = [  # subject, study, split, pictures with their views
    ("10000032", "50414267", "train", [("aa-1", "LATERAL"), ("bb-2", "PA")]),
    ("10000764", "57375967", "validate", [("cc", "AP")]),
    ("10000032", "53189527", "train", [("dd", "AP"), ("ee", "AP"), ("ff", "LL")]),
    ("11000898", "50771383", "test", [("gg", "PA")]),
]


def write_csv(file, rows):
    with gzip.open(file, "wt", newline="") if file.suffix == ".gz" else file.open("w", newline="") as out:
        writer = csv.DictWriter(out, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def mimic_folder(folder, suffix=".csv.gz", with_split=True):
    """A set of the shape of MIMIC-CXR-JPG, with noise for X-rays."""
    metadata, listed = [], []
    for subject, number, split, pictures in STUDIES:
        place = folder / "files" / f"p{subject[:2]}" / f"p{subject}"
        (place / f"s{number}").mkdir(parents=True)
        (place / f"s{number}.txt").write_text(REPORT.replace("new onset", number), "utf-8")
        for dicom, view in pictures:
            (place / f"s{number}" / f"{dicom}.jpg").write_bytes(
                file_of(picture(24, 32, len(metadata)).convert("L"), "JPEG")
            )
            metadata.append(
                {"dicom_id": dicom, "subject_id": subject, "study_id": number, "ViewPosition": view, "Rows": "32"}
            )
            listed.append({"dicom_id": dicom, "study_id": number, "subject_id": subject, "split": split})
    metadata = metadata[::2] + metadata[1::2]  # pictures of a study need not stand together
    write_csv(folder / f"mimic-cxr-2.0.0-metadata{suffix}", metadata)
    if with_split:
        write_csv(folder / f"mimic-cxr-2.0.0-split{suffix}", listed)
    return folder


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_the_folder_is_a_data_set(tmp_path, suffix):
    folder = mimic_folder(tmp_path, suffix)
    assert is_mimic(folder)
    assert list(splits(folder)) == ["train", "validation", "test"]
    train = Dataset(folder, "train")
    assert [sample.id for sample in train] == ["s50414267", "s53189527"]
    first = pickle.loads(pickle.dumps(train))[0]
    assert [media.path.rpartition("/")[2] for media in first.media] == ["bb-2.jpg", "aa-1.jpg"]
    assert first.opener.open(first.media[0]).size == (24, 32)
    assert first.place.endswith("s50414267.txt")
    assert [Dataset(folder, split)[0].meta.split for split in ("val", "test")] == ["validation", "test"]
    with pytest.raises(BadInput, match="which split"):
        Dataset(folder)
    row = train.rows[0]
    assert MIMIC.write(first) == row
    assert row["images"][0].keys() == {"path", "dicom_id", "ViewPosition", "Rows"}


def test_options_of_the_folder(tmp_path):
    data = Dataset(mimic_folder(tmp_path), "train", columns={"section": "findings", "views": "AP"})
    with pytest.raises(BadSample, match="no picture of the views AP; only LATERAL, PA"):
        data[0]
    assert len(data[1].media) == 2
    assert data[1].messages[1].text.startswith("There is no focal")


def test_splits_of_one_folder_have_nothing_in_common(tmp_path):
    folder = str(mimic_folder(tmp_path))
    train, test = (Mixture([Source(source=folder, split=split)]) for split in ("train", "test"))
    assert shared({"train": train, "test": test}) == []
    assert len(shared({"train": train, "test": train})) == 1


def test_a_part_of_the_set_has_the_splits_of_its_studies(tmp_path):
    folder = mimic_folder(tmp_path, ".csv")
    metadata = folder / "mimic-cxr-2.0.0-metadata.csv"
    lines = metadata.read_text().splitlines(keepends=True)
    metadata.write_text("".join(line for line in lines if "57375967" not in line))
    assert list(splits(folder)) == ["train", "test"]
    assert {name: len(data) for name, data in open_splits(folder)[0].items()} == {"train": 2, "test": 1}
    metadata.write_text("damaged")
    assert list(splits(folder)) == ["train", "validation", "test"]


def test_without_a_split_all_is_training(tmp_path):
    assert len(Dataset(mimic_folder(tmp_path, with_split=False))) == len(STUDIES)


def test_through_parquet_to_qwenvl(tmp_path):
    folder = mimic_folder(tmp_path / "mimic")
    convert(folder, tmp_path / "train.parquet", split="train")
    kept = Dataset(tmp_path / "train.parquet")
    assert [MIMIC.write(sample) | {"images": None} for sample in kept] == [
        MIMIC.write(sample) | {"images": None} for sample in Dataset(folder, "train")
    ]
    convert(tmp_path / "train.parquet", tmp_path / "lines" / "train.jsonl", "qwenvl")
    line = json.loads((tmp_path / "lines" / "train.jsonl").read_text("utf-8").splitlines()[0])
    assert line["conversations"][0]["value"] == "<image><image>" + mimic.QUESTIONS["findings", "impression"]
    again = Dataset(tmp_path / "lines" / "train.jsonl")[0]
    assert again.messages == kept[0].messages
    assert again.opener.open(again.media[0]).tobytes() == kept[0].opener.open(kept[0].media[0]).tobytes()


def test_what_is_wrong_with_a_folder(tmp_path):
    folder = mimic_folder(tmp_path, ".csv")
    metadata, listed = (folder / f"mimic-cxr-2.0.0-{kind}.csv" for kind in ("metadata", "split"))
    good, good_split = metadata.read_text(), listed.read_text()
    report = folder / "files/p10/p10000032/s50414267.txt"
    for file, content, sentence in (
        (metadata, good.replace("study_id", "study"), 'no column "study_id"; there are dicom_id, subject_id, study'),
        (metadata, good.replace("aa-1", "../a"), "'../a' is no dicom_id"),
        (metadata, good.replace("10000764", "x"), "'x' is no subject_id"),
        (metadata, good + "one,two\n", "not a readable CSV file"),
        (
            listed,
            good_split.replace("aa-1,50414267,10000032,train", "aa-1,50414267,10000032,test"),
            "study 50414267 is in several splits",
        ),
        (listed, good_split.replace("validate", "dev"), "unknown split 'dev'; use train, validate, test"),
        (listed, "dicom_id,study_id,split\n", "has no split for study"),
    ):
        before = file.read_text()
        file.write_text(content)
        with pytest.raises(BadInput) as caught:
            Rows(folder, "train")
        assert sentence in str(caught.value)
        assert str(file) in str(caught.value)
        file.write_text(before)
    report.write_bytes(b"\xff")
    with pytest.raises(BadSample, match=r"s50414267\.txt: the report is no UTF-8 \(byte 1\)"):
        Dataset(folder, "train")[0]
    report.unlink()
    with pytest.raises(BadSample, match="no report of this study") as caught:
        Dataset(folder, "train")[0]
    assert caught.value.reason == "report_missing"
    with pytest.raises(BadInput, match='no split "trian"; did you mean "train"'):
        Dataset(folder, "trian")


def test_a_table_of_pictures_and_sections():
    row = {
        "dicom_id": "aa",
        "image": {"bytes": file_of(picture(8, 8)), "path": "aa.jpg"},
        "findings": " Clear.\n",
        "impression": "",
    }
    sample = MIMIC.read(row, PLACE)
    assert (sample.id, sample.messages[1].text, sample.media[0].origin) == ("aa", "Clear.", "aa.jpg")
    assert MIMIC.write(sample) == row
