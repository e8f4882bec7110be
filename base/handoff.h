/* Memory that one thread hands to another through a library that ThreadSanitizer cannot see into
 * (gRPC's completion queues). The library orders the two; these say so. Nothing in other builds.
 * Thread: give, the one that hands over; take, the one that gets it. */
#ifndef INFERD_BASE_HANDOFF_H
#define INFERD_BASE_HANDOFF_H

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define HANDOFF_SEEN_BY_TSAN 1
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#define HANDOFF_SEEN_BY_TSAN 1
#endif

#ifdef HANDOFF_SEEN_BY_TSAN
void __tsan_acquire(void *address); /* of the sanitizer's run-time library */
void __tsan_release(void *address);
#define HANDOFF_GIVE(p) __tsan_release(p)
#define HANDOFF_TAKE(p) __tsan_acquire(p)
#else
#define HANDOFF_GIVE(p) ((void)(p))
#define HANDOFF_TAKE(p) ((void)(p))
#endif
#endif
