import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from holdfast.data import load_data
from holdfast.errors import UserError


def pixels(count, seed=0, side=6):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, images, labels, *, struct=True, column="img", metadata=None, **extra):
    encoded = [png(image) for image in images]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    values = pa.array([{"bytes": b, "path": None} for b in encoded], kind) if struct else pa.array(encoded, pa.binary())
    table = pa.table({column: values, "label": labels, **extra}).replace_schema_metadata(metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=7)
    return path


def test_splits_as_tables_keep_order_classes_and_columns(tmp_path):
    train, test = pixels(20), pixels(10, seed=1)
    names = {"classes": "ant,bee"}
    write(tmp_path / "train.parquet", train, [i % 2 for i in range(20)], metadata=names, group=list(range(20)))
    write(tmp_path / "test.parquet", test, [1] * 10, metadata=names, group=list(range(10)), place=list("abcdefghij"))
    data = load_data(str(tmp_path))
    assert data.classes == ("ant", "bee")
    assert np.array_equal(data.train.x.numpy(), train.transpose(0, 3, 1, 2))
    assert np.array_equal(data.test.x.numpy(), test.transpose(0, 3, 1, 2))
    assert data.test.y.tolist() == [1] * 10
    assert torch.equal(data.train.columns["group"], torch.arange(20))
    assert "place" not in data.train.columns


def test_one_table_is_shared_out_and_rows_stay_together(tmp_path):
    images = pixels(40)
    labels = ["bee", "ant"] * 20
    path = write(tmp_path / "one.parquet", images, labels, struct=False, column="image", row=list(range(40)))
    data = load_data(str(path))
    assert data.classes == ("ant", "bee")
    assert [len(s) for s in (data.train, data.val, data.test)] == [24, 6, 10]
    for split in (data.train, data.val, data.test):
        rows = split.columns["row"].numpy()
        assert np.array_equal(split.x.numpy(), images[rows].transpose(0, 3, 1, 2))
        assert [data.classes[i] for i in split.y.tolist()] == [labels[r] for r in rows]


def test_shards_of_a_split_are_joined(tmp_path):
    images = pixels(12)
    for shard in (0, 1):
        rows = slice(6 * shard, 6 * shard + 6)
        write(tmp_path / "data" / f"test-0000{shard}-of-00002.parquet", images[rows], [0, 1] * 3)
    assert np.array_equal(load_data(str(tmp_path)).test.x.numpy(), images.transpose(0, 3, 1, 2))


def test_class_names_of_hugging_face_are_understood(tmp_path):
    features = {"info": {"features": {"label": {"names": ["ant", "bee", "cow"], "_type": "ClassLabel"}}}}
    write(tmp_path / "test.parquet", pixels(4), [0, 1, 0, 1], metadata={"huggingface": json.dumps(features)})
    assert load_data(str(tmp_path)).classes == ("ant", "bee", "cow")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop_columns(["img"]), "no column holds encoded images.*got columns label"),
        (lambda t: t.drop_columns(["label"]), "no column holds labels.*got columns img"),
        (lambda t: t.slice(0, 0), "the table is empty"),
        (lambda t: t.set_column(1, "label", pa.array([0, 1, 2, 5])), r"labels must lie in 0..1 .*got 0..5"),
        (lambda t: t.set_column(1, "label", pa.array([0, 1, None, 1])), "1 labels are missing"),
        (lambda t: t.set_column(1, "label", pa.array([[0], [1], [0], [1]])), "whole numbers or text, got list"),
        (lambda t: t.replace_schema_metadata({"classes": "[ant"}), "no JSON list"),
        (lambda t: t.set_column(1, "label", pa.array([0.5, 1, 1, 1])), "labels must be whole numbers or text"),
        (lambda t: t.set_column(1, "label", pa.array(["ant", "bee", "yak", "ant"])), "'yak' is none of the classes"),
        (
            lambda t: t.set_column(0, "img", pa.array([b"x", b"y", b"z", b"w"], pa.binary())),
            r"row 0 cannot be read as an image",
        ),
        (
            lambda t: t.set_column(0, "img", pa.array([None, b"y", b"z", b"w"], pa.binary())),
            r"row 0 holds no image",
        ),
    ],
)
def test_what_is_wrong_with_a_table_is_said_in_one_sentence(tmp_path, change, message):
    path = write(tmp_path / "test.parquet", pixels(4), [0, 1, 0, 1], metadata={"classes": "ant,bee"})
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(UserError, match=message) as caught:
        load_data(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_table_or_was_cut_off_is_refused(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match="cannot be read as a parquet table"):
        load_data(str(tmp_path / "a.parquet"))
    path = write(tmp_path / "b.parquet", pixels(40), [0, 1] * 20)
    good = path.read_bytes()
    path.write_bytes(good[:100] + b"\0" * 2000 + good[2100:])  # the footer is whole, the pages are not
    with pytest.raises(UserError, match=r"b\.parquet"):
        load_data(str(path))


def test_an_edited_table_is_decoded_anew(tmp_path):
    path = write(tmp_path / "test.parquet", pixels(4), [0, 1, 0, 1])
    before = load_data(str(tmp_path)).test.x.clone()
    write(path, pixels(4, seed=9), [0, 1, 0, 1])
    assert not torch.equal(load_data(str(tmp_path)).test.x, before)
