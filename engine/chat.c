#include "engine/chat.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "base/utf8.h"
#include "engine/jinja.h"

const char chat_chatml[] =
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + "
    "'<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% endif %}";

enum {
    TREE_BYTES_MAX = 64 << 20,
    RENDER_BYTES_MAX = 64 << 20 /* text of 2 MiB passes some ten operations in it */
};

struct chat_template {
    arena mem;
    const jinja_node *tree; /* in mem, as the strings */
    const char *bos, *eos;
    size_t bos_len, eos_len;
    bool tools;
};

void chat_text_free(chat_text *c) {
    free(c->parts);
    free(c->text);
    *c = (chat_text){0};
}

void chat_template_close(chat_template *c) {
    if (!c) return;
    arena_reset(&c->mem);
    free(c);
}

status chat_template_open(const char *source, size_t len, const char *bos, const char *eos,
                          chat_template **out, error *err) {
    if (len > LIMIT_TEMPLATE_BYTES) {
        return error_set(err, E_TOO_LARGE, "the chat template has %zu bytes, the limit is %u", len,
                         LIMIT_TEMPLATE_BYTES);
    }
    if (!utf8_valid(source, len)) return error_set(err, E_FORMAT, "the chat template is not UTF-8");
    chat_template *c = calloc(1, sizeof *c);
    if (!c) return error_set(err, E_NOMEM, "chat template: %zu bytes", sizeof *c);
    arena_init(&c->mem, TREE_BYTES_MAX);
    jinja_node *tree;
    const status s = jinja_parse(source, len, &c->mem, &tree, err);
    if (s != OK) {
        chat_template_close(c);
        return s;
    }
    c->tree = tree;
    c->tools = jinja_mentions(tree, "tools");
    c->bos_len = bos ? strlen(bos) : 0;
    c->eos_len = eos ? strlen(eos) : 0;
    c->bos = arena_strndup(&c->mem, bos ? bos : "", c->bos_len);
    c->eos = arena_strndup(&c->mem, eos ? eos : "", c->eos_len);
    if (!c->bos || !c->eos) {
        chat_template_close(c);
        return error_set(err, E_NOMEM, "chat template: special tokens");
    }
    *out = c;
    return OK;
}

bool chat_template_supports_tools(const chat_template *c) {
    return c->tools;
}

static jinja_value message_value(jinja *x, const chat_message *m) {
    const jinja_value d = jinja_dict_new(x);
    if (x->st != OK) return d;
    jinja_dict_set(x, d.u.dict, jinja_text(x, "role"),
                   jinja_string(x, m->role, m->role_len, ORIGIN_LITERAL));
    jinja_dict_set(x, d.u.dict, jinja_text(x, "content"),
                   jinja_string(x, m->content, m->content_len, ORIGIN_LITERAL));
    if (m->name_len > 0) {
        jinja_dict_set(x, d.u.dict, jinja_text(x, "name"),
                       jinja_string(x, m->name, m->name_len, ORIGIN_LITERAL));
    }
    return d;
}

/* The variables of a rendering. Tools and documents are none when absent, as the reference passes
 * them. */
static void set_variables(jinja *x, const chat_template *c, const chat_request *r) {
    const jinja_value messages = jinja_list_new(x, (size_t)r->n_messages);
    for (int i = 0; i < r->n_messages && x->st == OK; i++) {
        jinja_list_push(x, messages.u.list, message_value(x, &r->messages[i]));
    }
    jinja_set_global(x, "messages", messages);
    jinja_set_global(x, "add_generation_prompt", jinja_bool(r->add_generation_prompt));
    jinja_set_global(x, "bos_token", jinja_string(x, c->bos, c->bos_len, ORIGIN_MARKUP));
    jinja_set_global(x, "eos_token", jinja_string(x, c->eos, c->eos_len, ORIGIN_MARKUP));
    jinja_set_global(x, "documents", jinja_none());
    jinja_value tools = jinja_none();
    if (r->tools_json) {
        tools = jinja_from_json(x, r->tools_json, r->tools_json_len, "tools_json");
        if (x->st == OK && tools.kind != JINJA_LIST) {
            jinja_fail(x, E_INVAL, "tools_json: not a JSON array");
        }
    }
    jinja_set_global(x, "tools", tools);
    if (!r->variables_json || x->st != OK) return;
    const jinja_value extra =
        jinja_from_json(x, r->variables_json, strlen(r->variables_json), "variables");
    if (x->st == OK && extra.kind != JINJA_DICT) jinja_fail(x, E_INVAL, "variables: not an object");
    for (size_t i = 0; x->st == OK && i < extra.u.dict->n; i++) {
        const jinja_str *key = extra.u.dict->v[i].key.u.s;
        char *name = jinja_alloc(x, key->len + 1);
        if (!name) return;
        memcpy(name, key->s, key->len);
        name[key->len] = '\0';
        jinja_set_global(x, name, extra.u.dict->v[i].value);
    }
}

/* Cuts the output where its origin changes. */
static status make_parts(const jinja_buffer *b, chat_text *out, error *err) {
    size_t n = 0;
    for (size_t i = 0; i < b->len; i++) n += i == 0 || b->mask[i] != b->mask[i - 1];
    chat_text c = {.text_len = b->len};
    c.text = malloc(b->len + 1);
    c.parts = calloc(n ? n : 1, sizeof *c.parts);
    if (!c.text || !c.parts) {
        chat_text_free(&c);
        return error_set(err, E_NOMEM, "chat: %zu bytes of text", b->len);
    }
    if (b->len > 0) memcpy(c.text, b->s, b->len);
    c.text[b->len] = '\0';
    for (size_t i = 0; i < b->len; i++) {
        if (i == 0 || b->mask[i] != b->mask[i - 1]) {
            c.parts[c.n_parts++] =
                (text_part){.s = c.text + i, .literal = b->mask[i] == ORIGIN_LITERAL};
        }
        c.parts[c.n_parts - 1].len++;
    }
    *out = c;
    return OK;
}

status chat_render(const chat_template *c, const chat_request *r, chat_text *out, error *err) {
    assert(c && r && out);
    error own;
    if (!err) err = &own;
    if (r->n_messages <= 0) return error_set(err, E_INVAL, "messages: empty");
    jinja x;
    jinja_buffer text = {0};
    jinja_init(&x, RENDER_BYTES_MAX, err);
    set_variables(&x, c, r);
    status s = x.st == OK ? jinja_run(&x, c->tree, &text) : x.st;
    if (s == OK) s = make_parts(&text, out, err);
    jinja_deinit(&x);
    return s;
}
