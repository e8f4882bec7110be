#include "engine/engine.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "engine/engine_private.h"
#include "engine/model.h"

static const int64_t REST_MAX_NS = 500 * NS_PER_MS; /* the heartbeat of an idle engine */
static const int64_t REST_STALL_NS = 1 * NS_PER_MS; /* work is there and none could be planned */

/* New requests -> waiting; stopped and expired ones -> done. */
static void take_requests(engine *e) {
    const int64_t now = e->now();
    bool flagged;
    engine_request *r = submit_take(&e->submit, &flagged);
    while (r != NULL) {
        engine_request *next = r->priv.next; /* r may be gone as soon as it is the scheduler's */
        sched_add(&e->sched, r->priv.sequences);
        r = next;
    }
    if (atomic_load(&e->draining))
        sched_end_all(&e->sched, END_DRAINING);
    else if (flagged || now >= e->sched.next_check_ns)
        sched_sweep(&e->sched, now);
    stats_alive(e, now, sched_has_work(&e->sched) || e->n_in_flight > 0);
}

static void publish_numbers(engine *e) {
    submit_set_waiting(&e->submit, e->sched.n_groups_waiting, e->sched.waiting_tokens);
    stats_publish(e);
}

/* Frees what has ended and tells the world. */
static void publish(engine *e, const step_report *report) {
    for (seq_group *g; (g = sched_take_retired(&e->sched)) != NULL;) seq_group_close(g);
    publish_numbers(e);
    const bool tell = report->n_seqs > 0 || e->sched.n_events > 0;
    e->sched.n_events = 0;
    if (tell && e->options.on_step != NULL) e->options.on_step(e->options.on_step_ctx, report);
}

static status launch_step(engine *e, const plan *p) {
    e->launched_ns[e->n_launched++ % (unsigned)e->depth] = e->now();
    e->n_in_flight++;
    publish_numbers(e); /* whoever was let in does not wait any more */
    return model_forward(e->backend, e->n_layers, &p->step);
}

/* Waits for the oldest step in flight and acts on its results. */
static status finish_step(engine *e) {
    const unsigned i = (e->n_launched - (unsigned)e->n_in_flight) % (unsigned)e->depth;
    plan *p = &e->plan[i];
    const status s = e->backend->ops->wait_step(e->backend, e->result);
    if (s != OK) return s;
    e->n_in_flight--;
    const int64_t now = e->now();
    const int64_t began =
        e->launched_ns[i] > e->last_result_ns ? e->launched_ns[i] : e->last_result_ns;
    const step_report report = {.n_seqs = p->step.n_seqs,
                                .n_decode_tokens = p->n_decode_tokens,
                                .n_prefill_tokens = p->n_prefill_tokens,
                                .n_samples = p->step.n_samples,
                                .step_ns = now - began};
    sched_commit(&e->sched, p, e->result, report.step_ns, now);
    e->last_result_ns = now;
    stats_step(e, now);
    publish(e, &report);
    return OK;
}

/* Nothing can be computed: sleep until somebody comes, or something expires. */
static void rest(engine *e) {
    publish(e, &(step_report){0});
    int64_t ns = REST_MAX_NS;
    if (sched_has_work(&e->sched)) {
        atomic_fetch_add_explicit(&e->stats.stalled_steps, 1, memory_order_relaxed);
        ns = REST_STALL_NS;
    } else if (e->sched.next_check_ns != TIME_NEVER) {
        const int64_t left = e->sched.next_check_ns - e->now();
        ns = left < REST_MAX_NS ? left : REST_MAX_NS;
    }
    if (ns > 0) submit_sleep(&e->submit, ns);
}

/* One turn of continuous batching. With pipeline depth 2 a step is planned and queued while the one
 * before it still runs; tokens it does not know yet are taken from there, on the device. */
static status engine_step(engine *e) {
    take_requests(e); /* new -> waiting; stopped, expired -> done */

    plan *next = &e->plan[e->n_launched % (unsigned)e->depth];
    if (sched_plan(&e->sched, next, e->n_in_flight, e->now()) >
        0) {                                      /* picks, takes blocks, fills */
        const status s = launch_step(e, next);    /* queues every layer */
        if (s != OK) return s;                    /* E_DEVICE: final */
        if (e->n_in_flight < e->depth) return OK; /* one more can be queued */
    }
    if (e->n_in_flight > 0) return finish_step(e); /* results: append, finish, keep */
    rest(e);
    return OK;
}

/* Ends everything; results still in flight are nobody's. */
static void end_everything(engine *e, engine_end end) {
    for (engine_request *r = submit_take(&e->submit, &(bool){false}), *next; r != NULL; r = next) {
        next = r->priv.next;
        sched_add(&e->sched, r->priv.sequences);
    }
    sched_end_all(&e->sched, end);
    for (; e->n_in_flight > 0; e->n_in_flight--) {
        const unsigned i = (e->n_launched - (unsigned)e->n_in_flight) % (unsigned)e->depth;
        sched_commit(&e->sched, &e->plan[i], e->result, 0, 0); /* all done: nothing is read */
    }
    publish(e, &(step_report){0});
}

static void *engine_main(void *arg) {
    engine *e = arg;
    status s = OK;
    while (s == OK && !atomic_load(&e->quit)) s = engine_step(e);
    if (s != OK) {
        submit_close(&e->submit, E_DEVICE); /* from here nothing comes in */
        atomic_store(&e->stats.device_fault, true);
        end_everything(e, END_DEVICE);
        return NULL;
    }
    while (e->n_in_flight > 0 && s == OK) s = finish_step(e);
    end_everything(e, END_DRAINING);
    return NULL;
}

status engine_start(engine *e, error *err) {
    assert(!e->started);
    if (pthread_create(&e->thread, NULL, engine_main, e) != 0)
        return error_set(err, E_NOMEM, "engine: the system gave no thread");
    e->started = true;
    return OK;
}

status engine_submit(engine *e, engine_request *r) {
    seq_group *g;
    status s = submit_check(&e->submit, r->n_prompt); /* refuse before working */
    if (s != OK) return s;
    s = seq_group_open(r, &e->limits, &g);
    if (s != OK) return s == E_NOMEM ? E_INTERNAL : s;
    r->priv.sequences = g;
    r->priv.arrival_ns = e->now();
    s = submit_put(&e->submit, r);
    if (s == OK) return OK; /* the engine's from here on: r may be gone already */
    r->priv.sequences = NULL;
    r->priv.arrival_ns = 0;
    seq_group_close(g);
    return s;
}

void engine_wake(engine *e) {
    submit_wake(&e->submit);
}

void engine_stop_all(engine *e) {
    atomic_store(&e->draining, true);
    submit_close(&e->submit, E_STATE);
}

void engine_stop(engine *e) {
    if (e == NULL || atomic_load(&e->quit)) return;
    engine_stop_all(e);
    atomic_store(&e->quit, true);
    engine_wake(e);
    if (e->started)
        pthread_join(e->thread, NULL);
    else
        end_everything(e, END_DRAINING);
}

void engine_close(engine *e) {
    if (e == NULL) return;
    engine_stop(e);
    engine_free(e);
}
