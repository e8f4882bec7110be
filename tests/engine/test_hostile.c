/* Hostile model files: a table of wrong ones, each with one thing wrong, from the container to the
 * model's numbers. Each is refused by name, and at little cost. Files made by the thousand are
 * test_hostile_mutants.c's; parts of split models test_gguf.c's. */
#include "cost.h"
#include "engine/tokenizer.h"
#include "engine/weights.h"
#include "gguf_builder.h"
#include "tests/check_main.h"

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

/* ---- numbers that do not fit the model ---- */

/* Overwrites four bytes, `at` bytes after the key's name: 0 is the value's type, 4 the value, of an
 * array 4 the element type, 8 the count, 16 the first element. */
static void patch(gguf_builder *b, const char *key, size_t at, uint32_t value) {
    const size_t len = strlen(key);
    size_t i = 0;
    while (memcmp(b->kv.p + i, key, len) != 0) i++;
    memcpy(b->kv.p + i + len + at, &value, sizeof value);
}

static void heads_0(gguf_builder *b, bytes *out) {
    patch(b, "llama.attention.head_count", 4, 0), finish(b, out);
}
static void kv_heads_0(gguf_builder *b, bytes *out) {
    patch(b, "llama.attention.head_count_kv", 4, 0), finish(b, out);
}
static void kv_heads_3(gguf_builder *b, bytes *out) {
    patch(b, "llama.attention.head_count_kv", 4, 3), finish(b, out);
}
static void layers_0(gguf_builder *b, bytes *out) {
    patch(b, "llama.block_count", 4, 0), finish(b, out);
}
static void layers_max(gguf_builder *b, bytes *out) {
    patch(b, "llama.block_count", 4, UINT32_MAX), finish(b, out);
}
static void layers_512(gguf_builder *b, bytes *out) {
    patch(b, "llama.block_count", 4, 512), finish(b, out);
}
static void embedding_other(gguf_builder *b, bytes *out) {
    patch(b, "llama.embedding_length", 4, 64), finish(b, out);
}
static void feed_forward_other(gguf_builder *b, bytes *out) {
    patch(b, "llama.feed_forward_length", 4, 31), finish(b, out);
}
static void rope_huge(gguf_builder *b, bytes *out) {
    builder_u32(b, "llama.rope.dimension_count", 0x7FFFFFFE), finish(b, out);
}
static void heads_times_length(gguf_builder *b, bytes *out) {
    patch(b, "llama.attention.head_count", 4, 1u << 16);
    patch(b, "llama.attention.key_length", 4, 1u << 16);
    finish(b, out);
}
static void key_length_huge(gguf_builder *b, bytes *out) {
    patch(b, "llama.attention.key_length", 4, 0x80000000u), finish(b, out);
}
static void context_0(gguf_builder *b, bytes *out) {
    patch(b, "llama.context_length", 4, 0), finish(b, out);
}
static void epsilon_0(gguf_builder *b, bytes *out) {
    patch(b, "llama.attention.layer_norm_rms_epsilon", 4, 0), finish(b, out);
}
static void epsilon_infinite(gguf_builder *b, bytes *out) {
    patch(b, "llama.attention.layer_norm_rms_epsilon", 4, 0x7F800000), finish(b, out);
}
static void bos_beyond(gguf_builder *b, bytes *out) {
    patch(b, "tokenizer.ggml.bos_token_id", 4, 264), finish(b, out);
}
static void eos_max(gguf_builder *b, bytes *out) {
    patch(b, "tokenizer.ggml.eos_token_id", 4, UINT32_MAX), finish(b, out);
}
static void score_nan(gguf_builder *b, bytes *out) {
    patch(b, "tokenizer.ggml.scores", 16, 0x7FC00000), finish(b, out);
}
static void type_7(gguf_builder *b, bytes *out) {
    patch(b, "tokenizer.ggml.token_type", 16, 7), finish(b, out);
}
static void types_are_floats(gguf_builder *b, bytes *out) {
    patch(b, "tokenizer.ggml.token_type", 4, GGUF_F32), finish(b, out);
}
/* A shorter array: the rest of it is taken for the next key, so it ends the file's keys. */
static void fewer(gguf_builder *b, const char *key, bytes *out) {
    static const int32_t zeros[263] = {0};
    char renamed[64];
    size_t i = 0;
    (void)snprintf(renamed, sizeof renamed, "%s", key);
    renamed[strlen(key) - 1] = '_'; /* the right one goes out of the way */
    while (memcmp(b->kv.p + i, key, strlen(key)) != 0) i++;
    memcpy(b->kv.p + i, renamed, strlen(key));
    const bool scores = strstr(key, "scores") != NULL;
    builder_array(b, key, scores ? GGUF_F32 : GGUF_I32, 263, zeros, sizeof zeros);
    finish(b, out);
}
static void fewer_types(gguf_builder *b, bytes *out) {
    fewer(b, "tokenizer.ggml.token_type", out);
}
static void fewer_scores(gguf_builder *b, bytes *out) {
    fewer(b, "tokenizer.ggml.scores", out);
}
static void token_twice(gguf_builder *b, bytes *out) {
    uint8_t *p = b->kv.p;
    while (memcmp(p, "<0x41>", 6) != 0) p++;
    memcpy(p, "<0x42>", 6);
    finish(b, out);
}
static void model_unknown(gguf_builder *b, bytes *out) {
    uint8_t *p = b->kv.p;
    while (memcmp(p, "tokenizer.ggml.model", 20) != 0) p++;
    memcpy(p + 20 + 4 + 8, "lmama", 5);
    finish(b, out);
}

