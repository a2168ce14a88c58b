"""How strong a network's features are at each place, layer by layer."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from posefix_jax.core.models.network import RefinerSpec


def feature_strengths(
    spec: RefinerSpec,
    variables: dict,
    image: Float[Array, "H W 3"],
    crop_xy: Float[Array, "K 2"],
    present: Bool[Array, " K"],
) -> tuple[list[Float[Array, "_h _w"]], Float[Array, "h w K"]]:
    """The norm over the channels of the features of one crop.

    Args:
      spec, variables: of the refiner. The spec is static.
      image: the crop, RGB 0..255.
      crop_xy, present: the pose in it, crop pixels.

    Returns:
      A map for each resolution that the network goes through, in its order, of the last layer that it has there; and the
      logits.
    """
    passed: list[Array] = []

    def record(call, given, options, context):
        result = call(*given, **options)
        # Sums and activations are no modules: what they give counts where the head reads it.
        features = given[0] if context.module.path[-1:] == ("head",) else result
        if getattr(features, "ndim", 0) == 4 and context.method_name == "__call__" and context.module.path:
            strength = jnp.linalg.norm(features[0].astype(jnp.float32), axis=-1)
            if passed and passed[-1].shape == strength.shape:
                passed.pop()
            passed.append(strength)
        return result

    with nn.intercept_methods(record):
        logits = spec.network().apply(variables, image[None], crop_xy[None], present[None])
    return passed, logits[0]
