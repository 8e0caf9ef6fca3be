"""One table of ATen operations by kind. What a step may do with an operation is said where the step is, by kinds.

Names are those of ``trace.operation``: without overload and without the underscore of an operation in place.
"""

from __future__ import annotations

# A kind a line, or several. "zero" in a kind's name: 0 in, 0 out, whatever the other arguments are.
_TABLE = """
layer           linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d
rectifier zero  relu leaky_relu rrelu
activation zero relu6 silu gelu tanh hardswish elu celu selu mish hardshrink softshrink
activation      hardtanh sigmoid hardsigmoid softplus log_sigmoid
function zero   abs neg positive sign sgn square sqrt expm1 log1p erf sin tan asin atan sinh asinh atanh
function zero   round floor ceil trunc fix frac nan_to_num isnan isinf deg2rad rad2deg
function        rsqrt reciprocal exp exp2 log log2 log10 logit erfc cos acos cosh acosh isfinite logical_not
function        bitwise_not threshold
clamp           clamp clamp_min clamp_max clip
copy            alias clone contiguous detach lift_fresh_copy
cast            to _to_copy type_as
dropout         dropout feature_dropout
alpha dropout   alpha_dropout feature_alpha_dropout
like            ones_like full_like
new             new_zeros new_ones new_full new_empty
product zero    mul multiply
sum             add sub subtract rsub
extremum        maximum minimum fmax fmin
quotient        div divide true_divide floor_divide remainder fmod
comparison      eq ne lt le gt ge
logic           logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor __and __or __xor
of two          pow float_power hypot atan2 logaddexp logaddexp2 xlogy copysign where masked_fill addcmul addcdiv lerp
view            view reshape flatten unflatten view_as reshape_as
transpose       permute transpose t numpy_T mT mH movedim moveaxis swapaxes swapdims squeeze unsqueeze
expand          expand expand_as
cut             slice select narrow index_select
split           split split_with_sizes tensor_split unbind
join            cat concat concatenate
repeat          repeat tile
shuffle         roll flip pixel_shuffle pixel_unshuffle channel_shuffle
pad             pad constant_pad_nd
pool            max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d
pool            max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices
pool            adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
pool            adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
upsample        upsample_nearest1d upsample_nearest2d upsample_nearest3d
upsample        _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
upsample        upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d
upsample        _upsample_bilinear2d_aa _upsample_bicubic2d_aa
reduction zero  mean sum nansum nanmean prod amax amin var std any count_nonzero
reduction       all logsumexp argmax argmin linalg_vector_norm
largest         max min
scan            cumsum cumprod
softmax         softmax log_softmax
channel norm    batch_norm instance_norm
layer norm      layer_norm rms_norm
matrix product  matmul bmm mm baddbmm addmm einsum scaled_dot_product_attention
"""
KINDS: dict[str, frozenset[str]] = {}
for _line in _TABLE.strip().splitlines():
    _kind, _names = _line[:16].rstrip(), _line[16:].split()
    KINDS[_kind] = KINDS.get(_kind, frozenset()).union(_names)


def named(*kinds: str) -> frozenset[str]:
    """The names of all operations of these kinds.

    Example:
        >>> from redlab.network.operations import named
        >>> sorted(named("dropout", "join"))
        ['cat', 'concat', 'concatenate', 'dropout', 'feature_dropout']
    """
    return frozenset().union(*(KINDS[kind] for kind in kinds))
