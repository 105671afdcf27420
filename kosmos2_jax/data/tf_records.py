"""TFRecords and tf.train.Examples without TensorFlow, whose import takes seconds in each process.

Formats: https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details and
https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/example/feature.proto.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping, Sequence
from typing import Any

# Of tf.train.Example what holds bytes; numbers are unknown fields.
_SCHEMA = """
name: "example.proto" package: "tensorflow" syntax: "proto3"
message_type {
  name: "BytesList"
  field { name: "value" number: 1 type: TYPE_BYTES label: LABEL_REPEATED }
}
message_type {
  name: "Feature"
  field { name: "bytes_list" number: 1 type: TYPE_MESSAGE type_name: ".tensorflow.BytesList" }
}
message_type {
  name: "Features"
  nested_type {
    name: "FeatureEntry" options { map_entry: true }
    field { name: "key" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL }
    field {
      name: "value" number: 2 type: TYPE_MESSAGE label: LABEL_OPTIONAL
      type_name: ".tensorflow.Feature"
    }
  }
  field {
    name: "feature" number: 1 type: TYPE_MESSAGE label: LABEL_REPEATED
    type_name: ".tensorflow.Features.FeatureEntry"
  }
}
message_type {
  name: "Example"
  field { name: "features" number: 1 type: TYPE_MESSAGE type_name: ".tensorflow.Features" }
}
"""
_MASK = 0xA282EAD8


def make_example(features: Mapping[str, Sequence[bytes]]) -> bytes:
    """Serialises a tf.train.Example of lists of bytes; the same features give the same bytes."""
    example = _example_class()()
    for name, values in features.items():
        example.features.feature[name].bytes_list.value.extend(values)
    return example.SerializeToString(deterministic=True)


def parse_example(serialised: bytes) -> dict[str, tuple[bytes, ...]]:
    """Returns the lists of bytes of a tf.train.Example, by name; empty where there are numbers.

    Raises:
      ValueError: this is no such thing.
    """
    from google.protobuf.message import DecodeError

    try:
        found = _example_class().FromString(serialised).features.feature
    except DecodeError as error:
        raise ValueError(str(error)) from None
    return {name: tuple(feature.bytes_list.value) for name, feature in found.items()}


@functools.cache
def _example_class() -> Any:
    """The message, in a pool of its own: TensorFlow's may be in the common one."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

    pool = descriptor_pool.DescriptorPool()
    pool.Add(text_format.Parse(_SCHEMA, descriptor_pb2.FileDescriptorProto()))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


def framed(record: bytes) -> bytes:
    """A record as it stands in a TFRecord file, which is nothing but these one after the other."""
    length = struct.pack("<Q", len(record))
    return length + _checksum(length) + record + _checksum(record)


def _checksum(content: bytes) -> bytes:
    """CRC-32C, rotated and shifted so that sums of sums stay good."""
    import google_crc32c

    crc = google_crc32c.value(content)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + _MASK) & 0xFFFFFFFF)
