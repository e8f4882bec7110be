/* Hostile model files: a table of wrong ones, truncation at every byte, and structured mutants.
 * None may crash, leak or be slow; what is accepted must load and give two tokens. */
#include <check.h>
#include <sys/resource.h>
#include <time.h>

#include "engine/tokenizer.h"
#include "engine/weights.h"
#include "gguf_builder.h"
#include "two_tokens.h"

enum { BACKEND_RUNS_MAX = 200 };

#define MS INT64_C(1000000)

/* CPU time: the machine that runs the tests may be busy. */
static int64_t cpu_ns(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (int64_t)t.tv_sec * 1000 * MS + t.tv_nsec;
}

/* ---- the table ---- */

typedef struct wrong_file {
    const char *what;
    status expected;
    const char *text; /* part of the message */
    void (*make)(gguf_builder *b, bytes *out);
} wrong_file;

/* Each maker writes a file with one thing wrong: into the builder, or over the finished bytes. */
static void finish(gguf_builder *b, bytes *out) {
    *out = builder_finish(b);
}

static void bad_magic(gguf_builder *b, bytes *out) {
    b->magic = "FUGG", finish(b, out);
}
static void version_0(gguf_builder *b, bytes *out) {
    b->version = 0, finish(b, out);
}
static void version_1(gguf_builder *b, bytes *out) {
    b->version = 1, finish(b, out);
}
static void version_4(gguf_builder *b, bytes *out) {
    b->version = 4, finish(b, out);
}
static void version_swapped(gguf_builder *b, bytes *out) {
    b->version = 3u << 24, finish(b, out);
}
static void n_tensors_max(gguf_builder *b, bytes *out) {
    b->claim_n_tensors = UINT64_MAX, finish(b, out);
}
static void n_kv_max(gguf_builder *b, bytes *out) {
    b->claim_n_kv = UINT64_MAX, finish(b, out);
}
static void n_tensors_many(gguf_builder *b, bytes *out) {
    b->claim_n_tensors = 60000, finish(b, out);
}
static void key_length_max(gguf_builder *b, bytes *out) {
    bytes_u64(&b->kv, UINT64_MAX);
    b->n_kv++;
    finish(b, out);
}
static void empty_key(gguf_builder *b, bytes *out) {
    builder_u32(b, "", 1), finish(b, out);
}
static void nul_in_key(gguf_builder *b, bytes *out) {
    bytes_u64(&b->kv, 3);
    bytes_put(&b->kv, "a\0b", 3);
    bytes_u32(&b->kv, GGUF_U32);
    bytes_u32(&b->kv, 1);
    b->n_kv++;
    finish(b, out);
}
static void long_key(gguf_builder *b, bytes *out) {
    static char key[65537];
    memset(key, 'k', sizeof key - 1);
    builder_u32(b, key, 1);
    finish(b, out);
}
static void value_type_13(gguf_builder *b, bytes *out) {
    builder_raw(b, "k", 13, "\0\0\0\0\0\0\0\0", 8);
    finish(b, out);
}
static void value_type_max(gguf_builder *b, bytes *out) {
    builder_raw(b, "k", UINT32_MAX, "\0\0\0\0\0\0\0\0", 8);
    finish(b, out);
}
static void duplicate_key(gguf_builder *b, bytes *out) {
    builder_u32(b, "k", 1), builder_u32(b, "k", 1);
    finish(b, out);
}
static void alignment_13(gguf_builder *b, bytes *out) {
    builder_u32(b, "general.alignment", 13), finish(b, out);
}
static void alignment_0(gguf_builder *b, bytes *out) {
    builder_u32(b, "general.alignment", 0), finish(b, out);
}
static void alignment_huge(gguf_builder *b, bytes *out) {
    builder_u32(b, "general.alignment", 1u << 31), finish(b, out);
}
static void alignment_i32(gguf_builder *b, bytes *out) {
    builder_i32(b, "general.alignment", 32), finish(b, out);
}
static void bool_2(gguf_builder *b, bytes *out) {
    builder_bool(b, "k", 2), finish(b, out);
}
static void bool_array_2(gguf_builder *b, bytes *out) {
    builder_array(b, "k", GGUF_BOOL, 3, "\0\1\2", 3), finish(b, out);
}
static void string_one_too_long(gguf_builder *b, bytes *out) {
    builder_str(b, "k", "four");
    uint64_t len = 1 + 4; /* nothing follows: one more than there is */
    b->data.n = 0;
    b->infos.n = 0;
    b->n_tensors = 0;
    memcpy(b->kv.p + b->kv.n - 12, &len, 8);
    b->alignment = 1; /* no padding after the keys */
    finish(b, out);
}
static void array_count_wraps(gguf_builder *b, bytes *out) {
    builder_array(b, "k", GGUF_U64, UINT64_C(1) << 61, "", 0), finish(b, out);
}
static void string_array_too_many(gguf_builder *b, bytes *out) {
    builder_array(b, "k", GGUF_STRING, 1u << 20, "", 0), finish(b, out);
}
static void string_array_2_63(gguf_builder *b, bytes *out) {
    builder_array(b, "k", GGUF_STRING, UINT64_C(1) << 63, "", 0), finish(b, out);
}
static void string_in_array_too_long(gguf_builder *b, bytes *out) {
    builder_array(b, "k", GGUF_STRING, 1, "\377\377\377\377\377\377\377\377", 8), finish(b, out);
}
static void array_of_arrays(gguf_builder *b, bytes *out) {
    builder_array(b, "k", GGUF_ARRAY, 1, "", 0), finish(b, out);
}
static void nested_100000(gguf_builder *b, bytes *out) {
    builder_key(b, "k", GGUF_ARRAY);
    for (int i = 0; i < 100000; i++) {
        bytes_u32(&b->kv, GGUF_ARRAY);
        bytes_u64(&b->kv, 1);
    }
    finish(b, out);
}
static void array_type_13(gguf_builder *b, bytes *out) {
    builder_array(b, "k", 13, 1, "\0\0\0\0\0\0\0\0", 8), finish(b, out);
}

