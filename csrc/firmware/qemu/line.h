/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What all boards under QEMU have in common. The host and the core ring each other over the board's UART, a byte for
 * each ring; some bytes say more. The last page of RAM holds what does not go into a byte.
 *
 * A board's header gives, beside what board.h wants,
 *
 *   line_init()        receive interrupts on; returns a byte that came before, or LINE_RING
 *   line_get(&byte)    false: nothing is there
 *   line_full(), line_put(byte)
 *   line_claim(), line_complete(irq)
 */
#ifndef RPX_QEMU_LINE_H
#define RPX_QEMU_LINE_H

#include <stdbool.h>
#include <stdint.h>

#define LINE_DETACH 'D' /* to the host: RPX_EVENT_DETACH, of which the page speaks, is acknowledged */
#define LINE_STOP 'S'   /* RPX_EVENT_STOP, and its acknowledgement */
#define LINE_DEAD 'F'   /* to the host: the page says why */
#define LINE_RING 'K'   /* so is any other byte */

struct line_page {
	/* The host's. */
	uint64_t shm;    /* what descriptors call the start of the shared memory */
	uint32_t detach; /* RPX_EVENT_DETACH is wanted; both withdraw it, the core when it has seen it */
	/* The core's, as in board_died. */
	uint32_t cause;
	uint32_t count;
	uint32_t reserved;
	uint64_t address;
	uint64_t registers[34];
};
extern volatile struct line_page line_page; /* see ram.ld */

#define LINE_REGISTER(type, address) (*(volatile type *)(uintptr_t)(address))

#endif
