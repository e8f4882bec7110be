/* A chat template and messages, divided by NUL bytes: template, then role and content by turns. */
#include "base/limits.h"
#include "base/utf8.h"
#include "engine/chat.h"
#include "fuzz.h"

enum { MESSAGES_MAX = 8 };

static void check_output(const chat_text *t) {
    size_t at = 0;
    assert(t->text_len <= LIMIT_TEMPLATE_OUTPUT_BYTES);
    for (int i = 0; i < t->n_parts; i++) {
        assert(t->parts[i].s == t->text + at);
        at += t->parts[i].len;
    }
    assert(at == t->text_len);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    chat_message m[MESSAGES_MAX] = {{0}};
    chat_request r = {.messages = m, .add_generation_prompt = true};
    chat_template *t = NULL;
    chat_text out = {0};
    error err = {0};
    size_t len;
    uint8_t *copy = fuzz_copy(data, size);
    const uint8_t *p = copy;
    const char *source = fuzz_take(&p, &size, 0, &len);
    status s = chat_template_open(source, len, "<s>", "</s>", &t, &err);
    assert(s == OK || s == E_FORMAT || s == E_UNSUPPORTED || s == E_TOO_LARGE || s == E_NOMEM);
    while (size > 0 && r.n_messages < MESSAGES_MAX) {
        chat_message *one = &m[r.n_messages];
        one->role = fuzz_take(&p, &size, 0, &one->role_len);
        one->content = fuzz_take(&p, &size, 0, &one->content_len);
        one->name = "";
        if (!utf8_valid(one->role, one->role_len) || !utf8_valid(one->content, one->content_len))
            break; /* the server has checked texts */
        r.n_messages++;
    }
    if (s == OK) {
        s = chat_render(t, &r, &out, &err);
        assert(s == OK || s == E_INVAL || s == E_TOO_LARGE || s == E_NOMEM || s == E_UNSUPPORTED);
        if (s == OK) {
            check_output(&out);
            chat_text_free(&out);
        } else {
            /* A refusal carries the template's own message, which may be empty. */
            assert(s == E_INVAL || err.text[0] != '\0');
        }
    }
    chat_template_close(t);
    free(copy);
    return 0;
}