static void add(gguf_builder *b, const char *name, uint32_t n_dims, const uint64_t *ne,
                uint32_t type, bytes *out) {
    static const uint8_t zeros[64] = {0};
    builder_tensor(b, name, n_dims, ne, type, zeros, sizeof zeros);
    finish(b, out);
}
static const uint64_t ne_small[4] = {16, 1, 1, 1};
static void long_tensor_name(gguf_builder *b, bytes *out) {
    add(b, "0123456789012345678901234567890123456789012345678901234567890123", 1, ne_small,
        DTYPE_F32, out);
}
static void empty_tensor_name(gguf_builder *b, bytes *out) {
    add(b, "", 1, ne_small, DTYPE_F32, out);
}
static void control_in_tensor_name(gguf_builder *b, bytes *out) {
    add(b, "a\nb", 1, ne_small, DTYPE_F32, out);
}
static void five_dims(gguf_builder *b, bytes *out) {
    static const uint64_t ne[5] = {1, 1, 1, 1, 1};
    add(b, "t", 5, ne, DTYPE_F32, out);
}
static void dims_max(gguf_builder *b, bytes *out) {
    bytes_str(&b->infos, "t");
    bytes_u32(&b->infos, UINT32_MAX);
    b->n_tensors++;
    bytes_put(&b->data, "0123456789012345678901234567890123456789", 40);
    finish(b, out);
}
static void no_dims(gguf_builder *b, bytes *out) {
    add(b, "t", 0, ne_small, DTYPE_F32, out);
}
static void ne_zero(gguf_builder *b, bytes *out) {
    static const uint64_t ne[2] = {16, 0};
    add(b, "t", 2, ne, DTYPE_F32, out);
}
static void ne_negative(gguf_builder *b, bytes *out) {
    static const uint64_t ne[2] = {16, UINT64_MAX};
    add(b, "t", 2, ne, DTYPE_F32, out);
}
static void ne_product_2_63(gguf_builder *b, bytes *out) {
    static const uint64_t ne[4] = {1u << 20, 1u << 20, 1u << 20, 1u << 3};
    add(b, "t", 4, ne, DTYPE_F32, out);
}
static void ne_product_wraps_to_small(gguf_builder *b, bytes *out) {
    static const uint64_t ne[4] = {UINT64_C(1) << 32, UINT64_C(1) << 32, 1, 16};
    add(b, "t", 4, ne, DTYPE_F32, out);
}
static void bytes_wrap(gguf_builder *b, bytes *out) {
    static const uint64_t ne[2] = {UINT64_C(1) << 31, UINT64_C(1) << 31};
    add(b, "t", 2, ne, DTYPE_F32, out); /* elements fit, 4 bytes each do not */
}
static void bytes_wrap_i64(gguf_builder *b, bytes *out) {
    static const uint64_t ne[2] = {UINT64_C(1) << 31, UINT64_C(1) << 31};
    add(b, "t", 2, ne, 27, out);
}
static void type_4(gguf_builder *b, bytes *out) {
    add(b, "t", 1, ne_small, 4, out);
}
static void type_31(gguf_builder *b, bytes *out) {
    add(b, "t", 1, ne_small, 31, out);
}
static void type_36(gguf_builder *b, bytes *out) {
    add(b, "t", 1, ne_small, 36, out);
}
static void type_43(gguf_builder *b, bytes *out) {
    add(b, "t", 1, ne_small, 43, out);
}
static void type_negative(gguf_builder *b, bytes *out) {
    add(b, "t", 1, ne_small, UINT32_MAX, out);
}
static void part_of_a_block(gguf_builder *b, bytes *out) {
    add(b, "t", 1, ne_small, DTYPE_Q8_0, out);
}
static void offset_wrong(gguf_builder *b, bytes *out) {
    b->offset_error = 1;
    add(b, "t", 1, ne_small, DTYPE_F32, out);
}
static void offset_aligned_but_wrong(gguf_builder *b, bytes *out) {
    b->offset_error = 32;
    add(b, "t", 1, ne_small, DTYPE_F32, out);
}
static void offset_max(gguf_builder *b, bytes *out) {
    b->offset_error = UINT64_MAX - 63 - b->data.n;
    add(b, "t", 1, ne_small, DTYPE_F32, out);
}
static void duplicate_tensor(gguf_builder *b, bytes *out) {
    builder_floats(b, "output_norm.weight", 32, 0), finish(b, out);
}
static void another_alignment(gguf_builder *b, bytes *out) {
    static const uint64_t ne[1] = {9};
    static const uint8_t zeros[36] = {0};
    builder_tensor(b, "t", 1, ne, DTYPE_F32, zeros, sizeof zeros);
    builder_u32(b, "general.alignment", 128); /* laid out for 32 */
    finish(b, out);
}
static void data_missing(gguf_builder *b, bytes *out) {
    finish(b, out), out->n -= 4;
}
static void data_gone(gguf_builder *b, bytes *out) {
    b->data.n = 0, finish(b, out);
}
static void padded_sum_wraps(gguf_builder *b, bytes *out) {
    static const uint64_t ne[1] = {UINT64_C(0x7FFFFFFFFFFFFFC0)};
    builder_tensor(b, "t1", 1, ne, DTYPE_I8, "", 0);
    builder_tensor(b, "t2", 1, ne, DTYPE_I8, "", 0);
    finish(b, out);
}
static void split_in_memory(gguf_builder *b, bytes *out) {
    builder_u32(b, "split.count", 2), finish(b, out);
}

