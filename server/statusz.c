#include "server/statusz.h"

#include <stdarg.h>

static void put_text(FILE *out, const char *s) {
    for (; *s; s++) {
        switch (*s) {
        case '<':
            fputs("&lt;", out);
            break;
        case '>':
            fputs("&gt;", out);
            break;
        case '&':
            fputs("&amp;", out);
            break;
        case '"':
            fputs("&quot;", out);
            break;
        default:
            fputc(*s, out);
        }
    }
}

BASE_PRINTF(3, 4)
static void put_row(FILE *out, const char *name, const char *fmt, ...) {
    char value[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(value, sizeof value, fmt, ap);
    va_end(ap);
    fprintf(out, "<tr><th>%s</th><td>", name);
    put_text(out, value);
    fputs("</td></tr>\n", out);
}

static const char STYLE[] =
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;"
    "color:#1d2430;background:#fafbfc}h1{font-size:1.4rem;margin-bottom:0}h2{font-size:1rem;"
    "margin:1.6rem 0 .3rem;color:#57606a;text-transform:uppercase;letter-spacing:.05em}"
    "table{border-collapse:collapse;width:100%}th{text-align:left;font-weight:400;color:#57606a;"
    "width:16rem}td{font-variant-numeric:tabular-nums}th,td{padding:.2rem .5rem;"
    "border-bottom:1px solid #e4e8ec;vertical-align:top}.state{display:inline-block;padding:.1rem "
    ".6rem;border-radius:1rem;background:#d8f3dc;color:#14532d}.bad{background:#fde2e1;color:#"
    "7f1d1d}"
    ".bar{height:.6rem;background:#e4e8ec;border-radius:.3rem;overflow:hidden;max-width:24rem}"
    ".bar i{display:block;height:100%;background:#3b82f6}"
    "@media(prefers-color-scheme:dark){body{background:#14181d;color:#dce3ea}th,h2{color:#93a1af}"
    "th,td{border-color:#2a323a}.bar{background:#2a323a}}";

static double mib(uint64_t bytes) {
    return (double)bytes / 1048576.0;
}

static void put_latency(FILE *out, const char *name, const histogram *h) {
    put_row(out, name, "p50 %.4g s, p90 %.4g s, p99 %.4g s (%llu)", histogram_quantile(h, 0.5),
            histogram_quantile(h, 0.9), histogram_quantile(h, 0.99),
            (unsigned long long)histogram_count(h));
}

static void put_model(FILE *out, const served_model *m, const metrics_view *v) {
    const backend_memory *mem = &v->memory;
    fputs("<h2>Model</h2><table>\n", out);
    put_row(out, "name", "%s", m->name);
    put_row(out, "kind", "%s, %s, %.1f M parameters", m->architecture, m->quantization,
            (double)m->n_parameters * 1e-6);
    put_row(out, "context", "%d tokens (trained %d)", m->context_length, m->trained_context_length);
    put_row(out, "device", "%s (%s)", m->device, m->backend);
    if (m->sha256[0]) put_row(out, "SHA-256", "%s", m->sha256);
    fputs("</table><h2>Memory</h2><table>\n", out);
    put_row(out, "weights + KV cache + workspace", "%.1f + %.1f + %.1f = %.1f MiB",
            mib(mem->weights_bytes), mib(mem->kv_bytes), mib(mem->workspace_bytes),
            mib(mem->weights_bytes + mem->kv_bytes + mem->workspace_bytes));
    put_row(out, "device at start", "%.0f of %.0f MiB free", mib(mem->free_bytes),
            mib(mem->total_bytes));
    put_row(out, "KV blocks", "%u of %d tokens (%s); %u free, of which %u cached",
            v->stats.kv_blocks_total, m->kv_block_tokens, m->kv_type, v->stats.kv_blocks_free,
            v->stats.kv_blocks_cached);
    const double used =
        v->stats.kv_blocks_total > 0
            ? 100.0 * (1.0 - (double)v->stats.kv_blocks_free / (double)v->stats.kv_blocks_total)
            : 0;
    fprintf(out,
            "<tr><th>KV in use</th><td>%.1f %%<div class=bar><i style=\"width:%.1f%%\"></i></div>"
            "</td></tr></table>\n",
            used, used);
}

static uint64_t load(const _Atomic uint64_t *v) {
    return atomic_load_explicit(v, memory_order_relaxed);
}

static void put_load(FILE *out, const metrics_view *v, const metrics *m) {
    const engine_stats *s = &v->stats;
    fputs("<h2>Load</h2><table>\n", out);
    put_row(out, "requests", "%u running, %u waiting (%llu prompt tokens)", s->running, s->waiting,
            (unsigned long long)s->waiting_tokens);
    /* The smoothed rate is of the last steps: without steps there is none. */
    put_row(out, "output rate", "%.1f tokens/s", v->last_step_age_s < 2 ? s->tokens_per_s : 0.0);
    put_row(out, "tokens", "%llu prompt (%llu from the cache), %llu generated",
            (unsigned long long)s->prompt_tokens, (unsigned long long)s->cached_prompt_tokens,
            (unsigned long long)s->generated_tokens);
    put_row(out, "steps", "%llu; the last %.2f s ago", (unsigned long long)s->steps,
            v->last_step_age_s);
    put_row(out, "preemptions", "%llu", (unsigned long long)s->preemptions);
    put_row(out, "ended", "%llu finished, %llu cancelled, %llu rejected, %llu failed, %llu invalid",
            (unsigned long long)load(&m->outcomes[OUTCOME_FINISHED]),
            (unsigned long long)load(&m->outcomes[OUTCOME_CANCELLED]),
            (unsigned long long)load(&m->outcomes[OUTCOME_REJECTED]),
            (unsigned long long)load(&m->outcomes[OUTCOME_FAILED]),
            (unsigned long long)load(&m->outcomes[OUTCOME_INVALID]));
    fputs("</table><h2>Latency</h2><table>\n", out);
    put_latency(out, "time to first token", &m->ttft_s);
    put_latency(out, "between tokens", &m->inter_token_s);
    put_latency(out, "in the queue", &m->queue_s);
    put_latency(out, "whole request", &m->request_s);
    put_latency(out, "step, decode only", &m->step_s[STEP_DECODE]);
    fputs("</table>\n", out);
}

static void put_errors(FILE *out, metrics *m) {
    fputs("<h2>Last errors</h2><table>\n", out);
    int expected = 0;
    if (!atomic_compare_exchange_strong(&m->errors.lock, &expected, 1)) {
        fputs("<tr><td>being written: reload</td></tr></table>\n", out);
        return;
    }
    const unsigned n = atomic_load(&m->errors.n);
    for (unsigned k = 0; k < n && k < ERRORS_KEPT; k++) {
        fputs("<tr><td>", out);
        put_text(out, m->errors.text[(n - 1 - k) % ERRORS_KEPT]);
        fputs("</td></tr>\n", out);
    }
    if (n == 0) fputs("<tr><td>none</td></tr>\n", out);
    atomic_store(&m->errors.lock, 0);
    fputs("</table>\n", out);
}

void statusz_write(server *s, FILE *out) {
    served_model m;
    metrics_view v;
    server_view(s, &v);
    fprintf(
        out,
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport "
        "content=\"width=device-width\"><title>inferd</title><style>%s</style><h1>inferd %s</h1>"
        "<p><span class=\"state%s\">%s</span> up %.0f s, %d calls open\n",
        STYLE, INFERD_VERSION, server_ready(s) ? "" : " bad", server_state_name(s),
        server_uptime_s(s), server_n_calls(s));
    if (server_model(s, &m)) {
        put_model(out, &m, &v);
        put_load(out, &v, server_metrics(s));
    }
    put_errors(out, server_metrics(s));
    fputs("</html>\n", out);
}
