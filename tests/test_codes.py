"""Packing, Hamming distance and the code table, against plain loops, hostile files and a failing disk."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from distilhash.codes import CodeTable, hamming, pack, packed_pair, to_words, unpack
from distilhash.errors import DistilhashError


def random_codes(rng, count, bits, dtype=np.int8):
    return rng.choice(np.array([-1, 1], dtype), (count, bits))


def table(labels=None, num_bits=20):
    names = ["a.png", "", "naïve/猫 🐈.jpg", "nul\0and\nline", "not-utf8-\udcff"]
    codes = random_codes(np.random.default_rng(3), len(names), num_bits)
    return CodeTable(pack(codes), num_bits, names, labels, {"model": "v1", "ключ": [1, None, {"a": 0.5}]})


def test_a_bit_is_one_where_the_code_is_positive_first_bit_highest():
    assert pack([[1, -1, -1, -1, -1, -1, 1, -1, 1]]).tolist() == [[0b10000010, 0b10000000]]
    assert pack(np.array([[0.5, -0.1, 0.0, 7.0]])).tolist() == [[0b10010000]]


@pytest.mark.parametrize("bits", range(1, 71))
def test_unpack_undoes_pack_and_the_padding_is_zero(bits):
    codes = random_codes(np.random.default_rng(bits), 9, bits)
    packed = pack(codes)
    assert packed.dtype == np.uint8
    assert packed.shape == (9, -(-bits // 8))
    restored = unpack(packed, bits)
    assert restored.dtype == np.int8
    np.testing.assert_array_equal(restored, codes)
    assert np.bitwise_count(packed).sum() == np.count_nonzero(codes > 0)
    words = to_words(packed)
    assert words.shape == (9, -(-bits // 64))
    assert np.bitwise_count(words).sum() == np.count_nonzero(codes > 0)


@pytest.mark.parametrize("bits", [1, 7, 8, 16, 48, 63, 64, 65, 130, 255, 256, 300])
def test_hamming_counts_the_entries_that_differ(bits):
    rng = np.random.default_rng(bits)
    query, database = random_codes(rng, 5, bits), random_codes(rng, 11, bits)
    database[0] = -query[0]  # the largest distance there is
    expected = [[sum(a != b for a, b in zip(q, d, strict=True)) for d in database] for q in query]
    distances = hamming(query, database)
    assert distances.dtype == (np.uint8 if bits <= 255 else np.uint16)
    assert distances.tolist() == expected
    for left in (query.astype(np.float32), query.tolist(), pack(query)):
        for right in (database.astype(np.int64), pack(database), np.asfortranarray(pack(database))):
            assert hamming(left, right, num_bits=bits).tolist() == expected
    assert hamming(pack(query), pack(database)).tolist() == expected  # the padding is the same on both sides
    assert hamming(query[:0], database).shape == (0, 11)
    assert hamming(query, pack(database)[:0]).shape == (5, 0)


@pytest.mark.parametrize(
    ("query", "database", "num_bits", "message"),
    [
        ([[1, -1]], [[1, -1, 1]], None, "same number of bits; got 3 in database_codes, 2 elsewhere"),
        ([[1, -1]], [[1, -1]], 3, "same number of bits; got 2 in query_codes, 3 elsewhere"),
        ([1, -1], [[1, -1]], None, r"query_codes must be an array of two dimensions.*got shape \(2,\)"),
        ([[]], [[]], None, r"query_codes must be .* got shape \(1, 0\)"),
        ([[1, 0]], [[1, -1]], None, r"query_codes must hold -1 and \+1 only; got 0 \(int64\); take np.where"),
        ([[1, -1]], [[1.0, np.nan]], None, r"database_codes must hold -1 and \+1 only; got nan"),
        ([[True, False]], [[1, -1]], None, r"query_codes must hold -1 and \+1 only; got True \(bool\)"),
        ([["a", "b"]], [[1, -1]], None, r"query_codes must hold -1 and \+1 only; got a"),
        (np.zeros((1, 2), np.uint8), np.zeros((1, 2), np.uint8), None, "packed codes .* pass num_bits="),
        (np.zeros((1, 2), np.uint8), np.zeros((1, 2), np.uint8), 17, "2 bytes a code for 17 bits; 17 bits take 3"),
        (np.zeros((1, 2), np.uint8), np.zeros((1, 1), np.uint8), 16, "packed database_codes do not fit"),
        (np.ones((1, 1), np.uint8), np.zeros((1, 1), np.uint8), 7, "bits set beyond their length of 7"),
        (np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.uint8), 0, "number of bits must be at least 1; got 0"),
    ],
)
def test_codes_that_do_not_fit_are_refused_in_one_sentence(query, database, num_bits, message):
    with pytest.raises(DistilhashError, match=message):
        packed_pair(query, database, num_bits)


def test_pack_and_unpack_refuse_what_has_no_sign_or_shape():
    with pytest.raises(DistilhashError, match=r"two dimensions, \(images, bits\); got shape \(3,\)"):
        pack([1, -1, 1])
    with pytest.raises(DistilhashError, match="NaN, which has no sign"):
        pack([[1.0, np.nan]])
    with pytest.raises(DistilhashError, match=r"packed codes must be uint8 of two dimensions.*got int64 \(1, 1\)"):
        unpack([[1]], 8)


@pytest.mark.parametrize(
    "labels",
    [
        None,
        np.array([3, -1, 0, 2**40, 3]),
        np.array([[0, 1, 1], [0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 0, 1]], np.uint8),
    ],
)
def test_a_saved_table_comes_back_as_it_was(tmp_path, labels):
    written = table(labels)
    written.save(tmp_path / "codes.safetensors")
    read = CodeTable.load(tmp_path / "codes.safetensors")
    assert len(read) == 5
    assert (read.num_bits, read.names, read.provenance) == (written.num_bits, written.names, written.provenance)
    np.testing.assert_array_equal(read.packed, written.packed)
    if labels is None:
        assert read.labels is None
    else:
        assert read.labels is not None
        assert read.labels.dtype == labels.dtype
        np.testing.assert_array_equal(read.labels, labels)
    assert [path.name for path in tmp_path.iterdir()] == ["codes.safetensors"]


def test_an_empty_table_and_non_contiguous_codes_survive(tmp_path):
    CodeTable(np.zeros((0, 2), np.uint8), 16, []).save(tmp_path / "empty")
    assert len(CodeTable.load(tmp_path / "empty")) == 0
    packed = np.random.default_rng(0).integers(0, 256, (6, 4), np.uint8)[::2, ::2]
    CodeTable(packed, 16, ["a", "b", "c"], np.arange(6)[::2]).save(tmp_path / "strided")
    read = CodeTable.load(tmp_path / "strided")
    np.testing.assert_array_equal(read.packed, packed)
    np.testing.assert_array_equal(read.labels, [0, 2, 4])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((2, 1), np.uint8), 8, ["a"]), "one name a code; got 1 names, 2 codes"),
        ((np.zeros((2, 1), np.uint8), 9, ["a", "b"]), "1 bytes a code for 9 bits"),
        ((np.zeros((2, 1), np.int8), 8, ["a", "b"]), r"packed codes must be uint8 .* got int8 \(2, 1\)"),
        ((np.zeros((2, 1), np.uint8), 8, ["a", "b"], np.arange(3)), "one label a code; got 3 labels, 2 codes"),
        ((np.zeros((2, 1), np.uint8), 8, ["a", "b"], np.ones(2)), r"labels must be \(N,\) integer .* got float64"),
        ((np.zeros((1, 1), np.uint8), 8, ["a"], np.array([[2]], np.uint8)), r"labels must be .* 0/1"),
        ((np.zeros((1, 1), np.uint8), 8, ["a"], np.array(1)), r"labels must be .* got int64 \(\)"),
    ],
)
def test_a_table_whose_parts_do_not_fit_is_refused(arguments, message):
    with pytest.raises(DistilhashError, match=message):
        CodeTable(*arguments)


def test_load_says_that_there_is_no_such_file(tmp_path):
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(DistilhashError, match=r"no code table at this path; got .*distilhash encode"):
            CodeTable.load(path)


def test_load_refuses_noise_and_every_truncation(tmp_path):
    path = tmp_path / "codes"
    table(np.arange(5)).save(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    noise = [rng.bytes(size) for size in (0, 1, 8, 9, 100, 5000)]
    for data in [*noise, *(whole[:size] for size in range(0, len(whole), 7)), whole + b"\0"]:
        path.write_bytes(data)
        with pytest.raises(DistilhashError, match=r"not a code table; got .*write it again"):
            CodeTable.load(path)


def test_a_damaged_byte_gives_a_table_or_a_user_error_and_nothing_else(tmp_path):
    path = tmp_path / "codes"
    table(np.eye(5, dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    refused = 0
    for position in rng.permutation(len(whole))[:400]:
        damaged = bytearray(whole)
        damaged[position] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            CodeTable.load(path)
        except DistilhashError:
            refused += 1
    assert refused > 200  # most of a small file is its header


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"format": "other"}, "its format is 'other', version '1'"),
        ({"version": "2"}, "version '2'"),
        ({"num_bits": "64"}, "do not fit their number of bits"),
        ({"num_bits": "many"}, "invalid literal"),
        ({"provenance": "[]"}, "its provenance is not an object"),
        ({"provenance": "{" * 100_000}, "Expecting property name"),
        ({"provenance": '{"a":' * 100_000}, "recursion"),
        ({"provenance": None}, "provenance is missing"),
        ({"packed": None}, "packed is missing"),
        ({"packed": np.zeros((5, 3), np.int8)}, "packed codes must be uint8"),
        ({"packed": np.full((5, 3), 255, np.uint8)}, "bits set beyond"),
        ({"names_utf8": np.frombuffer(b"\xff" * 5, np.uint8)}, "can't decode"),
        ({"names_utf8": np.zeros((1, 5), np.uint8)}, "its names are not"),
        ({"name_ends": np.array([1, 2, 3, 4], np.int64)}, "its name ends do not fit"),
        ({"name_ends": np.array([3, 2, 4, 4, 5], np.int64)}, "its name ends do not fit"),
        ({"name_ends": np.array([-1, 2, 4, 4, 5], np.int64)}, "its name ends do not fit"),
        ({"name_ends": np.arange(6, dtype=np.int64)}, "6 names, 5 codes"),
        ({"labels": np.zeros(4, np.int64)}, "4 labels, 5 codes"),
        ({"labels": np.zeros(5, np.float32)}, "labels must be"),
    ],
)
def test_load_refuses_a_well_formed_file_that_is_not_a_table(tmp_path, change, cause):
    tensors = {
        "packed": np.zeros((5, 3), np.uint8),
        "names_utf8": np.frombuffer(b"abcde", np.uint8),
        "name_ends": np.arange(1, 6, dtype=np.int64),
    }
    header = {"format": "distilhash.codes", "version": "1", "num_bits": "20", "provenance": "{}"}
    path = tmp_path / "codes"
    path.write_bytes(safetensors.numpy.save(tensors, {"distilhash": json.dumps(header)}))
    assert CodeTable.load(path).names == list("abcde")
    for name, value in change.items():
        part = header if name in {"format", "version", "num_bits", "provenance"} else tensors
        part[name] = value
        if value is None:
            del part[name]
    path.write_bytes(safetensors.numpy.save(tensors, {"distilhash": json.dumps(header)}))
    with pytest.raises(DistilhashError, match="not a code table") as caught:
        CodeTable.load(path)
    assert cause in str(caught.value)


@pytest.mark.parametrize("kind", ["BF16", "F8_E4M3"])
def test_load_refuses_a_tensor_of_a_type_that_numpy_lacks(tmp_path, kind):
    described = {"format": "distilhash.codes", "version": "1", "num_bits": "8", "provenance": "{}"}
    header = {
        "__metadata__": {"distilhash": json.dumps(described)},
        "packed": {"dtype": kind, "shape": [2 if kind == "F8_E4M3" else 1, 1], "data_offsets": [0, 2]},
    }
    text = json.dumps(header).encode()
    (tmp_path / "codes").write_bytes(len(text).to_bytes(8, "little") + text + b"\0\0")
    with pytest.raises(DistilhashError, match="not a code table"):
        CodeTable.load(tmp_path / "codes")


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("before", [None, b"the table of yesterday"])
def test_a_full_disk_leaves_what_was_there_and_no_part(tmp_path, monkeypatch, step, before):
    path = tmp_path / "codes"
    if before is not None:
        path.write_bytes(before)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*((os, "fsync", full) if step == "fsync" else (Path, "replace", full)))
    with pytest.raises(DistilhashError, match=r"cannot write .*codes; got No space left on device; free some room"):
        table().save(path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == ({} if before is None else {"codes": before})


def test_an_interrupted_write_leaves_no_part(tmp_path, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        table().save(tmp_path / "codes")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_the_users_to_mend(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "directory").mkdir()
    for path in (tmp_path / "file" / "codes", tmp_path / "directory"):
        with pytest.raises(DistilhashError, match="cannot write"):
            table().save(path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["directory", "file"]


def test_equal_tables_are_equal_files(tmp_path):
    written = set()
    for number in range(6):  # the order of several header keys would be random
        table().save(tmp_path / str(number))
        written.add((tmp_path / str(number)).read_bytes())
    assert len(written) == 1