static const wrong_file wrong_files[] = {
    {"bad magic", E_FORMAT, "magic", bad_magic},
    {"version 0", E_FORMAT, "version 0", version_0},
    {"version 1", E_UNSUPPORTED, "version 1", version_1},
    {"version 4", E_UNSUPPORTED, "version 4", version_4},
    {"version bytes swapped", E_UNSUPPORTED, "big-endian", version_swapped},
    {"n_tensors 2^64-1", E_FORMAT, "tensors", n_tensors_max},
    {"n_tensors more than infos", E_FORMAT, "", n_tensors_many},
    {"n_kv 2^64-1", E_FORMAT, "keys", n_kv_max},
    {"key length 2^64-1", E_FORMAT, "key", key_length_max},
    {"empty key", E_FORMAT, "key", empty_key},
    {"NUL in a key", E_FORMAT, "key", nul_in_key},
    {"key of 65536 bytes", E_FORMAT, "key", long_key},
    {"value type 13", E_FORMAT, "value type", value_type_13},
    {"value type 2^32-1", E_FORMAT, "value type", value_type_max},
    {"duplicate key", E_FORMAT, "twice", duplicate_key},
    {"alignment 13", E_FORMAT, "alignment", alignment_13},
    {"alignment 0", E_FORMAT, "alignment", alignment_0},
    {"alignment 2^31", E_FORMAT, "alignment", alignment_huge},
    {"alignment of type i32", E_FORMAT, "alignment", alignment_i32},
    {"bool 2", E_FORMAT, "bool", bool_2},
    {"bool 2 in an array", E_FORMAT, "bool", bool_array_2},
    {"string of remaining + 1", E_FORMAT, "string", string_one_too_long},
    {"array of 2^61 u64", E_FORMAT, "array", array_count_wraps},
    {"string array, count > remaining/8", E_FORMAT, "strings", string_array_too_many},
    {"string array of 2^63", E_FORMAT, "strings", string_array_2_63},
    {"string in an array too long", E_FORMAT, "string", string_in_array_too_long},
    {"array of arrays", E_UNSUPPORTED, "array of arrays", array_of_arrays},
    {"arrays nested 100,000 deep", E_UNSUPPORTED, "array of arrays", nested_100000},
    {"array of type 13", E_FORMAT, "element type", array_type_13},
    {"tensor name of 64 bytes", E_FORMAT, "name", long_tensor_name},
    {"empty tensor name", E_FORMAT, "name", empty_tensor_name},
    {"control byte in a tensor name", E_FORMAT, "name", control_in_tensor_name},
    {"5 dimensions", E_FORMAT, "dimensions", five_dims},
    {"2^32-1 dimensions", E_FORMAT, "dimensions", dims_max},
    {"0 dimensions", E_FORMAT, "dimensions", no_dims},
    {"a dimension of 0", E_FORMAT, "dimension", ne_zero},
    {"a negative dimension", E_FORMAT, "dimension", ne_negative},
    {"2^63 elements", E_FORMAT, "elements", ne_product_2_63},
    {"elements wrap to few", E_FORMAT, "elements", ne_product_wraps_to_small},
    {"bytes wrap (F32)", E_FORMAT, "", bytes_wrap},
    {"bytes wrap (I64)", E_UNSUPPORTED, "I64", bytes_wrap_i64},
    {"type 4 (removed)", E_UNSUPPORTED, "type 4", type_4},
    {"type 31 (removed)", E_UNSUPPORTED, "type 31", type_31},
    {"type 36 (removed)", E_UNSUPPORTED, "type 36", type_36},
    {"type 43", E_UNSUPPORTED, "type 43", type_43},
    {"type -1", E_UNSUPPORTED, "type", type_negative},
    {"a row of half a block", E_FORMAT, "blocks", part_of_a_block},
    {"offset off by 1", E_FORMAT, "offset", offset_wrong},
    {"offset off by an alignment", E_FORMAT, "offset", offset_aligned_but_wrong},
    {"offset near 2^64", E_FORMAT, "offset", offset_max},
    {"duplicate tensor name", E_FORMAT, "twice", duplicate_tensor},
    {"laid out for another alignment", E_FORMAT, "", another_alignment},
    {"data short by 4 bytes", E_FORMAT, "beyond", data_missing},
    {"no data", E_FORMAT, "beyond", data_gone},
    {"two tensors, padded sum wraps", E_FORMAT, "", padded_sum_wraps},
    {"a part of a split model", E_UNSUPPORTED, "split", split_in_memory},
};
enum { N_WRONG_FILES = sizeof wrong_files / sizeof wrong_files[0] };

