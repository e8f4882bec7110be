/* engine/gguf: values, tensors, splits, files. Wrong files are test_hostile.c's. */
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cost.h"
#include "engine/tokenizer.h"
#include "engine/weights.h"
#include "gguf_builder.h"
#include "tests/check_main.h"
#include "two_tokens.h"

static gguf *open_ok(const bytes *f) {
    gguf *g = NULL;
    error err = {0};
    const status s = gguf_open_memory(f->p, f->n, &g, &err);
    ck_assert_msg(s == OK, "%s: %s", status_name(s), err.text);
    return g;
}

START_TEST(values_are_read_by_type) {
    gguf_builder b = builder_new();
    const int8_t i8 = -5;
    const uint16_t u16 = 65535;
    const double f64 = 2.5;
    const int64_t i64 = INT64_MIN;
    builder_u32(&b, "u32", 7);
    builder_raw(&b, "i8", GGUF_I8, &i8, 1);
    builder_raw(&b, "u16", GGUF_U16, &u16, 2);
    builder_raw(&b, "f64", GGUF_F64, &f64, 8);
    builder_raw(&b, "i64", GGUF_I64, &i64, 8);
    builder_u64(&b, "u64", UINT64_MAX);
    builder_f32(&b, "f32", 0.5f);
    builder_bool(&b, "bool", 1);
    builder_str(&b, "str", "text");
    bytes f = builder_finish(&b);
    gguf *g = open_ok(&f);
    bool found = false, truth = false;
    uint64_t u = 0;
    int64_t i = 0;
    double d = 0;
    gguf_str s;
    gguf_array a;
    error err;
    ck_assert(gguf_get_u64(g, "u32", &found, &u, &err) == OK && found && u == 7);
    ck_assert(gguf_get_u64(g, "u16", &found, &u, &err) == OK && found && u == 65535);
    ck_assert(gguf_get_u64(g, "u64", &found, &u, &err) == OK && found && u == UINT64_MAX);
    ck_assert_int_eq(gguf_get_u64(g, "i8", &found, &u, &err), E_FORMAT); /* negative */
    ck_assert(gguf_get_i64(g, "i8", &found, &i, &err) == OK && i == -5);
    ck_assert(gguf_get_i64(g, "i64", &found, &i, &err) == OK && i == INT64_MIN);
    ck_assert_int_eq(gguf_get_i64(g, "u64", &found, &i, &err), E_FORMAT); /* above INT64_MAX */
    ck_assert(gguf_get_f64(g, "f64", &found, &d, &err) == OK && d >= 2.5 && d <= 2.5);
    ck_assert(gguf_get_f64(g, "f32", &found, &d, &err) == OK && d >= 0.5 && d <= 0.5);
    ck_assert_int_eq(gguf_get_f64(g, "u32", &found, &d, &err), E_FORMAT);
    ck_assert(gguf_get_bool(g, "bool", &found, &truth, &err) == OK && truth);
    ck_assert_int_eq(gguf_get_bool(g, "u32", &found, &truth, &err), E_FORMAT);
    ck_assert(gguf_get_str(g, "str", &found, &s, &err) == OK && s.len == 4);
    ck_assert_mem_eq(s.s, "text", 4);
    ck_assert_int_eq(gguf_get_str(g, "u32", &found, &s, &err), E_FORMAT);
    ck_assert_ptr_nonnull(strstr(err.text, "u32"));
    ck_assert_int_eq(gguf_get_array(g, "u32", &found, &a, &err), E_FORMAT);
    ck_assert(gguf_get_str(g, "absent", &found, &s, &err) == OK && !found);
    ck_assert(gguf_has(g, "str") && !gguf_has(g, "st") && !gguf_has(g, "strx"));
    gguf_close(g);
    free(f.p);
}
END_TEST

START_TEST(arrays_are_random_access) {
    static const char *const words[] = {"", "one", "", "three", "a longer string"};
    static const uint16_t u16[] = {1, 2, 65535};
    static const double f64[] = {0.25, -1};
    gguf_builder b = builder_new();
    gguf_array a;
    gguf_str s;
    int64_t i;
    double d;
    bool found;
    builder_strings(&b, "words", words, 5);
    builder_array(&b, "u16", GGUF_U16, 3, u16, sizeof u16);
    builder_array(&b, "f64", GGUF_F64, 2, f64, sizeof f64);
    builder_array(&b, "none", GGUF_STRING, 0, "", 0);
    bytes f = builder_finish(&b);
    gguf *g = open_ok(&f);
    ck_assert(gguf_get_array(g, "words", &found, &a, NULL) == OK && found);
    ck_assert_uint_eq(a.count, 5);
    for (uint64_t k = 5; k-- > 0;) {
        ck_assert(gguf_array_str(&a, k, &s) && s.len == strlen(words[k]));
        ck_assert(memcmp(s.s, words[k], s.len) == 0);
    }
    ck_assert(!gguf_array_str(&a, 5, &s) && !gguf_array_i64(&a, 0, &i));
    ck_assert(!gguf_array_f64(&a, 0, &d));
    ck_assert(gguf_get_array(g, "u16", &found, &a, NULL) == OK);
    ck_assert(gguf_array_i64(&a, 2, &i) && i == 65535 && !gguf_array_i64(&a, 3, &i));
    ck_assert(!gguf_array_str(&a, 0, &s));
    ck_assert(gguf_get_array(g, "f64", &found, &a, NULL) == OK);
    ck_assert(gguf_array_f64(&a, 1, &d) && d >= -1 && d <= -1);
    ck_assert(gguf_get_array(g, "none", &found, &a, NULL) == OK && !gguf_array_str(&a, 0, &s));
    gguf_close(g);
    free(f.p);
}
END_TEST

