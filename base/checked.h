/* Overflow-checked arithmetic for values that come from outside. Each returns false on overflow and
 * leaves *out unspecified. Thread: any. */
#ifndef INFERD_BASE_CHECKED_H
#define INFERD_BASE_CHECKED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline bool checked_add_u64(uint64_t a, uint64_t b, uint64_t *out) {
    return !__builtin_add_overflow(a, b, out);
}
static inline bool checked_mul_u64(uint64_t a, uint64_t b, uint64_t *out) {
    return !__builtin_mul_overflow(a, b, out);
}
static inline bool checked_add_size(size_t a, size_t b, size_t *out) {
    return !__builtin_add_overflow(a, b, out);
}
static inline bool checked_mul_size(size_t a, size_t b, size_t *out) {
    return !__builtin_mul_overflow(a, b, out);
}
/* Rounds up to a power of two `align`. */
static inline bool checked_align_up_u64(uint64_t v, uint64_t align, uint64_t *out) {
    if (!checked_add_u64(v, align - 1, out)) return false;
    *out &= ~(align - 1);
    return true;
}
#endif
