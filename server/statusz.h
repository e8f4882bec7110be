/* /statusz: one page for people, self-contained. */
#ifndef INFERD_SERVER_STATUSZ_H
#define INFERD_SERVER_STATUSZ_H

#include <stdio.h>

#include "server/server.h"

void statusz_write(server *s, FILE *out);
#endif
