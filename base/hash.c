#include "base/hash.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

static uint64_t rotl(uint64_t x, int b) {
    return x << b | x >> (64 - b);
}

static void sip_round(uint64_t v[4]) {
    v[0] += v[1];
    v[1] = rotl(v[1], 13) ^ v[0];
    v[0] = rotl(v[0], 32);
    v[2] += v[3];
    v[3] = rotl(v[3], 16) ^ v[2];
    v[0] += v[3];
    v[3] = rotl(v[3], 21) ^ v[0];
    v[2] += v[1];
    v[1] = rotl(v[1], 17) ^ v[2];
    v[2] = rotl(v[2], 32);
}

static uint64_t load_le64(const unsigned char *p, size_t n) {
    uint64_t w = 0;
    for (size_t i = 0; i < n; i++) w |= (uint64_t)p[i] << (8 * i);
    return w;
}

hash128 hash_siphash128(const uint64_t key[2], const void *data, size_t bytes) {
    const unsigned char *p = data;
    uint64_t v[4] = {key[0] ^ UINT64_C(0x736f6d6570736575),
                     key[1] ^ UINT64_C(0x646f72616e646f6d) ^ 0xEE,
                     key[0] ^ UINT64_C(0x6c7967656e657261), key[1] ^ UINT64_C(0x7465646279746573)};
    size_t left = bytes;
    for (; left >= 8; left -= 8, p += 8) {
        const uint64_t m = load_le64(p, 8);
        v[3] ^= m;
        sip_round(v);
        sip_round(v);
        v[0] ^= m;
    }
    const uint64_t last = (uint64_t)(bytes & 0xFF) << 56 | load_le64(p, left);
    v[3] ^= last;
    sip_round(v);
    sip_round(v);
    v[0] ^= last;
    hash128 h;
    v[2] ^= 0xEE;
    for (int i = 0; i < 4; i++) sip_round(v);
    h.lo = v[0] ^ v[1] ^ v[2] ^ v[3];
    v[1] ^= 0xDD;
    for (int i = 0; i < 4; i++) sip_round(v);
    h.hi = v[0] ^ v[1] ^ v[2] ^ v[3];
    return h;
}

struct sha256 {
    EVP_MD_CTX *ctx;
};

status sha256_open(sha256 **out) {
    sha256 *h = calloc(1, sizeof *h);
    if (h == NULL) return E_NOMEM;
    h->ctx = EVP_MD_CTX_new();
    if (h->ctx == NULL || EVP_DigestInit_ex(h->ctx, EVP_sha256(), NULL) != 1) {
        sha256_close(h);
        return E_NOMEM;
    }
    *out = h;
    return OK;
}

status sha256_update(sha256 *h, const void *data, size_t bytes) {
    return EVP_DigestUpdate(h->ctx, data, bytes) == 1 ? OK : E_INTERNAL;
}

status sha256_finish(sha256 *h, uint8_t out[32]) {
    unsigned n = 32;
    return EVP_DigestFinal_ex(h->ctx, out, &n) == 1 && n == 32 ? OK : E_INTERNAL;
}

void sha256_close(sha256 *h) {
    if (h == NULL) return;
    EVP_MD_CTX_free(h->ctx);
    free(h);
}

status sha256_of(const void *data, size_t bytes, uint8_t out[32]) {
    unsigned n = 32;
    return EVP_Digest(data, bytes, out, &n, EVP_sha256(), NULL) == 1 && n == 32 ? OK : E_INTERNAL;
}

void sha256_hex(const uint8_t digest[32], char out[65]) {
    static const char digits[] = "0123456789abcdef";
    for (int i = 0; i < 32; i++) {
        out[2 * i] = digits[digest[i] >> 4];
        out[2 * i + 1] = digits[digest[i] & 15];
    }
    out[64] = '\0';
}

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

bool sha256_from_hex(const char *hex, uint8_t out[32]) {
    if (strlen(hex) != 64) return false;
    for (int i = 0; i < 32; i++) {
        const int hi = hex_digit(hex[2 * i]), lo = hex_digit(hex[2 * i + 1]);
        if (hi < 0 || lo < 0) return false;
        out[i] = (uint8_t)(hi << 4 | lo);
    }
    return true;
}

bool hash_equal_ct(const void *a, const void *b, size_t bytes) {
    return CRYPTO_memcmp(a, b, bytes) == 0;
}

void random_bytes(void *out, size_t bytes) {
    unsigned char *p = out;
    while (bytes > 0) {
        const ssize_t n = getrandom(p, bytes > 256 ? 256 : bytes, 0);
        if (n <= 0) abort();
        p += n;
        bytes -= (size_t)n;
    }
}
