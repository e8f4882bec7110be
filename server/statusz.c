#include "server/statusz.h"

#include <stdarg.h>
#include <string.h>

#include "base/clock.h"
#include "server/process.h"

enum { REFRESH_S = 5, VALUE_BYTES = 512 };

/* No script and nothing from elsewhere: the page works where it is looked at in trouble, over a
 * port-forward or in a text browser. Two columns where there is room, one on a telephone. */
static const char STYLE[] =
    /* colours; the second set at night */
    ":root{--ink:#1d2430;--dim:#5b6673;--page:#f6f7f9;--card:#fff;--line:#e3e7ec;--blue:#2f6fde;"
    "--sky:#a9c8f7;--grey:#c3ccd6;--good:#14532d;--good-bg:#d6f2dd;--bad:#7f1d1d;--bad-bg:#fbdcda}"
    "@media(prefers-color-scheme:dark){"
    ":root{--ink:#dfe5ec;--dim:#93a1af;--page:#12161b;--card:#1a2027;--line:#2b343e;--blue:#5b93f0;"
    "--sky:#2c4a75;--grey:#4a5663;--good:#b7ecc5;--good-bg:#173d25;--bad:#f8c4c0;--bad-bg:#55201e}}"
    /* page and header */
    "*{box-sizing:border-box}"
    "body{font:15px/1.45 system-ui,sans-serif;font-variant-numeric:tabular-nums;max-width:68rem;"
    "margin:0 auto;padding:1.5rem 1rem;color:var(--ink);background:var(--page)}"
    "h1{font-size:1.35rem;margin:0;display:inline-block}"
    "h1 small{font-weight:400;color:var(--dim);font-size:1rem}"
    "header p{margin:.3rem 0 1.2rem;color:var(--dim)}"
    ".state{margin-left:.6rem;padding:.1rem .7rem;border-radius:1rem;font-size:.9rem;"
    "vertical-align:.15rem;color:var(--good);background:var(--good-bg)}"
    ".state.bad{color:var(--bad);background:var(--bad-bg)}"
    /* tiles and cards */
    ".tiles,.cards{display:grid;gap:.8rem;grid-template-columns:repeat(auto-fit,minmax(10rem,1fr))}"
    ".cards{margin-top:.8rem;grid-template-columns:repeat(auto-fit,minmax(min(26rem,100%),1fr))}"
    ".tile,section{background:var(--card);border:1px solid var(--line);border-radius:.6rem;"
    "padding:.8rem 1rem;min-width:0}"
    ".wide{grid-column:1/-1}"
    ".tile b{display:block;font-size:1.7rem;line-height:1.2;font-weight:600}"
    ".tile span{color:var(--dim)}"
    ".tile svg{display:block;width:100%;height:2rem;margin-top:.5rem}"
    "polyline{fill:none;stroke:var(--blue);stroke-width:1.5;vector-effect:non-scaling-stroke}"
    "polygon{fill:var(--sky);opacity:.45}"
    "rect{fill:var(--blue)}"
    "h2{font-size:.8rem;margin:0 0 .4rem;color:var(--dim);text-transform:uppercase;"
    "letter-spacing:.06em}"
    /* tables */
    "table{border-collapse:collapse;width:100%}"
    "th,td{padding:.25rem 0;border-top:1px solid var(--line);text-align:right;font-weight:400;"
    "vertical-align:top;overflow-wrap:anywhere}"
    "tr:first-child>*{border-top:0}"
    "th:first-child,td:first-child{text-align:left;color:var(--dim);padding-right:1rem;"
    "overflow-wrap:normal}"
    "thead th{color:var(--dim)}"
    "td.said{color:var(--ink)!important}"
    ".times td{white-space:nowrap;padding-left:.6rem}"
    /* the sum of the memory, and its legend */
    ".bar{display:flex;height:.6rem;border-radius:.3rem;overflow:hidden;margin:.5rem 0 .3rem}"
    "th i{display:inline-block;width:.7rem;height:.7rem;border-radius:.2rem;margin-right:.4rem}"
    ".w{background:var(--blue)}"
    ".k{background:var(--sky)}"
    ".s{background:var(--grey)}"
    "footer{margin-top:1rem;color:var(--dim);font-size:.85rem}"
    "footer a{color:inherit;margin-left:.5rem}"
    "@media(max-width:30rem){body{padding:1rem .6rem}.times{font-size:.87rem}.tile "
    "b{font-size:1.4rem}}";

