"""From the features of a task to the batch the model reads."""

from __future__ import annotations

from collections.abc import Mapping

import seqio
import tensorflow as tf

_Spec = seqio.FeatureConverter.FeatureSpec

TEXT_SLOT = -1  # in image_slots: this place holds text


class Kosmos2FeatureConverter(seqio.FeatureConverter):
    """Shifts by one and pads to fixed shapes, one example a row.

    Never asks whether an id is 0, as seqio's own converters do: 0 is `<s>` here, and weights are
    fractions. Rows carry segment ids and positions, so that rows of several examples can come
    later without a change of the model.

    Model features (L = length of "targets" - 1, N = length of "images"):
      tokens, targets int32 [L]: inputs and what follows each of them.
      loss_weights float32 [L]: weight of predicting `targets`.
      positions int32 [L]: place within the example, from 0.
      segment_ids int32 [L]: 1 for the example, 0 for padding.
      image_slots int32 [L]: picture * num_latents + slot, -1 at text.
      images uint8 [N, S, S, 3]: pictures in reading order, missing ones black.
    """

    TASK_FEATURES = {
        "targets": _Spec(dtype=tf.int32),
        "loss_weights": _Spec(dtype=tf.float32),
        "image_slots": _Spec(dtype=tf.int32),
        "images": _Spec(dtype=tf.uint8, rank=4),
    }
    MODEL_FEATURES = {
        "tokens": _Spec(dtype=tf.int32),
        "targets": _Spec(dtype=tf.int32),
        "loss_weights": _Spec(dtype=tf.float32),
        "positions": _Spec(dtype=tf.int32),
        "segment_ids": _Spec(dtype=tf.int32),
        "image_slots": _Spec(dtype=tf.int32),
        "images": _Spec(dtype=tf.uint8, rank=4),
    }
    PACKING_FEATURE_DTYPES: Mapping[str, tf.DType] = {}

    def __init__(self, image_size: int, pad_id: int = 1) -> None:
        """Creates a converter.

        Args:
          image_size: S, pixels a side that every picture has.
          pad_id: id written behind the end of a sequence; it has no weight and no segment.
        """
        # seqio's length checks cost more than all the rest; padding fails on its own.
        super().__init__(pack=False, apply_length_check=False)
        self._image_size = image_size
        self._pad_id = pad_id

    def _convert_features(
        self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
    ) -> tf.data.Dataset:
        length = task_feature_lengths["targets"] - 1
        images = task_feature_lengths["images"]

        def convert(features: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            ids = features["targets"]
            size = tf.size(ids) - 1

            def pad(values: tf.Tensor, filler: int) -> tf.Tensor:
                padded = tf.pad(values, [[0, length - size]], constant_values=filler)
                return tf.ensure_shape(padded, [length])

            return {
                "tokens": pad(ids[:-1], self._pad_id),
                "targets": pad(ids[1:], self._pad_id),
                "loss_weights": pad(features["loss_weights"][1:], 0),
                "positions": pad(tf.range(size), 0),
                "segment_ids": pad(tf.ones([size], tf.int32), 0),
                "image_slots": pad(features["image_slots"][:-1], TEXT_SLOT),
                "images": self._pad_images(features["images"], images),
            }

        return ds.map(convert)

    def _pad_images(self, pictures: tf.Tensor, count: int) -> tf.Tensor:
        shape = [count, self._image_size, self._image_size, 3]
        missing = count - tf.shape(pictures)[0]
        # Text alone comes with [0, 0, 0, 3], which cannot be padded to pictures.
        pictures = tf.reshape(pictures, [-1, *shape[1:]])
        return tf.ensure_shape(tf.pad(pictures, [[0, missing], [0, 0], [0, 0], [0, 0]]), shape)

    def get_model_feature_lengths(
        self, task_feature_lengths: Mapping[str, int]
    ) -> Mapping[str, int]:
        """Lengths of the model features, see the class."""
        length = task_feature_lengths["targets"] - 1
        lengths = dict.fromkeys(self.MODEL_FEATURES, length)
        return {**lengths, "images": task_feature_lengths["images"]}
