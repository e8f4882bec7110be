/* base/: each helper against its contract and, where one exists, published test vectors. */
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/checked.h"
#include "base/hash.h"
#include "base/utf8.h"
#include "tests/check_main.h"

START_TEST(arena_keeps_its_budget) {
    arena a;
    arena_init(&a, 1000);
    unsigned char *p = arena_alloc(&a, 500);
    ck_assert_ptr_nonnull(p);
    ck_assert_uint_eq((uintptr_t)p % 16, 0);
    memset(p, 1, 500);
    ck_assert_ptr_null(arena_alloc(&a, 500)); /* 512 + 512 > 1000 */
    ck_assert_ptr_nonnull(arena_alloc(&a, 400));
    ck_assert_ptr_null(arena_alloc(&a, SIZE_MAX));
    ck_assert_ptr_null(arena_calloc(&a, SIZE_MAX / 2, 4));
    ck_assert_ptr_null(arena_alloc(&a, 0));
    arena_reset(&a);
    ck_assert_uint_eq(a.used_bytes, 0);
    char *s = arena_strndup(&a, "a\0b", 3);
    ck_assert_mem_eq(s, "a\0b", 4);
    arena_reset(&a);
}
END_TEST

START_TEST(arena_chunks_do_not_overlap) {
    arena a;
    arena_init(&a, 1u << 20);
    srand((unsigned)_i);
    unsigned char *p[100];
    size_t n[100];
    for (int i = 0; i < 100; i++) {
        n[i] = 1 + (size_t)(rand() % 9000);
        p[i] = arena_alloc(&a, n[i]);
        if (p[i] != NULL) memset(p[i], i, n[i]);
    }
    for (int i = 0; i < 100; i++)
        for (size_t k = 0; p[i] != NULL && k < n[i]; k++)
            if (p[i][k] != i) ck_abort_msg("seed %d: chunk %d is overwritten at %zu", _i, i, k);
    ck_assert_uint_le(a.used_bytes, a.budget_bytes);
    arena_reset(&a);
}
END_TEST

