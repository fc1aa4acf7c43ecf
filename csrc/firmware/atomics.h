/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Atomics (RPX_ATOMICS_FILE) of a board whose emulator carries loads and stores out in order but drops `dmb`, so that a
 * store may still be on its way when a later load is done. A full fence has to ask the host: BOARD_SYNC().
 */
#ifndef RPX_FIRMWARE_ATOMICS_H
#define RPX_FIRMWARE_ATOMICS_H

#include RPX_BOARD_FILE

#define RPX_ATOMIC_LOAD(p, order) __atomic_load_n((p), (order))
#define RPX_ATOMIC_STORE(p, v, order) __atomic_store_n((p), (v), (order))
#define RPX_ATOMIC_FENCE(order) \
	do { \
		__atomic_thread_fence(order); \
		BOARD_SYNC(); \
		__atomic_thread_fence(order); \
	} while (0)

#endif