/* Without a tensor-less file the makers above would stop at another fault. */
START_TEST(the_valid_file_is_accepted) {
    tiny_model m = tiny_default("llama");
    gguf_builder b = tiny_builder(&m);
    bytes f = builder_finish(&b);
    gguf *g = NULL;
    error err = {0};
    ck_assert_msg(gguf_open_memory(f.p, f.n, &g, &err) == OK, "%s", err.text);
    gguf_close(g);
    free(f.p);
}
END_TEST

START_TEST(wrong_files_are_refused) {
    const wrong_file *w = &wrong_files[_i];
    tiny_model m = tiny_default("llama");
    gguf_builder b = tiny_builder(&m);
    bytes f = {0};
    gguf *g = NULL;
    error err = {0};
    w->make(&b, &f);
    const int64_t start = cpu_ns();
    const status s = gguf_open_memory(f.p, f.n, &g, &err);
    const int64_t ns = cpu_ns() - start;
    ck_assert_msg(s == w->expected && g == NULL, "%s: %s: %s", w->what, status_name(s), err.text);
    ck_assert_msg(strstr(err.text, w->text) != NULL, "%s: %s", w->what, err.text);
    ck_assert_msg(ns < 100 * MS, "%s: %lld ns", w->what, (long long)ns);
    free(f.p);
}
END_TEST