/* --- pieces --- */

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
    char value[VALUE_BYTES];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(value, sizeof value, fmt, ap);
    va_end(ap);
    fprintf(out, "<tr><th scope=row>%s</th><td>", name);
    put_text(out, value);
    fputs("</td></tr>\n", out);
}

static void begin_card(FILE *out, const char *class, const char *title) {
    fprintf(out, "<section class=%s><h2>%s</h2><table>\n", class, title);
}
static void end_card(FILE *out) {
    fputs("</table></section>\n", out);
}

typedef struct short_text {
    char s[32];
} short_text;

/* 1234567 -> 1,234,567 */
static short_text count_text(uint64_t n) {
    short_text t;
    char digits[24];
    const int len = snprintf(digits, sizeof digits, "%llu", (unsigned long long)n);
    int k = 0;
    for (int i = 0; i < len; i++) {
        if (i > 0 && (len - i) % 3 == 0) t.s[k++] = ',';
        t.s[k++] = digits[i];
    }
    t.s[k] = '\0';
    return t;
}

static short_text duration_text(double s) {
    short_text t;
    if (s < 0.9995)
        snprintf(t.s, sizeof t.s, "%.3g ms", s * 1e3);
    else if (s < 120)
        snprintf(t.s, sizeof t.s, "%.3g s", s);
    else if (s < 7200)
        snprintf(t.s, sizeof t.s, "%.0f min", s / 60);
    else if (s < 172800)
        snprintf(t.s, sizeof t.s, "%.1f h", s / 3600);
    else
        snprintf(t.s, sizeof t.s, "%.1f d", s / 86400);
    return t;
}

static short_text bytes_text(uint64_t bytes) {
    short_text t;
    const double mib = (double)bytes / 1048576.0;
    if (mib < 10240)
        snprintf(t.s, sizeof t.s, "%.1f MiB", mib);
    else
        snprintf(t.s, sizeof t.s, "%.1f GiB", mib / 1024);
    return t;
}

static uint64_t load(const _Atomic uint64_t *v) {
    return atomic_load_explicit(v, memory_order_relaxed);
}

/* The last two minutes of one series as a line that fills its tile; the newest is on the right. */
static void put_line(FILE *out, const metrics *m, history_series series) {
    enum { HEIGHT = 30 };
    const unsigned n = atomic_load(&m->history.n);
    const unsigned kept = n < HISTORY_SAMPLES ? n : HISTORY_SAMPLES;
    double v[HISTORY_SAMPLES], top = 1;
    for (unsigned i = 0; i < kept; i++) {
        const unsigned at = (n - kept + i) % HISTORY_SAMPLES;
        v[i] = (double)atomic_load_explicit(&m->history.value[series][at], memory_order_relaxed);
        if (v[i] > top) top = v[i];
    }
    fprintf(out, "<svg viewBox=\"0 0 %d %d\" preserveAspectRatio=none role=img>", HISTORY_SAMPLES,
            HEIGHT + 2);
    fprintf(out, "<title>last two minutes, at most %.4g</title>", kept > 0 ? top : 0);
    for (int pass = 0; kept > 1 && pass < 2; pass++) { /* the area, then the line on it */
        fputs(pass == 0 ? "<polygon points=\"" : "<polyline points=\"", out);
        if (pass == 0) fprintf(out, "%u,%d ", HISTORY_SAMPLES - kept, HEIGHT + 1);
        for (unsigned i = 0; i < kept; i++)
            fprintf(out, "%u,%.1f ", HISTORY_SAMPLES - kept + i, HEIGHT * (1 - v[i] / top) + 1);
        if (pass == 0) fprintf(out, "%d,%d", HISTORY_SAMPLES - 1, HEIGHT + 1);
        fputs("\"/>", out);
    }
    fputs("</svg>", out);
}

/* How many observations fell into each bucket. */
static void put_distribution(FILE *out, const histogram *h) {
    enum { HEIGHT = 30 };
    uint64_t top = 1;
    for (int i = 0; i <= h->n; i++)
        if (load(&h->count[i]) > top) top = load(&h->count[i]);
    fprintf(out, "<svg viewBox=\"0 0 %d %d\" preserveAspectRatio=none role=img><title>", h->n + 1,
            HEIGHT);
    fprintf(out, "up to %g s .. above %g s</title>", h->bounds[0], h->bounds[h->n - 1]);
    for (int i = 0; i <= h->n; i++) {
        const double tall = 0.5 + (HEIGHT - 0.5) * (double)load(&h->count[i]) / (double)top;
        fprintf(out, "<rect x=\"%d.1\" y=\"%.1f\" width=\".8\" height=\"%.1f\"/>", i, HEIGHT - tall,
                tall);
    }
    fputs("</svg>", out);
}

