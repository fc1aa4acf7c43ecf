/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Atomics of the emulated board (RPX_ATOMICS_FILE). The emulator carries loads and stores out in order but drops
 * `dmb`, so that a store may still be on its way when a later load is done: a full fence has to ask the mailbox.
 */
#ifndef RPX_FIRMWARE_ATOMICS_H
#define RPX_FIRMWARE_ATOMICS_H

#include "firmware/board.h"

#define RPX_ATOMIC_LOAD(p, order) __atomic_load_n((p), (order))
#define RPX_ATOMIC_STORE(p, v, order) __atomic_store_n((p), (v), (order))
#define RPX_ATOMIC_FENCE(order) \
	do { \
		__atomic_thread_fence(order); \
		(void)BOARD_MAILBOX->sync; \
		__atomic_thread_fence(order); \
	} while (0)

#endif