/* ---- tokenizer metadata that does not fit ---- */

typedef struct wrong_tokenizer {
    const char *what, *key; /* of the key whose bytes are changed */
    int at;                 /* offset from the end of the key's name */
    uint32_t value;
} wrong_tokenizer;

static const wrong_tokenizer wrong_tokenizers[] = {
    {"fewer types than tokens", "tokenizer.ggml.token_type", 8, 263},
    {"fewer scores than tokens", "tokenizer.ggml.scores", 8, 263},
    {"a NaN score", "tokenizer.ggml.scores", 16, 0x7FC00000},
    {"types that are floats", "tokenizer.ggml.token_type", 4, GGUF_F32},
};

/* These change counts, so what follows no longer parses, or parses to something else: the file must
 * be refused by the reader or by the tokenizer. */
START_TEST(wrong_tokenizers_are_refused) {
    const wrong_tokenizer *w = &wrong_tokenizers[_i];
    tiny_model m = tiny_default("llama");
    gguf_builder b = tiny_builder(&m);
    bytes f = builder_finish(&b);
    gguf *g = NULL;
    tokenizer *t = NULL;
    error err = {0};
    const size_t len = strlen(w->key);
    size_t at = 0;
    while (memcmp(f.p + at, w->key, len) != 0) at++;
    memcpy(f.p + at + len + (size_t)w->at, &w->value, sizeof w->value);
    status s = gguf_open_memory(f.p, f.n, &g, &err);
    if (s == OK) s = tokenizer_open(g, &t, &err);
    ck_assert_msg(s != OK, "%s was accepted", w->what);
    tokenizer_close(t);
    gguf_close(g);
    free(f.p);
}
END_TEST

/* ---- from bytes to two tokens ---- */

static void use_tokenizer(const gguf *g) {
    static const text_part text = {"ab <s>\xC3\xA9 c", 10, false};
    tokenizer *t = NULL;
    token_list ids = {.with_offsets = true};
    error err;
    if (tokenizer_open(g, &t, &err) != OK) return;
    if (tokenizer_encode(t, &text, 1, TOKENIZE_ADD_SPECIAL, &ids) == OK)
        for (size_t i = 0; i < ids.n; i++)
            ck_assert(ids.id[i] >= 0 && ids.id[i] < tokenizer_n_vocab(t));
    token_list_free(&ids);
    tokenizer_close(t);
}

typedef struct tally {
    int n, n_accepted, n_loaded, n_run;
    int64_t slowest_ns;
} tally;

static void try_file(const uint8_t *p, size_t n, tally *t) {
    gguf *g = NULL;
    weights *w = NULL;
    error err = {0};
    const int64_t start = cpu_ns();
    status s = gguf_open_memory(p, n, &g, &err);
    t->n++;
    if (s == OK) {
        t->n_accepted++;
        use_tokenizer(g);
        s = weights_open(g, 0, &w, &err);
    }
    const int64_t ns = cpu_ns() - start;
    if (ns > t->slowest_ns) t->slowest_ns = ns;
    if (s != OK) ck_assert_msg(err.text[0] != '\0', "a refusal without a text");
    if (s == OK && t->n_loaded++ < BACKEND_RUNS_MAX) {
        t->n_run++;
        const status run = two_tokens(weights_desc(w), &err);
        ck_assert_msg(run == OK || run == E_UNSUPPORTED || run == E_NOMEM, "%s: %s",
                      status_name(run), err.text);
    }
    weights_close(w);
    gguf_close(g);
}