START_TEST(tensors_are_placed) {
    gguf_builder b = builder_new();
    uint8_t q8[34 * 2 * 3];
    const uint64_t ne[2] = {64, 3};
    for (size_t i = 0; i < sizeof q8; i++) q8[i] = (uint8_t)i;
    b.alignment = 64;
    builder_u32(&b, "general.alignment", 64);
    builder_floats(&b, "vector", 5, 0);
    builder_tensor(&b, "matrix", 2, ne, DTYPE_Q8_0, q8, sizeof q8);
    bytes f = builder_finish(&b);
    gguf *g = open_ok(&f);
    ck_assert_int_eq(gguf_n_tensors(g), 2);
    const gguf_tensor *t = gguf_find_tensor(g, "matrix");
    ck_assert_ptr_nonnull(t);
    ck_assert_ptr_eq(t, gguf_tensor_at(g, 1));
    ck_assert(t->n_dims == 2 && t->ne[0] == 64 && t->ne[1] == 3 && t->ne[2] == 1 && t->ne[3] == 1);
    ck_assert_uint_eq(t->bytes, sizeof q8);
    ck_assert_mem_eq(t->data, q8, sizeof q8);
    ck_assert_ptr_null(gguf_find_tensor(g, "matri"));
    ck_assert_ptr_null(gguf_tensor_at(g, 2));
    ck_assert_ptr_null(gguf_tensor_at(g, -1));
    gguf_close(g);
    free(f.p);
}
END_TEST

START_TEST(version_2_is_read) {
    gguf_builder b = builder_new();
    b.version = 2;
    builder_u32(&b, "a", 1);
    bytes f = builder_finish(&b);
    gguf_close(open_ok(&f));
    free(f.p);
}
END_TEST

/* ---- files ---- */

static char folder[64];