static double kv_used(const engine_stats *s) {
    return s->kv_blocks_total > 0
               ? 100.0 * (1.0 - (double)s->kv_blocks_free / (double)s->kv_blocks_total)
               : 0;
}

/* --- parts of the page --- */

static void put_header(FILE *out, const server *s, const served_model *m) {
    fprintf(out,
            "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport "
            "content=\"width=device-width,initial-scale=1\"><meta http-equiv=refresh content=%d>"
            "<title>inferd: %s</title><style>%s</style>\n"
            "<header><h1>inferd <small>%s</small></h1><span class=\"state%s\">%s</span><p>",
            REFRESH_S, server_state_name(s), STYLE, INFERD_VERSION, server_ready(s) ? "" : " bad",
            server_state_name(s));
    if (m) {
        put_text(out, m->name);
        fputs(" &middot; ", out);
        put_text(out, m->device);
        fputs(" &middot; ", out);
    }
    fprintf(out, "up %s &middot; %d calls open</p></header>\n", duration_text(server_uptime_s(s)).s,
            server_n_calls(s));
}

static void put_tiles(FILE *out, const metrics_view *v, const metrics *m) {
    const engine_stats *s = &v->stats;
    /* The smoothed rate is of the last steps: without steps there is none. */
    fprintf(out, "<div class=tiles><div class=tile><b>%.1f</b><span>output tokens/s</span>",
            v->last_step_age_s < 2 ? s->tokens_per_s : 0.0);
    put_line(out, m, HISTORY_TOKENS);
    fprintf(out, "</div>\n<div class=tile><b>%u</b><span>running, %u waiting</span>", s->running,
            s->waiting);
    put_line(out, m, HISTORY_REQUESTS);
    fprintf(out, "</div>\n<div class=tile><b>%.1f %%</b><span>of the KV cache in use</span>",
            kv_used(s));
    put_line(out, m, HISTORY_KV);
    fprintf(out, "</div>\n<div class=tile><b>%s</b><span>to the first token, p50</span>",
            histogram_count(&m->ttft_s) > 0 ? duration_text(histogram_quantile(&m->ttft_s, 0.5)).s
                                            : "&ndash;");
    put_distribution(out, &m->ttft_s);
    fputs("</div></div>\n", out);
}

static void put_latency(FILE *out, const char *name, const histogram *h) {
    fprintf(out, "<tr><th scope=row>%s</th>", name);
    static const double Q[] = {0.5, 0.9, 0.99};
    for (size_t i = 0; i < sizeof Q / sizeof *Q; i++)
        fprintf(out, "<td>%s</td>",
                histogram_count(h) > 0 ? duration_text(histogram_quantile(h, Q[i])).s : "&ndash;");
    fprintf(out, "<td>%s</td></tr>\n", count_text(histogram_count(h)).s);
}

static void put_latencies(FILE *out, const metrics *m) {
    begin_card(out, "times", "Latency since the start");
    fputs("<thead><tr><th><th>p50<th>p90<th>p99<th>count</thead>\n", out);
    put_latency(out, "first token", &m->ttft_s);
    put_latency(out, "between tokens", &m->inter_token_s);
    put_latency(out, "in the queue", &m->queue_s);
    put_latency(out, "whole request", &m->request_s);
    put_latency(out, "decode step", &m->step_s[STEP_DECODE]);
    put_latency(out, "mixed step", &m->step_s[STEP_MIXED]);
    end_card(out);
}

static void put_work(FILE *out, const metrics_view *v, const metrics *m) {
    const engine_stats *s = &v->stats;
    static const char *const NAMES[] = {"finished", "cancelled", "rejected", "failed", "invalid"};
    begin_card(out, "plain", "Requests and tokens");
    for (int i = 0; i < OUTCOMES; i++)
        put_row(out, NAMES[i], "%s", count_text(load(&m->outcomes[i])).s);
    put_row(out, "waiting prompt tokens", "%s", count_text(s->waiting_tokens).s);
    put_row(out, "prompt tokens", "%s, %s of them from the cache", count_text(s->prompt_tokens).s,
            count_text(s->cached_prompt_tokens).s);
    put_row(out, "generated tokens", "%s", count_text(s->generated_tokens).s);
    put_row(out, "steps", "%s, the last %s ago", count_text(s->steps).s,
            duration_text(v->last_step_age_s).s);
    put_row(out, "preemptions", "%s", count_text(s->preemptions).s);
    end_card(out);
}

