"""Readers of the image sets: right content, and a clear refusal of everything else."""

from __future__ import annotations

import dataclasses
import gzip
import struct

import numpy as np
import pytest
import torch
from image_files import idx_bytes, image_data, write_batch_set, write_idx_set

from bll.data import BatchSampler, DataError, ImageData, load_dataset, to_splits
from bll.data.cifar10 import OFFICIAL_FILES as CIFAR_FILES
from bll.data.cifar10 import load_cifar10, parse_batch
from bll.data.fashion_mnist import OFFICIAL_FILES as FASHION_FILES
from bll.data.fashion_mnist import load_fashion_mnist
from bll.data.idx import parse_idx
from bll.data.splits import channel_statistics


def test_digits_split_is_fixed_and_stratified():
    data = load_dataset("digits")
    assert data.image_shape == (1, 8, 8)
    assert (len(data.train_labels), len(data.test_labels)) == (1442, 355)
    shares = np.bincount(data.test_labels) / np.bincount(
        np.concatenate([data.train_labels, data.test_labels])
    )
    assert shares.min() > 0.19 and shares.max() <= 0.2
    again = load_dataset("digits")
    assert np.array_equal(data.test_images, again.test_images)


def test_fashion_mnist_reads_what_was_written(tmp_path):
    files = write_idx_set(tmp_path)
    data = load_fashion_mnist([tmp_path], files)
    assert data.train_images.shape == (40, 1, 28, 28)
    assert data.test_labels.tolist() == [n % 10 for n in range(20)]
    raw = gzip.decompress((tmp_path / files.train_images.name).read_bytes())
    assert data.train_images.tobytes() == raw[16:]


def test_cifar_reads_what_was_written(tmp_path):
    files = write_batch_set(tmp_path)
    data = load_cifar10([tmp_path], files)
    assert data.train_images.shape == (50, 3, 32, 32)
    third = (tmp_path / "data_batch_3.bin").read_bytes()
    assert data.train_images[20].tobytes() == third[1:3073]
    assert data.train_labels[20:30].tolist() == [third[3073 * n] for n in range(10)]
    test = (tmp_path / "test_batch.bin").read_bytes()
    assert data.test_images[9].tobytes() == test[-3072:]


def test_files_may_lie_in_several_directories(tmp_path):
    files = write_batch_set(tmp_path)
    (tmp_path / "more").mkdir()
    (tmp_path / "test_batch.bin").rename(tmp_path / "more" / "test_batch.bin")
    assert len(load_cifar10([tmp_path, tmp_path / "more"], files).test_labels) == 10
    with pytest.raises(DataError, match=r"test_batch\.bin: no such file in"):
        load_cifar10([tmp_path], files)


def test_official_descriptions_have_the_official_sizes():
    assert FASHION_FILES.train_images.size == 16 + 60_000 * 28 * 28
    assert FASHION_FILES.test_labels.size == 8 + 10_000
    assert {file.size for file in (*CIFAR_FILES.train, CIFAR_FILES.test)} == {30_730_000}
    digests = [file.sha256 for file in (*CIFAR_FILES.train, CIFAR_FILES.test)]
    assert len(set(digests)) == 6 and all(len(digest) == 64 for digest in digests)


def _truncate_content(path):
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))


def _append(path):
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + b"x"))


def _cut_stream(path):
    path.write_bytes(path.read_bytes()[:-9])


def _flip(path):
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[100] ^= 1
    path.write_bytes(gzip.compress(bytes(content)))


def _not_gzip(path):
    path.write_bytes(gzip.decompress(path.read_bytes()))


def _remove(path):
    path.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate_content, r"expected 31376 bytes of content, got 31375"),
        (_append, r"expected 31376 bytes of content, got more than 31376"),
        (_cut_stream, r"could not be read to its end"),
        (_flip, r"SHA-256 of the content does not match: expected [0-9a-f]{64}, got"),
        (_not_gzip, r"could not be read to its end"),
        (_remove, r"no such file in"),
    ],
)
def test_damaged_file_is_refused_by_name(tmp_path, damage, message):
    files = write_idx_set(tmp_path)
    damage(tmp_path / "train-images-idx3-ubyte.gz")
    with pytest.raises(DataError, match=message) as caught:
        load_fashion_mnist([tmp_path], files)
    assert "train-images-idx3-ubyte.gz" in str(caught.value)


