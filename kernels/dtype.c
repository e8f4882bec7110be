#include "kernels/dtype.h"

#include "base/checked.h"

static const struct {
    dtype id;
    dtype_info info;
} TYPES[] = {
    {DTYPE_F32, {"F32", 1, 4, true}},
    {DTYPE_F16, {"F16", 1, 2, true}},
    {DTYPE_BF16, {"BF16", 1, 2, true}},
    {DTYPE_Q4_0, {"Q4_0", 32, 18, true}},
    {DTYPE_Q4_1, {"Q4_1", 32, 20, true}},
    {DTYPE_Q5_0, {"Q5_0", 32, 22, true}},
    {DTYPE_Q5_1, {"Q5_1", 32, 24, true}},
    {DTYPE_Q8_0, {"Q8_0", 32, 34, true}},
    {DTYPE_Q2_K, {"Q2_K", 256, 84, true}},
    {DTYPE_Q3_K, {"Q3_K", 256, 110, true}},
    {DTYPE_Q4_K, {"Q4_K", 256, 144, true}},
    {DTYPE_Q5_K, {"Q5_K", 256, 176, true}},
    {DTYPE_Q6_K, {"Q6_K", 256, 210, true}},
    {DTYPE_IQ4_NL, {"IQ4_NL", 32, 18, true}},
    {DTYPE_IQ4_XS, {"IQ4_XS", 256, 136, true}},
    {DTYPE_MXFP4, {"MXFP4", 32, 17, true}},
    {DTYPE_I8, {"I8", 1, 1, false}},
};

const dtype_info *dtype_get(int id) {
    for (size_t i = 0; i < sizeof TYPES / sizeof TYPES[0]; i++) {
        if ((int)TYPES[i].id == id) return &TYPES[i].info;
    }
    return NULL;
}

size_t dtype_row_bytes(dtype t, int64_t n) {
    const dtype_info *d = dtype_get((int)t);
    if (d == NULL || n < 0 || n % d->block_elems != 0) return 0;
    size_t bytes = 0;
    if (!checked_mul_size((size_t)(n / d->block_elems), (size_t)d->block_bytes, &bytes)) return 0;
    return bytes;
}
