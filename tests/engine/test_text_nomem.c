/* Method: every allocation fails once. The N-th malloc, calloc or realloc of an operation returns
 * NULL, for N = 1 to the last; the operation must say E_NOMEM, leak nothing, and work the next
 * time. malloc is replaced in this program, over glibc's own entry points. */
#include <stdlib.h>
#include <string.h>

#include "engine/chat.h"
#include "tests/check_main.h"
#include "tests/engine/gguf_builder.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__GLIBC__)
#define REPLACED 0 /* the sanitizers replace malloc themselves */
#else
#define REPLACED 1
#endif

static long n_until_failure; /* 0: never */
static long n_live;

#if REPLACED
void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);
void __libc_free(void *p);

static bool fails(void) {
    return n_until_failure > 0 && --n_until_failure == 0;
}
void *malloc(size_t n) {
    void *p = fails() ? NULL : __libc_malloc(n);
    n_live += p != NULL;
    return p;
}
void *calloc(size_t n, size_t size) {
    void *p = fails() ? NULL : __libc_calloc(n, size);
    n_live += p != NULL;
    return p;
}
void *realloc(void *old, size_t n) {
    if (fails()) return NULL;
    void *p = __libc_realloc(old, n);
    n_live += p != NULL && old == NULL;
    return p;
}
void free(void *p) {
    n_live -= p != NULL;
    __libc_free(p);
}
#endif

/* Runs step with its N-th allocation failing, for all N. or_else: another status that is right,
 * too. */
static void fail_each(status (*step)(void *ctx), void *ctx, status or_else) {
    ck_assert_int_eq(step(ctx), OK); /* also: what libraries allocate once is there now */
    for (long n = 1;; n++) {
        const long before = n_live;
        n_until_failure = n;
        const status s = step(ctx);
        const bool reached = n_until_failure == 0;
        n_until_failure = 0;
        ck_assert_msg(n_live == before, "allocation %ld failed: %ld leaked", n, n_live - before);
        if (!reached) {
            ck_assert_int_eq(s, OK);
            ck_assert_int_gt(n, 3);
            return;
        }
        ck_assert_msg(s == E_NOMEM || s == or_else, "allocation %ld failed: %s", n, status_name(s));
    }
}

static gguf *small_vocabulary(bool spm) {
    static const char *const bpe[] = {"a", "b", "c", "ab", "abc", "<|x|>", "e", "[PAD7]"};
    static const char *const words[] = {"<unk>", "a", "b", "ab", "▁", "<|x|>", "c", "[PAD7]"};
    static const int32_t types[] = {1, 1, 1, 1, 1, 3, 1, 5}, spm_types[] = {2, 1, 1, 1, 1, 3, 1, 5};
    static const float scores[8] = {0, -1, -2, -3, -4};
    static const char *const merges[] = {"a b", "ab c"};
    gguf_builder b = builder_new();
    builder_str(&b, "tokenizer.ggml.model", spm ? "llama" : "gpt2");
    builder_str(&b, "tokenizer.ggml.pre", "qwen2");
    builder_strings(&b, "tokenizer.ggml.tokens", spm ? words : bpe, 8);
    builder_array(&b, "tokenizer.ggml.token_type", GGUF_I32, 8, spm ? spm_types : types, 32);
    builder_array(&b, "tokenizer.ggml.scores", GGUF_F32, 8, scores, 32);
    builder_strings(&b, "tokenizer.ggml.merges", merges, 2);
    bytes *file = malloc(sizeof *file); /* lives as long as the program */
    *file = builder_finish(&b);
    gguf *g;
    error err = {0};
    ck_assert_msg(gguf_open_memory(file->p, file->n, &g, &err) == OK, "%s", err.text);
    return g;
}

static status open_and_close(void *ctx) {
    tokenizer *t;
    error err = {0};
    const status s = tokenizer_open(ctx, &t, &err);
    if (s == OK) tokenizer_close(t);
    return s;
}

static status encode_and_free(void *ctx) {
    static char text[600];
    memset(text, 'a', sizeof text - 1);
    for (size_t i = 0; i + 8 < sizeof text; i += 7) memcpy(text + i, "bcab", 4);
    const text_part parts[] = {
        {"<|x|>e\xCC\x81 ab", 10, false}, {text, sizeof text - 1, true}, {"\xFF▁z", 5, false}};
    token_list l = {.with_offsets = true};
    const status s = tokenizer_encode(ctx, parts, 3, TOKENIZE_ADD_SPECIAL, &l);
    token_list_free(&l);
    return s;
}

START_TEST(tokenizer_survives_each_failure) {
    gguf *g = small_vocabulary(_i == 1);
    tokenizer *t;
    error err = {0};
    fail_each(open_and_close, g, E_NOMEM);
    ck_assert_msg(tokenizer_open(g, &t, &err) == OK, "%s", err.text);
    fail_each(encode_and_free, t, E_NOMEM);
    tokenizer_close(t);
    gguf_close(g);
}
END_TEST

static status render_once(void *ctx) {
    static const char source[] =
        "{% macro m(a, b=1) %}{{ a|upper }}{{ b }}{% endmacro %}{% set ns = namespace(x=[1, 2]) %}"
        "{% for m2 in messages if m2.role != 'x' %}{{ loop.index ~ m(m2.content) + "
        "m2['content'][:2] }}{% endfor %}"
        "{% set tools = tools or [{'a': 'q,p'}] %}"
        "{{ tools|tojson(indent=2) }}{{ (tools|first).a.split(',')|sort|join('-') }}{{ {'a': (1, "
        "2)} }}"
        "{% set t %}{{ ns.x|map('string')|list }}{% endset %}{{ t|replace('1', '3') }}";
    chat_template *c;
    error err = {0};
    status s = chat_template_open(source, sizeof source - 1, "<s>", "</s>", &c, &err);
    if (s != OK) return s;
    const chat_message m = {.role = "user", .role_len = 4, .content = "Hi there", .content_len = 8};
    const chat_request r = {.messages = &m,
                            .n_messages = 1,
                            .tools_json = ctx,
                            .tools_json_len = ctx ? strlen(ctx) : 0};
    chat_text out;
    s = chat_render(c, &r, &out, &err);
    if (s == OK) chat_text_free(&out);
    chat_template_close(c);
    return s;
}

START_TEST(templates_survive_each_failure) {
    static char tools[] = "[{\"a\": \"z,y,x\", \"b\": [1.5, null, true]}]";
    fail_each(render_once, NULL, E_NOMEM);
    fail_each(render_once, tools, E_INVAL); /* jansson calls some of its own failures bad syntax */
}
END_TEST

int main(void) {
    TCase *tc = tcase_create("nomem");
    if (REPLACED) {
        tcase_add_loop_test(tc, tokenizer_survives_each_failure, 0, 2);
        tcase_add_test(tc, templates_survive_each_failure);
    } else {
        puts("SKIP: a sanitizer owns malloc in this build");
    }
    return check_run("text_nomem", tc);
}
