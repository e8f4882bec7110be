/* The flags of requests: each field of the API by a name on the command line. */
#include <assert.h>
#include <string.h>

#include "client/request.h"

int input_flags(input_options *o, flag out[INPUT_FLAGS]) {
    const flag all[] = {
        {"--chat", FLAG_BOOL, &o->chat, NULL, "send the text as a user's turn of a chat"},
        {"--system", FLAG_TEXT, &o->system, "TEXT", "system message of the chat"},
        {"--message", FLAG_TEXTS, &o->messages, "ROLE:TEXT", "a message of the chat"},
        {"--messages", FLAG_TEXT, &o->messages_file, "FILE",
         "messages as JSON: [{\"role\": .., \"content\": ..}]"},
        {"--tools", FLAG_TEXT, &o->tools_file, "FILE", "JSON array of tools for the template"},
        {"--no-generation-prompt", FLAG_BOOL, &o->no_generation_prompt, NULL,
         "do not open the assistant's turn"},
        {"--plain", FLAG_BOOL, &o->plain, NULL, "spellings of special tokens are text"},
    };
    memcpy(out, all, sizeof all);
    return (int)(sizeof all / sizeof *all);
}

int sampling_flags(generate_options *o, flag out[SAMPLING_FLAGS]) {
    const flag all[] = {
        {"--max-tokens", FLAG_U32, &o->max_tokens, "N", "at most this many tokens; 0: no limit"},
        {"--temperature", FLAG_FLOAT, &o->temperature, "T", "0 greedy (default) .. 2"},
        {"--top-k", FLAG_U32, &o->top_k, "K", "draw among the K most likely; 0: off"},
        {"--top-p", FLAG_FLOAT, &o->top_p, "P", "draw among the most likely that reach P"},
        {"--min-p", FLAG_FLOAT, &o->min_p, "P", "drop tokens below P times the best"},
        {"--repetition-penalty", FLAG_FLOAT, &o->repetition_penalty, "R", "0 (off) or up to 2"},
        {"--frequency-penalty", FLAG_FLOAT, &o->frequency_penalty, "F", "-2..2"},
        {"--presence-penalty", FLAG_FLOAT, &o->presence_penalty, "F", "-2..2"},
        {"--seed", FLAG_U64, &o->seed, "N", "0: the server draws one"},
        {"--model", FLAG_TEXT, &o->model, "NAME", "the served name, if it must be that one"},
        {"--usage", FLAG_BOOL, &o->usage, NULL, "token counts and times on standard error"},
    };
    memcpy(out, all, sizeof all);
    return (int)(sizeof all / sizeof *all);
}

static int other_flags(generate_options *o, flag *out) {
    const flag all[] = {
        {"--token-ids", FLAG_TEXT, &o->input.token_ids, "1,2,3", "prompt as token ids"},
        {"--no-bos", FLAG_BOOL, &o->input.no_bos, NULL, "do not begin the text with BOS"},
        {"--logit-bias", FLAG_TEXTS, &o->logit_bias, "ID=B", "add B to the logit of token ID"},
        {"--min-tokens", FLAG_U32, &o->min_tokens, "N", "do not end before N tokens"},
        {"--stop", FLAG_TEXTS, &o->stop, "TEXT", "end when this text comes"},
        {"--stop-token", FLAG_TEXTS, &o->stop_token_ids, "ID", "end when this token comes"},
        {"--ignore-eos", FLAG_BOOL, &o->ignore_eos, NULL, "go on after end-of-sequence"},
        {"--include-stop", FLAG_BOOL, &o->include_stop, NULL, "what ended it is in the text"},
        {"--time-limit-ms", FLAG_U32, &o->time_limit_ms, "MS", "end with what there is by then"},
        {"--logprobs", FLAG_BOOL, &o->logprobs, NULL, "log-probability of each token (--json)"},
        {"--top-logprobs", FLAG_U32, &o->top_logprobs, "N", "and of the N most likely, 0..20"},
        {"--prompt-logprobs", FLAG_BOOL, &o->prompt_logprobs, NULL, "of the prompt (--json)"},
        {"--keep-special", FLAG_BOOL, &o->keep_special, NULL, "special tokens are in the text"},
        {"--final-only", FLAG_BOOL, &o->final_only, NULL, "one answer at the end, no stream"},
        {"--choices", FLAG_U32, &o->choices, "N", "N continuations of the prompt, 1..8"},
        {"--priority", FLAG_I32, &o->priority, "N", "-100..100, higher goes first"},
        {"--cache-salt", FLAG_TEXT, &o->cache_salt, "TEXT", "share the prompt cache under it"},
        {"--request-id", FLAG_TEXT, &o->request_id, "ID", "for abort and logs"},
        {"--json-schema", FLAG_TEXT, &o->json_schema_file, "FILE", "output that fits the schema"},
        {"--regex", FLAG_TEXT, &o->regex, "RE", "output that matches"},
        {"--grammar", FLAG_TEXT, &o->grammar_file, "FILE", "output of a GBNF grammar"},
        {"--choice", FLAG_TEXTS, &o->choice, "TEXT", "output is one of these"},
        {"--json-object", FLAG_BOOL, &o->json_object, NULL, "output is a JSON object"},
    };
    memcpy(out, all, sizeof all);
    return (int)(sizeof all / sizeof *all);
}

int generate_flags(generate_options *o, flag out[GENERATE_FLAGS]) {
    int n = input_flags(&o->input, out);
    n += sampling_flags(o, out + n);
    n += other_flags(o, out + n);
    assert(n <= GENERATE_FLAGS);
    return n;
}
