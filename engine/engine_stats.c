/* The engine's numbers, for whoever watches. */
#include "base/clock.h"
#include "engine/engine_private.h"

#define SET(field, value) atomic_store_explicit(&e->stats.field, (value), memory_order_relaxed)
#define GET(field)        atomic_load_explicit(&e->stats.field, memory_order_relaxed)

static const int64_t RATE_WINDOW_NS = 250 * NS_PER_MS;

/* The rate's window holds working time only: else the first requests after a quiet hour would be
 * told to come back as if the engine were that slow. */
void stats_alive(engine *e, int64_t now_ns, bool busy) {
    if (busy && !GET(busy)) e->rate_since_ns += now_ns - e->idle_since_ns;
    if (!busy && GET(busy)) e->idle_since_ns = now_ns;
    SET(heartbeat_ns, now_ns);
    SET(busy, busy);
}

/* Output rate: half the last window, half what was before. */
static void observe_rate(engine *e, int64_t now_ns) {
    const int64_t ns = now_ns - e->rate_since_ns;
    if (ns < RATE_WINDOW_NS) return;
    const uint64_t total = e->sched.counters.generated_tokens;
    const double rate = 1e12 * (double)(total - e->rate_tokens) / (double)ns;
    const double old = (double)GET(milli_tokens_per_s);
    SET(milli_tokens_per_s, (uint64_t)(old == 0.0 ? rate : (old + rate) / 2));
    e->rate_since_ns = now_ns;
    e->rate_tokens = total;
}

void stats_step(engine *e, int64_t now_ns) {
    SET(steps, GET(steps) + 1);
    SET(last_step_ns, now_ns);
    SET(heartbeat_ns, now_ns);
    observe_rate(e, now_ns);
}

void stats_publish(engine *e) {
    const sched *s = &e->sched;
    SET(running, (uint32_t)(s->n_live - s->n_groups_waiting));
    SET(kv_blocks_free, (uint32_t)kv_free(&e->kv));
    SET(kv_blocks_cached, (uint32_t)e->kv.n_idle);
    SET(prompt_tokens, s->counters.prompt_tokens);
    SET(generated_tokens, s->counters.generated_tokens);
    SET(cached_prompt_tokens, s->counters.cached_prompt_tokens);
    SET(preemptions, s->counters.preemptions);
    SET(finished, s->counters.finished);
    SET(cancelled, s->counters.cancelled);
    SET(failed, s->counters.failed);
}

void engine_read_stats(const engine *e, engine_stats *out) {
    *out = (engine_stats){.running = GET(running),
                          .kv_blocks_total = (uint32_t)e->limits.kv_blocks,
                          .kv_blocks_free = GET(kv_blocks_free),
                          .kv_blocks_cached = GET(kv_blocks_cached),
                          .steps = GET(steps),
                          .prompt_tokens = GET(prompt_tokens),
                          .generated_tokens = GET(generated_tokens),
                          .cached_prompt_tokens = GET(cached_prompt_tokens),
                          .preemptions = GET(preemptions),
                          .stalled_steps = GET(stalled_steps),
                          .finished = GET(finished),
                          .cancelled = GET(cancelled),
                          .failed = GET(failed),
                          .last_step_ns = GET(last_step_ns),
                          .heartbeat_ns = GET(heartbeat_ns),
                          .busy = GET(busy),
                          .device_fault = GET(device_fault),
                          .tokens_per_s = (double)GET(milli_tokens_per_s) / 1000.0};
    /* The queue's own counters are behind its lock. */
    submit_count((submit_queue *)&e->submit, &out->waiting, &out->waiting_tokens);
}