/* ---- the table ---- */

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
    {"head_count 0", E_FORMAT, "head_count", heads_0},
    {"head_count_kv 0", E_FORMAT, "head_count_kv", kv_heads_0},
    {"head_count_kv that does not divide", E_FORMAT, "head_count", kv_heads_3},
    {"block_count 0", E_FORMAT, "block_count", layers_0},
    {"block_count 2^32-1", E_FORMAT, "block_count", layers_max},
    {"block_count larger than tensors present", E_FORMAT, "blk.2.", layers_512},
    {"another embedding_length", E_FORMAT, "token_embd.weight: shape", embedding_other},
    {"another feed_forward_length", E_FORMAT, "blk.0.ffn_", feed_forward_other},
    {"huge rope.dimension_count", E_FORMAT, "dimension_count", rope_huge},
    {"head_count * key_length overflows", E_FORMAT, "head_count", heads_times_length},
    {"huge key_length", E_FORMAT, "key_length", key_length_huge},
    {"context_length 0", E_FORMAT, "context_length", context_0},
    {"epsilon 0", E_FORMAT, "epsilon", epsilon_0},
    {"epsilon infinite", E_FORMAT, "epsilon", epsilon_infinite},
    {"bos id beyond the vocabulary", E_FORMAT, "bos_token_id", bos_beyond},
    {"eos id 2^32-1", E_FORMAT, "eos_token_id", eos_max},
    {"a NaN score", E_FORMAT, "scores", score_nan},
    {"a token of type 7", E_FORMAT, "type 7", type_7},
    {"types that are floats", E_FORMAT, "token_type", types_are_floats},
    {"fewer types than tokens", E_FORMAT, "token_type", fewer_types},
    {"fewer scores than tokens", E_FORMAT, "scores", fewer_scores},
    {"two tokens of one spelling", E_FORMAT, "same spelling", token_twice},
    {"an unknown tokenizer", E_UNSUPPORTED, "lmama", model_unknown},
    {"a part of a split model", E_UNSUPPORTED, "split", split_in_memory},
};
enum { N_WRONG_FILES = sizeof wrong_files / sizeof wrong_files[0] };

/* What a server does with a file before it takes memory for it. */
static status load(const bytes *f, error *err) {
    gguf *g = NULL;
    tokenizer *t = NULL;
    weights *w = NULL;
    status s = gguf_open_memory(f->p, f->n, &g, err);
    if (s == OK) s = tokenizer_open(g, &t, err);
    if (s == OK) s = weights_open(g, 0, &w, err);
    weights_close(w);
    tokenizer_close(t);
    gguf_close(g);
    return s;
}

/* Else the makers would stop at another fault. */
START_TEST(the_valid_file_is_accepted) {
    tiny_model m = tiny_default("llama");
    gguf_builder b = tiny_builder(&m);
    bytes f = builder_finish(&b);
    error err = {0};
    ck_assert_msg(load(&f, &err) == OK, "%s", err.text);
    free(f.p);
}
END_TEST

START_TEST(wrong_files_are_refused) {
    const wrong_file *w = &wrong_files[_i];
    tiny_model m = tiny_default("llama");
    gguf_builder b = tiny_builder(&m);
    bytes f = {0};
    error err = {0};
    w->make(&b, &f);
    const cost start = cost_now();
    const status s = load(&f, &err);
    const cost c = cost_since(start);
    ck_assert_msg(s == w->expected, "%s: %s: %s", w->what, status_name(s), err.text);
    ck_assert_msg(strstr(err.text, w->text) != NULL, "%s: %s", w->what, err.text);
    cost_check_refusal(c, f.n, w->what);
    free(f.p);
}
END_TEST

int main(void) {
    TCase *tc = tcase_create("hostile");
    tcase_add_test(tc, the_valid_file_is_accepted);
    tcase_add_loop_test(tc, wrong_files_are_refused, 0, N_WRONG_FILES);
    return check_run("hostile", tc);
}