static tiny_model smallest(const char *arch) {
    tiny_model m = tiny_default(arch);
    m.n_layers = 1;
    m.n_embd = m.n_ff = 8;
    m.n_heads = 1;
    m.head_dim = 8;
    m.no_tokenizer = true;
    m.n_vocab = 4;
    return m;
}

START_TEST(truncation_at_every_byte) {
    tiny_model m = smallest("qwen2");
    gguf_builder b = tiny_builder(&m);
    bytes f = builder_finish(&b);
    for (size_t n = 0; n < f.n; n++) {
        uint8_t *copy = malloc(n == 0 ? 1 : n); /* exactly n bytes: the sanitizer sees one more */
        gguf *g = NULL;
        error err = {0};
        memcpy(copy, f.p, n);
        const status s = gguf_open_memory(copy, n, &g, &err);
        /* Only padding after the last tensor may be missing. */
        ck_assert_msg(s == E_FORMAT || (s == OK && n + 32 > f.n), "%zu of %zu: %s", n, f.n,
                      status_name(s));
        gguf_close(g);
        free(copy);
    }
    free(f.p);
}
END_TEST

static uint64_t next_random(uint64_t *x) {
    *x ^= *x << 13;
    *x ^= *x >> 7;
    *x ^= *x << 17;
    return *x;
}

/* Numbers that parsers get wrong. */
static const uint64_t interesting[] = {0,
                                       1,
                                       2,
                                       3,
                                       7,
                                       8,
                                       13,
                                       31,
                                       32,
                                       33,
                                       63,
                                       64,
                                       255,
                                       256,
                                       4095,
                                       65535,
                                       65536,
                                       INT32_MAX,
                                       UINT32_MAX,
                                       UINT64_C(1) << 32,
                                       INT64_MAX,
                                       UINT64_C(1) << 63,
                                       UINT64_MAX - 31,
                                       UINT64_MAX};

/* One to four changes: mostly in the header (counts, lengths, types, offsets lie there). */
static void mutate(uint8_t *p, size_t *n, size_t header_bytes, uint64_t *x) {
    const int changes = 1 + (int)(next_random(x) % 4);
    for (int c = 0; c<changes && * n> 16; c++) {
        const size_t span = next_random(x) % 8 == 0 ? *n : header_bytes < *n ? header_bytes : *n;
        const size_t at = next_random(x) % (span - 8);
        const uint64_t v =
            interesting[next_random(x) % (sizeof interesting / sizeof interesting[0])];
        switch (next_random(x) % 8) {
        case 0:
            p[at] ^= (uint8_t)(1u << (next_random(x) % 8));
            break;
        case 1:
            p[at] = (uint8_t)next_random(x);
            break;
        case 2:
            memcpy(p + at, &v, 8);
            break;
        case 3:
            memcpy(p + at, &v, 4);
            break;
        case 4: /* a small step of a number */
            p[at] = (uint8_t)(p[at] + (next_random(x) % 2 ? 1 : 255));
            break;
        case 5: /* bytes taken out */
            memmove(p + at, p + at + 4, *n - at - 4);
            *n -= 4;
            break;
        case 6: /* a piece copied over another */
            memmove(p + at, p + next_random(x) % (span - 8), 8);
            break;
        default:
            *n -= next_random(x) % 64;
        }
    }
}

/* INFERD_MUTANTS: how many in all (100,000 when unset), an eighth a seed. */
static int mutants_per_seed(void) {
    const char *env = getenv("INFERD_MUTANTS");
    const long n = env != NULL ? strtol(env, NULL, 10) : 100000;
    return n > 8 && n < 100000000 ? (int)(n / 8) : 12500;
}

