/* Requests from flags. Everything in the message lives in the builder's arena or is borrowed from
 * argv; nothing is checked that the server checks (it says it better). Thread: main. */
#ifndef INFERD_CLIENT_REQUEST_H
#define INFERD_CLIENT_REQUEST_H

#include "base/arena.h"
#include "client/cli.h"
#include "inferd/v1/inference.pb-c.h"

/* Where the input comes from; shared by generate and tokenize. */
typedef struct input_options {
    bool chat, plain, no_bos, no_generation_prompt;
    const char *system, *messages_file, *tools_file, *token_ids;
    text_list messages; /* "role:content" */
} input_options;

typedef struct generate_options {
    input_options input;
    const char *request_id, *model, *cache_salt;
    int32_t priority;
    uint32_t choices;
    float temperature, top_p, min_p, repetition_penalty, frequency_penalty, presence_penalty;
    uint32_t top_k;
    uint64_t seed;
    text_list logit_bias; /* "ID=VALUE" */
    uint32_t max_tokens, min_tokens, time_limit_ms;
    text_list stop, stop_token_ids;
    bool ignore_eos, include_stop, logprobs, prompt_logprobs, keep_special, final_only;
    uint32_t top_logprobs;
    const char *json_schema_file, *regex, *grammar_file;
    text_list choice;
    bool json_object;
    bool usage; /* not of the request: statistics on stderr */
} generate_options;

enum { INPUT_FLAGS = 8, SAMPLING_FLAGS = 12, GENERATE_FLAGS = 48 };

/* The flags of `generate`, of sampling alone (`chat` has them too), of inputs. Each returns how
 * many it wrote. */
int generate_flags(generate_options *o, flag out[GENERATE_FLAGS]);
int sampling_flags(generate_options *o, flag out[SAMPLING_FLAGS]);
int input_flags(input_options *o, flag out[INPUT_FLAGS]);

/* One message of a chat; both texts are borrowed. NULL: out of memory. */
Inferd__V1__Message *request_message(arena *a, const char *role, const char *content,
                                     size_t content_bytes);

/* Fills r (initialised here) from the options and the command's arguments. -1, or an exit code
 * after saying why. */
int request_build_generate(const cli *c, const generate_options *o, arena *a,
                           Inferd__V1__GenerateRequest *r);
/* All but the input. */
int request_build_parameters(const cli *c, const generate_options *o, arena *a,
                             Inferd__V1__GenerateRequest *r);
/* A chat from --system, --message, --messages and the argument as the user's turn. */
int request_build_chat(const cli *c, const input_options *o, arena *a, Inferd__V1__Chat **out);

/* "1,2 3" -> ids. -1 or an exit code. */
int request_parse_ids(const cli *c, const char *text, arena *a, uint32_t **ids, size_t *n);
ProtobufCBinaryData request_text(const char *s); /* borrowed; NULL: empty */
#endif
