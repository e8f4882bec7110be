/* Chat templates: the Jinja template that the model file carries, run by a small sandboxed
 * interpreter (fuel, depth and output limits; no I/O). The output is a list of parts: what came
 * from the template is markup, what came from messages is literal and can never be tokenised as a
 * control token. A file without a template gets ChatML. Thread: chat_render from any thread; a
 * chat_template is immutable after open. */
#ifndef INFERD_ENGINE_CHAT_H
#define INFERD_ENGINE_CHAT_H

#include "engine/tokenizer.h"

typedef struct chat_template chat_template;

typedef struct chat_message {
    const char *role, *content, *name; /* NUL-free UTF-8; name may be empty */
    size_t role_len, content_len, name_len;
} chat_message;

typedef struct chat_request {
    const chat_message *messages;
    int n_messages;
    bool add_generation_prompt;
    const char *tools_json; /* a JSON array, or NULL */
    size_t tools_json_len;
    const char
        *variables_json; /* extra template variables as a JSON object, or NULL (tests only) */
} chat_request;

typedef struct chat_text {
    text_part *parts; /* owned; s points into text */
    int n_parts;
    char *text; /* owned: the whole rendering, UTF-8 */
    size_t text_len;
} chat_text;
void chat_text_free(chat_text *c);

/* ChatML: what a file without a template gets, as elsewhere. */
extern const char chat_chatml[];

/* Parses the template (source, len: not NUL-terminated). bos, eos: spellings given to it as
 * bos_token, eos_token. E_FORMAT: a syntax error with its line; E_UNSUPPORTED names a construct
 * that the interpreter does not have. */
BASE_MUST_USE status chat_template_open(const char *source, size_t len, const char *bos,
                                        const char *eos, chat_template **out, error *err);
void chat_template_close(chat_template *c);
/* Mentions `tools`: a request with tools_json takes effect. */
bool chat_template_supports_tools(const chat_template *c);

/* E_INVAL: the template refused (raise_exception; err->text is its message) or indexed what is not
 * there, or messages is empty, or tools_json is no JSON array; E_TOO_LARGE: fuel, depth or output
 * limit; E_NOMEM. */
BASE_MUST_USE status chat_render(const chat_template *c, const chat_request *r, chat_text *out,
                                 error *err);
#endif