static void put_memory(FILE *out, const served_model *m, const metrics_view *v) {
    const backend_memory *b = &v->memory;
    const uint64_t sum = b->weights_bytes + b->kv_bytes + b->workspace_bytes;
    process_usage u;
    process_read_usage(&u);
    fputs("<section><h2>Memory</h2><div class=bar>", out);
    const uint64_t parts[] = {b->weights_bytes, b->kv_bytes, b->workspace_bytes};
    for (int i = 0; sum > 0 && i < 3; i++)
        fprintf(out, "<i class=%c style=\"width:%.1f%%\"></i>", "wks"[i],
                100.0 * (double)parts[i] / (double)sum);
    fputs("</div><table>\n", out);
    put_row(out, "<i class=w></i>weights", "%s", bytes_text(b->weights_bytes).s);
    put_row(out, "<i class=k></i>KV cache", "%s", bytes_text(b->kv_bytes).s);
    put_row(out, "<i class=s></i>workspace", "%s", bytes_text(b->workspace_bytes).s);
    put_row(out, "together", "%s", bytes_text(sum).s);
    put_row(out, "device at start", "%s of %s free", bytes_text(b->free_bytes).s,
            bytes_text(b->total_bytes).s);
    put_row(out, "KV blocks", "%s of %d tokens, %s", count_text(v->stats.kv_blocks_total).s,
            m->kv_block_tokens, m->kv_type);
    put_row(out, "free blocks", "%s, %s of them cached prompts",
            count_text(v->stats.kv_blocks_free).s, count_text(v->stats.kv_blocks_cached).s);
    put_row(out, "process", "%s resident, %s descriptors", bytes_text(u.resident_bytes).s,
            count_text(u.fds_open).s);
    end_card(out);
}

static void put_model(FILE *out, const served_model *m) {
    begin_card(out, "plain", "Model");
    put_row(out, "name", "%s", m->name);
    put_row(out, "architecture", "%s, %.4g M parameters", m->architecture,
            (double)m->n_parameters * 1e-6);
    put_row(out, "weights", "%s, %s on disk", m->quantization, bytes_text(m->file_bytes).s);
    put_row(out, "context", "%s tokens (trained %s)", count_text((uint64_t)m->context_length).s,
            count_text((uint64_t)m->trained_context_length).s);
    put_row(out, "sequences at once", "%d", m->max_sequences);
    put_row(out, "backend", "%s: %s", m->backend, m->device);
    if (m->sha256[0]) put_row(out, "SHA-256", "%s", m->sha256);
    end_card(out);
}

static void put_errors(FILE *out, metrics *m) {
    begin_card(out, "wide", "Last errors");
    int expected = 0;
    if (!atomic_compare_exchange_strong(&m->errors.lock, &expected, 1)) {
        fputs("<tr><td class=said>being written: reload</td></tr>", out);
        end_card(out);
        return;
    }
    const unsigned n = atomic_load(&m->errors.n);
    const int64_t now = clock_now_ns();
    for (unsigned k = 0; k < n && k < ERRORS_KEPT; k++) {
        const unsigned i = (n - 1 - k) % ERRORS_KEPT;
        fputs("<tr><td class=said>", out);
        put_text(out, m->errors.text[i]);
        fprintf(out, "</td><td>%s ago</td></tr>\n",
                duration_text((double)(now - m->errors.at_ns[i]) * 1e-9).s);
    }
    if (n == 0) fputs("<tr><td class=said>none</td></tr>\n", out);
    atomic_store(&m->errors.lock, 0);
    end_card(out);
}

void statusz_write(server *s, FILE *out) {
    served_model m;
    metrics_view v;
    const metrics *numbers = server_metrics(s);
    const bool loaded = server_model(s, &m);
    server_view(s, &v);
    put_header(out, s, loaded ? &m : NULL);
    if (loaded) put_tiles(out, &v, numbers);
    fputs("<div class=cards>\n", out);
    if (loaded) {
        put_latencies(out, numbers);
        put_work(out, &v, numbers);
        put_memory(out, &m, &v);
        put_model(out, &m);
    }
    put_errors(out, server_metrics(s));
    fprintf(
        out,
        "</div><footer>Refreshes every %d s &middot; lines: the last two minutes &middot; bars: "
        "how often each time &middot;<a "
        "href=/metrics>/metrics</a> <a href=/livez>/livez</a> <a href=/readyz>/readyz</a>"
        "</footer></html>\n",
        REFRESH_S);
}