def test_genuine_file_of_another_set_is_refused(tmp_path):
    files = write_idx_set(tmp_path, seed=0)
    write_idx_set(tmp_path, seed=1)
    with pytest.raises(DataError, match="SHA-256"):
        load_fashion_mnist([tmp_path], files)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\0\0\x08", "header of 16 bytes, got 3"),
        (struct.pack(">4I", 0x0803, 2, 3, 3), r"shape \(2, 3, 3\) needs 34 bytes, got 16"),
        (struct.pack(">4I", 0x0D03, 0, 3, 3), "magic 0x00000803, got 0x00000d03"),
        (struct.pack(">4I", 0x0801, 0, 3, 3), "magic 0x00000803, got 0x00000801"),
    ],
)
def test_bad_idx_header(content, message):
    with pytest.raises(DataError, match=message):
        parse_idx(content, "file", ndim=3)


def test_idx_round_trip():
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    assert np.array_equal(parse_idx(idx_bytes(array), "file", ndim=3), array)


@pytest.mark.parametrize("size", [0, 3072, 3074])
def test_batch_must_be_whole_records(size):
    with pytest.raises(DataError, match=f"whole records of 3073 bytes, got {size}"):
        parse_batch(bytes(size), "batch")


@pytest.mark.parametrize(
    ("name", "directories", "message"),
    [
        ("mnist", ["x"], "expected one of digits, fashion-mnist, cifar-10, got 'mnist'"),
        ("digits", ["x"], "takes no directory"),
        ("cifar-10", [], "no directory"),
        ("fashion-mnist", ["/nonexistent"], "no such file"),
    ],
)
def test_load_dataset_refuses(name, directories, message):
    with pytest.raises(DataError, match=message):
        load_dataset(name, directories)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_labels": np.full(64, 3)}, "expected labels 0 to 2, got 3 to 3"),
        ({"train_labels": np.full(64, -1)}, "got -1 to -1"),
        ({"test_labels": np.zeros(3, np.int64)}, r"expected 40 labels, got shape \(3,\)"),
        ({"train_images": np.zeros((64, 8, 8), np.uint8)}, r"\[N, C, H, W\]"),
        ({"test_images": np.zeros((40, 1, 8, 9), np.uint8)}, "test images"),
        ({"test_images": np.zeros((0, 1, 8, 8), np.uint8)}, "expected images"),
    ],
)
def test_arrays_that_do_not_fit(change, message):
    with pytest.raises(DataError, match=message):
        dataclasses.replace(image_data(), **change)


def test_splits_are_normalised_by_the_training_set():
    data = image_data(shape=(2, 8, 8))
    train, test = to_splits(data, dtype=torch.float64)
    assert train.images.shape == (64, 2, 8, 8) and len(test) == 40
    flat = train.images.transpose(0, 1).flatten(1)
    assert flat.mean(1).abs().max() < 1e-12
    assert (flat.std(1, unbiased=False) - 1).abs().max() < 1e-12
    mean, std = channel_statistics(data.train_images)
    expected = (data.test_images - mean[:, None, None]) / std[:, None, None]
    assert np.allclose(test.images.numpy(), expected, atol=1e-12)
    assert test.labels.tolist() == data.test_labels.tolist()


def test_splits_can_be_channels_last_with_equal_values():
    data = image_data(shape=(3, 8, 8))
    plain, _ = to_splits(data)
    last, _ = to_splits(data, channels_last=True)
    assert last.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain.images, last.images)


def test_constant_images_cannot_be_normalised():
    data = image_data()
    constant = ImageData(
        "flat", data.class_names, np.zeros_like(data.train_images), data.train_labels,
        data.test_images, data.test_labels,
    )  # fmt: skip
    with pytest.raises(DataError, match="every pixel is 0"):
        to_splits(constant)


def test_sampler_visits_each_image_once_and_differs_between_epochs():
    sampler = BatchSampler(10, 3, seed=5)
    epochs = []
    for _ in range(2):
        epochs.append(torch.cat([sampler.next_batch() for _ in range(3)]))
        assert sampler.epoch_is_over
        with pytest.raises(RuntimeError, match="the epoch is over"):
            sampler.next_batch()
        sampler.next_epoch()
    assert all(len(set(epoch.tolist())) == 9 for epoch in epochs)
    assert not torch.equal(*epochs)


@pytest.mark.parametrize("stop", range(7))
def test_sampler_continues_from_any_position(stop):
    def batches(sampler, count):
        for _ in range(count):
            if sampler.epoch_is_over:
                sampler.next_epoch()
            yield sampler.next_batch().tolist()

    whole = list(batches(BatchSampler(10, 3, seed=5), 9))
    first = BatchSampler(10, 3, seed=5)
    head = list(batches(first, stop))
    second = BatchSampler(10, 3, seed=99)
    second.restore(first.state())
    assert head + list(batches(second, 9 - stop)) == whole


@pytest.mark.parametrize("batch_size", [0, -1, 11])
def test_sampler_refuses_batch_size(batch_size):
    with pytest.raises(ValueError, match="batch_size: expected 1 to 10"):
        BatchSampler(10, batch_size, seed=0)