static void make_folder(void) {
    (void)snprintf(folder, sizeof folder, "/tmp/inferd-gguf-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
}

static void remove_folder(void) {
    char path[128];
    for (unsigned i = 1; i <= 3; i++) {
        (void)snprintf(path, sizeof path, "%s/m-%05u-of-00003.gguf", folder, i);
        (void)unlink(path);
    }
    (void)snprintf(path, sizeof path, "%s/f", folder);
    (void)unlink(path);
    ck_assert_int_eq(rmdir(folder), 0);
}

static void write_file(const char *path, const bytes *f) {
    FILE *out = fopen(path, "wb");
    ck_assert_ptr_nonnull(out);
    ck_assert_uint_eq(fwrite(f->p, 1, f->n, out), f->n);
    ck_assert_int_eq(fclose(out), 0);
}

typedef struct split_spec {
    unsigned no, count, total; /* what part 2 (of three) claims */
    const char *tensor;
    bool omit;
    status expected;
    const char *text;
} split_spec;

static void write_split(const split_spec *spec) {
    for (unsigned i = 0; i < 3; i++) {
        char path[128], name[32];
        gguf_builder b = builder_new();
        const uint16_t no = (uint16_t)(i == 1 ? spec->no : i);
        const uint16_t count = (uint16_t)(i == 1 ? spec->count : 3);
        if (i == 0) builder_str(&b, "general.name", "split");
        builder_raw(&b, "split.no", GGUF_U16, &no, 2);
        builder_raw(&b, "split.count", GGUF_U16, &count, 2);
        if (i == 0) builder_i32(&b, "split.tensors.count", (int32_t)spec->total);
        (void)snprintf(name, sizeof name, "t%u", i);
        builder_floats(&b, i == 1 ? spec->tensor : name, 8, 2);
        bytes f = builder_finish(&b);
        (void)snprintf(path, sizeof path, "%s/m-%05u-of-00003.gguf", folder, i + 1);
        if (!(spec->omit && i == 1)) write_file(path, &f);
        free(f.p);
    }
}

START_TEST(splits_open_as_one) {
    static const split_spec specs[] = {
        {1, 3, 3, "t1", false, OK, ""},
        {2, 3, 3, "t1", false, E_FORMAT, "split.no"},
        {1, 4, 3, "t1", false, E_FORMAT, "split.count"},
        {1, 3, 4, "t1", false, E_FORMAT, "split.tensors.count"},
        {1, 3, 3, "t0", false, E_FORMAT, "occurs twice"},
        {1, 3, 3, "t1", true, E_NOTFOUND, "00002-of-00003"},
    };
    const split_spec *spec = &specs[_i];
    char path[128];
    gguf *g = NULL;
    error err = {0};
    make_folder();
    write_split(spec);
    (void)snprintf(path, sizeof path, "%s/m-00001-of-00003.gguf", folder);
    const status s = gguf_open(path, &g, &err);
    ck_assert_msg(s == spec->expected, "case %d: %s: %s", _i, status_name(s), err.text);
    if (s == OK) {
        ck_assert_int_eq(gguf_n_tensors(g), 3);
        ck_assert_ptr_nonnull(gguf_find_tensor(g, "t2"));
        ck_assert(gguf_has(g, "general.name"));
        uint8_t digest[32];
        ck_assert_int_eq(gguf_sha256(g, digest), OK);
        gguf_close(g);
        (void)snprintf(path, sizeof path, "%s/m-00002-of-00003.gguf", folder);
        ck_assert_int_eq(gguf_open(path, &g, &err), E_FORMAT); /* not the first part */
        ck_assert_ptr_nonnull(strstr(err.text, "00001-of-00003"));
    } else {
        ck_assert_msg(strstr(err.text, spec->text) != NULL, "case %d: %s", _i, err.text);
    }
    remove_folder();
}
END_TEST

START_TEST(paths_that_are_no_model) {
    gguf *g = NULL;
    error err = {0};
    char path[128];
    make_folder();
    (void)snprintf(path, sizeof path, "%s/f", folder);
    ck_assert_int_eq(gguf_open(path, &g, &err), E_NOTFOUND);
    ck_assert_ptr_nonnull(strstr(err.text, path));
    ck_assert_int_eq(gguf_open(folder, &g, &err), E_IO);
    ck_assert_int_eq(gguf_open("/dev/zero", &g, &err), E_IO);
    ck_assert_int_eq(mkfifo(path, 0600), 0);
    ck_assert_int_eq(gguf_open(path, &g, &err), E_IO); /* and does not wait for a writer */
    ck_assert_int_eq(unlink(path), 0);
    bytes f = {0};
    bytes_put(&f, "GGUF", 4);
    write_file(path, &f);
    ck_assert_int_eq(gguf_open(path, &g, &err), E_FORMAT);
    free(f.p);
    remove_folder();
}
END_TEST

/* Cut after the header was read: to nothing, within the header, within the tensors. Whatever comes
 * next meets zeros, not SIGBUS, and the file is named in the end. */
START_TEST(cut_between_parse_and_load) {
    static const long left[] = {0, 5000, 30000};
    tiny_model m = tiny_default("llama");
    gguf_builder b = tiny_builder(&m);
    bytes f = builder_finish(&b);
    char path[128];
    gguf *g = NULL;
    tokenizer *t = NULL;
    weights *w = NULL;
    error err = {0};
    make_folder();
    (void)snprintf(path, sizeof path, "%s/f", folder);
    write_file(path, &f);
    ck_assert_int_eq(gguf_open(path, &g, &err), OK);
    ck_assert_int_eq(gguf_check_unchanged(g, &err), OK);
    ck_assert_int_eq(truncate(path, left[_i]), 0);
    if (tokenizer_open(g, &t, &err) != OK) ck_assert_str_ne(err.text, "");
    const status s = weights_open(g, 0, &w, &err);
    ck_assert(s == OK || _i < 2); /* only the tensors are gone */
    if (s == OK) ck_assert_int_eq(two_tokens(weights_desc(w), &err), OK);
    ck_assert_int_eq(gguf_check_unchanged(g, &err), E_IO);
    ck_assert_msg(strstr(err.text, path) == err.text, "%s", err.text);
    weights_close(w);
    tokenizer_close(t);
    gguf_close(g);
    free(f.p);
    remove_folder();
}
END_TEST

START_TEST(many_keys_open_quickly) {
    enum { N = 60000 };
    gguf_builder b = builder_new();
    for (int i = 0; i < N; i++) {
        char key[32];
        (void)snprintf(key, sizeof key, "key.%d", i);
        builder_u32(&b, key, (uint32_t)i);
    }
    bytes f = builder_finish(&b);
    const cost start = cost_now();
    gguf *g = open_ok(&f);
    const double ms = (double)cost_since(start).ns * 1e-6;
    printf("%d keys in %.0f ms\n", N, ms);
    ck_assert_msg(ms < 400 * cost_crowded(), "%.0f ms", ms); /* quadratic would be minutes */
    uint64_t u;
    bool found;
    ck_assert(gguf_get_u64(g, "key.59999", &found, &u, NULL) == OK && found && u == 59999);
    gguf_close(g);
    free(f.p);
}
END_TEST

int main(void) {
    TCase *tc = tcase_create("gguf");
    tcase_add_test(tc, values_are_read_by_type);
    tcase_add_test(tc, arrays_are_random_access);
    tcase_add_test(tc, tensors_are_placed);
    tcase_add_test(tc, version_2_is_read);
    tcase_add_loop_test(tc, splits_open_as_one, 0, 6);
    tcase_add_test(tc, paths_that_are_no_model);
    tcase_add_loop_test(tc, cut_between_parse_and_load, 0, 3);
    tcase_add_test(tc, many_keys_open_quickly);
    return check_run("gguf", tc);
}
