/* SPDX-License-Identifier: BSD-3-Clause */
/* RPX_ATOMICS_FILE of the explorer: every access to shared memory is a step that explore.c schedules. */
#ifndef EXPLORE_ATOMICS_H
#define EXPLORE_ATOMICS_H

uint64_t explore_load(const void *p, size_t size);
void explore_store(const void *p, size_t size, uint64_t v, bool release);
void explore_fence(void);

#define RPX_ATOMIC_LOAD(p, order) ((__typeof__(*(p)))explore_load((p), sizeof *(p)))
#define RPX_ATOMIC_STORE(p, v, order) explore_store((p), sizeof *(p), (v), (order) != __ATOMIC_RELAXED)
#ifdef EXPLORE_NO_FENCE
#define RPX_ATOMIC_FENCE(order) ((void)(order))
#else
#define RPX_ATOMIC_FENCE(order) explore_fence()
#endif

#endif
