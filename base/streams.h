/* The three standard streams. Thread: main, before anything else opens a file. */
#ifndef INFERD_BASE_STREAMS_H
#define INFERD_BASE_STREAMS_H

/* Puts /dev/null, for reading, in the place of each of the three that is closed. The next socket or
 * eventfd would get its number otherwise, and log lines would be written into it; like this writing
 * fails, as to a closed stream. */
void streams_keep_standard(void);
#endif
