/* Hashes and secrets: SHA-256 and constant-time compare (libcrypto behind this door), a keyed
 * 128-bit hash (SipHash-2-4-128) for prefix-cache chains, and OS randomness. Thread: any. */
#ifndef INFERD_BASE_HASH_H
#define INFERD_BASE_HASH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct hash128 {
    uint64_t lo, hi;
} hash128;

/* SipHash-2-4 with 128-bit output. Source: Aumasson & Bernstein, SipHash reference. */
hash128 hash_siphash128(const uint64_t key[2], const void *data, size_t bytes);

typedef struct sha256 sha256; /* streaming digest */
BASE_MUST_USE status sha256_open(sha256 **out);
BASE_MUST_USE status sha256_update(sha256 *h, const void *data, size_t bytes);
BASE_MUST_USE status sha256_finish(sha256 *h, uint8_t out[32]); /* then close */
void sha256_close(sha256 *h);
BASE_MUST_USE status sha256_of(const void *data, size_t bytes, uint8_t out[32]);
/* out[65], lower-case hex, NUL-terminated. */
void sha256_hex(const uint8_t digest[32], char out[65]);
/* Exactly 64 hex digits, either case; false otherwise. */
bool sha256_from_hex(const char *hex, uint8_t out[32]);

/* Time depends on bytes only. */
bool hash_equal_ct(const void *a, const void *b, size_t bytes);

/* Fills from the OS; aborts only if the OS has no randomness (a bug of the platform). */
void random_bytes(void *out, size_t bytes);
#endif