START_TEST(utf8_accepts_and_rejects) {
    static const struct {
        const char *s;
        size_t len;
        bool valid;
    } cases[] = {
        {"", 0, true},
        {"plain ascii, long enough for the fast path", 42, true},
        {"\xC3\xA9", 2, true},
        {"\xE2\x82\xAC", 3, true},
        {"\xF0\x9F\xA6\x99", 4, true},
        {"a\0b", 3, true},
        {"\xEF\xBF\xBF", 3, true},
        {"\xF4\x8F\xBF\xBF", 4, true},
        {"\x80", 1, false},
        {"\xC0\x80", 2, false},
        {"\xC1\xBF", 2, false},
        {"\xE0\x9F\xBF", 3, false},
        {"\xED\xA0\x80", 3, false},
        {"\xF0\x8F\xBF\xBF", 4, false},
        {"\xF4\x90\x80\x80", 4, false},
        {"\xF5\x80\x80\x80", 4, false},
        {"\xE2\x82", 2, false},
        {"0123456789abcde\xFF", 16, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        ck_assert_msg(utf8_valid(cases[i].s, cases[i].len) == cases[i].valid, "case %zu", i);
}
END_TEST

START_TEST(utf8_replaces_maximal_parts) {
    /* Unicode 15, table 3-8: one U+FFFD for each maximal subpart. */
    char out[64];
    const char in[] = "\x61\xF1\x80\x80\xE1\x80\xC2\x62\x80\x63\x80\xBF\x64";
    const char want[] = "a\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"
                        "b\xEF\xBF\xBD"
                        "c\xEF\xBF\xBD\xEF\xBF\xBD"
                        "d";
    const size_t n = utf8_sanitise(in, sizeof in - 1, out);
    ck_assert_uint_eq(n, sizeof want - 1);
    ck_assert_mem_eq(out, want, n);
}
END_TEST

START_TEST(utf8_holds_back_unfinished_tails) {
    const char llama[] = "x\xF0\x9F\xA6\x99";
    ck_assert_uint_eq(utf8_complete_prefix(llama, 5), 5);
    for (size_t n = 2; n < 5; n++) ck_assert_uint_eq(utf8_complete_prefix(llama, n), 1);
    ck_assert_uint_eq(utf8_complete_prefix("x\xE2\x28", 3), 3); /* broken, not unfinished */
    ck_assert_uint_eq(utf8_complete_prefix("\x80\x80\x80\x80", 4), 4);
    ck_assert_uint_eq(utf8_complete_prefix("", 0), 0);
}
END_TEST

START_TEST(utf8_copies_whole_characters) {
    char out[5];
    static const char *const in[] = {
        "", "abcd", "abcde", "abc\xC3\xA4", "ab\xC3\xA4z", "a\xF0\x9F\xA6\x99"};
    static const char *const want[] = {"", "abcd", "abcd", "abc", "ab\xC3\xA4", "a"};
    for (size_t i = 0; i < sizeof in / sizeof *in; i++) {
        utf8_copy(out, sizeof out, in[i], strlen(in[i]));
        ck_assert_str_eq(out, want[i]);
    }
    utf8_copy(out, sizeof out, "a\xFFz", 3);
    ck_assert_str_eq(out, "a\xEF\xBF\xBD");
    utf8_copy(out, sizeof out, "ab\0c", 4);
    ck_assert_str_eq(out, "ab");
}
END_TEST

START_TEST(utf8_round_trips_every_code_point) {
    for (uint32_t cp = 0; cp <= 0x10FFFF; cp++) {
        if (cp >= 0xD800 && cp <= 0xDFFF) continue;
        char buf[4];
        uint32_t back;
        const size_t n = utf8_put(cp, buf);
        /* An assertion a code point would take a minute under a sanitizer. */
        if (utf8_decode(buf, n, &back) != n || back != cp) ck_abort_msg("U+%04X", (unsigned)cp);
    }
}
END_TEST

START_TEST(siphash_matches_the_reference) {
    /* vectors_siphash128 of the reference: key 00..0f, input 00 01 02 ...; lengths 0 and 1. */
    const uint64_t key[2] = {UINT64_C(0x0706050403020100), UINT64_C(0x0f0e0d0c0b0a0908)};
    unsigned char in[64];
    for (int i = 0; i < 64; i++) in[i] = (unsigned char)i;
    const hash128 h0 = hash_siphash128(key, in, 0);
    ck_assert_uint_eq(h0.lo, UINT64_C(0xe6a825ba047f81a3));
    ck_assert_uint_eq(h0.hi, UINT64_C(0x930255c71472f66d));
    const hash128 h1 = hash_siphash128(key, in, 1);
    ck_assert_uint_eq(h1.lo, UINT64_C(0x44af996bd8c187da));
    ck_assert_uint_eq(h1.hi, UINT64_C(0x45fc229b11597634));
}
END_TEST

START_TEST(sha256_matches_fips) {
    uint8_t d[32];
    char hex[65];
    ck_assert_int_eq(sha256_of("abc", 3, d), OK);
    sha256_hex(d, hex);
    ck_assert_str_eq(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    uint8_t back[32];
    ck_assert(sha256_from_hex(hex, back));
    ck_assert(hash_equal_ct(d, back, 32));
    back[31] ^= 1;
    ck_assert(!hash_equal_ct(d, back, 32));
    ck_assert(!sha256_from_hex("abc", back));
    hex[0] = 'g';
    ck_assert(!sha256_from_hex(hex, back));
}
END_TEST

START_TEST(checked_arithmetic) {
    uint64_t r;
    ck_assert(!checked_mul_u64(UINT64_C(1) << 33, UINT64_C(1) << 31, &r));
    ck_assert(!checked_add_u64(UINT64_MAX, 1, &r));
    ck_assert(checked_align_up_u64(33, 32, &r) && r == 64);
    ck_assert(!checked_align_up_u64(UINT64_MAX - 3, 32, &r));
}
END_TEST

START_TEST(errors_are_one_line) {
    error e;
    ck_assert_int_eq(error_set(&e, E_IO, "file %s", "a\nb"), E_IO);
    ck_assert_str_eq(e.text, "file a?b");
    ck_assert_int_eq(error_set(NULL, E_NOMEM, "x"), E_NOMEM);
    (void)error_set(&e, E_IO, "%s",
                    "a\xFF"
                    "b\xE2\x82"); /* the half of a character */
    ck_assert_str_eq(e.text, "a?b??");
    (void)error_set(&e, E_IO, "%.3s", "a\xE2\x82\xAC");
    ck_assert_str_eq(e.text, "a??");
    char text[ERROR_TEXT_MAX + 8];
    for (int i = 0; i < 4; i++) { /* cut at each place of a character of three bytes */
        memset(text, 'x', sizeof text);
        text[ERROR_TEXT_MAX + 2] = '\0';
        memcpy(text + ERROR_TEXT_MAX - 1 - i, "\xE2\x82\xAC", 3);
        (void)error_set(&e, E_IO, "%s", text);
        ck_assert_uint_eq(strlen(e.text), (size_t)ERROR_TEXT_MAX - 1 - (i < 3 ? (size_t)i : 0));
        ck_assert(utf8_valid(e.text, strlen(e.text)) && !strchr(e.text, '?'));
    }
}
END_TEST

int main(void) {
    TCase *t = tcase_create("base");
    tcase_add_test(t, arena_keeps_its_budget);
    tcase_add_loop_test(t, arena_chunks_do_not_overlap, 0, 16);
    tcase_add_test(t, utf8_accepts_and_rejects);
    tcase_add_test(t, utf8_replaces_maximal_parts);
    tcase_add_test(t, utf8_holds_back_unfinished_tails);
    tcase_add_test(t, utf8_copies_whole_characters);
    tcase_add_test(t, utf8_round_trips_every_code_point);
    tcase_add_test(t, siphash_matches_the_reference);
    tcase_add_test(t, sha256_matches_fips);
    tcase_add_test(t, checked_arithmetic);
    tcase_add_test(t, errors_are_one_line);
    return check_run("base", t);
}