START_TEST(mutants_do_no_harm) {
    static const char *const archs[] = {"llama", "qwen2", "qwen3", "phi3"};
    tiny_model m = smallest(archs[_i % 4]);
    if (_i >= 4) { /* with a vocabulary */
        m.no_tokenizer = false;
        m.n_vocab = 264;
    }
    gguf_builder b = tiny_builder(&m);
    const size_t header_bytes = 24 + b.kv.n + b.infos.n;
    bytes f = builder_finish(&b);
    uint64_t x = 88172645463325252u + (uint64_t)_i;
    uint8_t *copy = malloc(f.n);
    tally t = {0};
    for (int k = mutants_per_seed(); k > 0; k--) {
        size_t n = f.n;
        memcpy(copy, f.p, n);
        mutate(copy, &n, header_bytes, &x);
        try_file(copy, n, &t);
    }
    printf("%s, %zu bytes: %d mutants, %d parsed, %d loaded, %d run; slowest %.1f ms\n", m.arch,
           f.n, t.n, t.n_accepted, t.n_loaded, t.n_run, (double)t.slowest_ns / 1e6);
    ck_assert_int_gt(t.n_accepted, 0); /* else the mutator is too rough to test anything */
    ck_assert_int_lt(t.n_accepted, t.n);
    ck_assert_int_gt(t.n_run, 0);
    free(copy);
    free(f.p);
}
END_TEST

/* ---- cost ---- */

static long peak_kib(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return u.ru_maxrss;
}

/* Large files built to be slow or greedy: refused within 100 ms (ten times that under a sanitizer)
 * and 64 MiB above the file's size. */
START_TEST(refusals_are_cheap) {
    enum { SIZE = 48 << 20 };
    uint8_t *p = calloc(1, SIZE);
    gguf_builder b = builder_new();
    error err = {0};
    gguf *g = NULL;
    ck_assert_ptr_nonnull(p);
    if (_i == 0) builder_array(&b, "k", GGUF_STRING, SIZE / 8 - 64, "", 0); /* empty strings */
    if (_i == 1) builder_array(&b, "k", GGUF_STRING, (1 << 21) + 1, "", 0); /* one above the cap */
    if (_i == 2) builder_array(&b, "k", GGUF_BOOL, SIZE, "", 0);
    if (_i == 3) b.claim_n_tensors = 65536;
    if (_i == 4) b.claim_n_kv = 65536;
    if (_i == 5) builder_array(&b, "k", GGUF_STRING, 1 << 21, "", 0); /* then tensors are missing */
    if (_i < 3 || _i == 5) b.claim_n_tensors = 1;
    bytes head = builder_finish(&b);
    memset(p, 0, SIZE);
    memcpy(p, head.p, head.n);
    const long before = peak_kib();
    const int64_t start = cpu_ns();
    const status s = gguf_open_memory(p, SIZE, &g, &err);
    const int64_t ns = cpu_ns() - start;
    ck_assert_msg(s == E_FORMAT, "case %d: %s: %s", _i, status_name(s), err.text);
    printf("case %d: %.1f ms, %ld KiB: %s\n", _i, (double)ns / 1e6, peak_kib() - before, err.text);
#ifdef __SANITIZE_ADDRESS__
    ck_assert_int_lt(ns, 1000 * MS);
#else
    ck_assert_int_lt(ns, 100 * MS);
    ck_assert_int_lt(peak_kib() - before, 64 << 10);
#endif
    free(head.p);
    free(p);
}
END_TEST

int main(void) {
    Suite *s = suite_create("hostile");
    TCase *tc = tcase_create("hostile");
    tcase_set_timeout(tc, 280);
    tcase_add_test(tc, the_valid_file_is_accepted);
    tcase_add_loop_test(tc, wrong_files_are_refused, 0, N_WRONG_FILES);
    tcase_add_loop_test(tc, wrong_tokenizers_are_refused, 0,
                        (int)(sizeof wrong_tokenizers / sizeof wrong_tokenizers[0]));
    tcase_add_test(tc, truncation_at_every_byte);
    tcase_add_loop_test(tc, mutants_do_no_harm, 0, 8);
    tcase_add_loop_test(tc, refusals_are_cheap, 0, 6);
    suite_add_tcase(s, tc);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    const int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
