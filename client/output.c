#include "client/output.h"

#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/utf8.h"

void output_append(output *o, const void *data, size_t bytes) {
    if (bytes == 0) return;
    if (o->capacity - o->bytes < bytes) {
        size_t capacity = o->capacity ? o->capacity : 256;
        while (capacity - o->bytes < bytes) capacity *= 2;
        char *grown = realloc(o->data, capacity);
        if (!grown) abort();
        o->data = grown;
        o->capacity = capacity;
    }
    memcpy(o->data + o->bytes, data, bytes);
    o->bytes += bytes;
}

void output_deinit(output *o) {
    free(o->data);
    *o = (output){0};
}

/* Control characters but those in `kept`, and bytes that are no UTF-8, become `instead`. */
static void write_cleaned(FILE *f, const char *s, size_t bytes, const char *kept,
                          const char *instead) {
    for (size_t i = 0; i < bytes;) {
        uint32_t cp;
        const size_t n = utf8_decode(s + i, bytes - i, &cp);
        const bool control = cp < 0x20 || (cp >= 0x7f && cp < 0xa0);
        if (cp == UTF8_BAD || (control && (cp == 0 || !strchr(kept, (int)cp))))
            fputs(instead, f);
        else
            (void)fwrite(s + i, 1, n, f);
        i += n;
    }
}

void output_write_terminal(FILE *f, const void *data, size_t bytes, bool terminal) {
    if (bytes == 0) return; /* data may be NULL */
    if (terminal)
        write_cleaned(f, data, bytes, "\n\t", "\xef\xbf\xbd");
    else
        (void)fwrite(data, 1, bytes, f);
}

void output_write_line(FILE *f, const void *data, size_t bytes) {
    write_cleaned(f, data, bytes, "", " ");
}

bool output_reader_gone(void) {
    struct pollfd out = {.fd = STDOUT_FILENO}; /* POLLERR and POLLHUP are always asked for */
    return poll(&out, 1, 0) == 1 && out.revents != 0;
}

bool output_lost(void) {
    return ferror(stdout) || output_reader_gone();
}

void output_usage(const Inferd__V1__Usage *u, int reason) {
    static const char *const reasons[] = {
        "?", "stop token", "stop string", "max tokens", "context full", "time limit", "aborted"};
    const double decode_ms = u->total_ms - u->first_token_ms;
    fprintf(stderr,
            "-- %s; prompt %u tokens (%u cached), output %u; queue %.0f ms, prefill %.0f ms, first "
            "token %.0f ms, total %.0f ms",
            reasons[reason >= 0 && reason < 7 ? reason : 0], u->prompt_tokens, u->cached_tokens,
            u->completion_tokens, u->queue_ms, u->prefill_ms, u->first_token_ms, u->total_ms);
    if (u->completion_tokens > 1 && decode_ms > 0)
        fprintf(stderr, ", %.1f tokens/s", 1000.0 * (u->completion_tokens - 1) / decode_ms);
    fputc('\n', stderr);
}
