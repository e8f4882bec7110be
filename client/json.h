/* Any message as JSON, by its descriptor. Thread: any. */
#ifndef INFERD_CLIENT_JSON_H
#define INFERD_CLIENT_JSON_H

#include <jansson.h>
#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>

/* An object with the proto's field names. Numbers above 2^53 are strings, as readers of JSON would
 * round them; enums are their names; bytes that are no UTF-8 are base64. `all`: also fields that
 * hold their zero value. The caller decrefs. */
json_t *json_of_message(const ProtobufCMessage *m, bool all);
/* Text that may hold NULs. Not UTF-8: base64. */
json_t *json_of_text(const void *data, size_t bytes);
/* One line on stdout, then decref. */
void json_print_line(json_t *j);
#endif
