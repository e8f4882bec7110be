/* The ids of live Generate calls, for ALREADY_EXISTS and Abort: a fixed hash table of (tenant, id).
 * Thread: any; one lock, held for a look-up. */
#ifndef INFERD_SERVER_IDS_H
#define INFERD_SERVER_IDS_H

#include "base/limits.h"
#include "engine/engine.h"

typedef struct id_table id_table;

/* Lives inside the call's own memory. */
typedef struct ids_entry {
    char id[LIMIT_REQUEST_ID_BYTES + 1];
    uint64_t tenant;
    engine_request *request; /* valid while the entry is in the table */
    uint64_t hash;
    struct ids_entry *next; /* the table's */
} ids_entry;

BASE_MUST_USE status ids_open(id_table **out);
void ids_close(id_table *t); /* NULL is legal */

/* Borrows e until ids_remove. E_EXISTS: the id is live. */
BASE_MUST_USE status ids_add(id_table *t, ids_entry *e);
void ids_remove(id_table *t, ids_entry *e); /* no-op if it is not in */
/* Sets STOP_ABORT on the live request of that tenant; false when there is none. The caller wakes
 * the engine. */
bool ids_abort(id_table *t, uint64_t tenant, const char *id);
#endif
