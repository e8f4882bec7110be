/* linear_types: one function a weight type, so that the compiler sees its constants (those of
 * pack.c:FORMATS). The including file defines, always inline,
 *
 *   code_panels(codes, scales, zero, w, a, p0, p1, t0, n_t, o)
 *
 * with the meaning of cpu_kernels.linear. */
#include <assert.h>

#define LINEAR_TYPES(x)                                                                            \
    x(Q4_0, CODES_4, SCALES_F16, 8) x(Q4_1, CODES_4, SCALES_F16_MIN, 0)                            \
        x(Q5_0, CODES_5, SCALES_F16, 16) x(Q5_1, CODES_5, SCALES_F16_MIN, 0)                       \
            x(Q8_0, CODES_8, SCALES_F16, 128) x(Q2_K, CODES_2, SCALES_K16_MIN, 0)                  \
                x(Q3_K, CODES_3, SCALES_K16, 4) x(Q4_K, CODES_4, SCALES_K32_MIN, 0)                \
                    x(Q5_K, CODES_5, SCALES_K32_MIN, 0) x(Q6_K, CODES_6, SCALES_K16, 32)           \
                        x(IQ4_NL, CODES_4_TABLE, SCALES_F16, 128)                                  \
                            x(IQ4_XS, CODES_4_TABLE, SCALES_K32, 128)                              \
                                x(MXFP4, CODES_4_TABLE, SCALES_BF16, 12)

#define LINEAR_FUNCTION(type, codes, scales, zero)                                                 \
    static void panels_##type(const pack *w, const act *a, int p0, int p1, int t0, int n_t,        \
                              const linear_out *o) {                                               \
        code_panels(codes, scales, zero, w, a, p0, p1, t0, n_t, o);                                \
    }
LINEAR_TYPES(LINEAR_FUNCTION)

#define LINEAR_CASE(type, codes, scales, zero)                                                     \
    case DTYPE_##type:                                                                             \
        panels_##type(w, a, p0, p1, t0, n_t, o);                                                   \
        break;
static void linear_types(const pack *w, const act *a, int p0, int p1, int t0, int n_t,
                         const linear_out *o) {
    switch (w->format->type) {
        LINEAR_TYPES(LINEAR_CASE)
    default:
        assert(false); /* a type that pack.c knows and this table does not */
    }
}
#undef LINEAR_CASE
#undef LINEAR_FUNCTION
#undef LINEAR_TYPES
