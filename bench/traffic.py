"""The counts of `bll.bench.traffic`, by the names these suites use."""

from bll.bench.traffic import (
    SPECIAL_FUNCTIONS,
    class_bytes,
    copy_bytes,
    gram_bytes,
    linear_class_flops,
    matmul_class_bytes,
    means_bytes,
    next_units,
    pair_bytes,
    pooled_class_bytes,
    standardized_map_bytes,
)

__all__ = [
    "SPECIAL_FUNCTIONS",
    "class_bytes",
    "copy_bytes",
    "gram_bytes",
    "linear_class_flops",
    "matmul_class_bytes",
    "means_bytes",
    "next_units",
    "pair_bytes",
    "pooled_class_bytes",
    "standardized_map_bytes",
]
