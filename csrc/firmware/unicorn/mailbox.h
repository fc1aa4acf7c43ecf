/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The boards that Unicorn emulates, whatever their CPU: program memory at 0 (256 KiB), RAM at 0x20000000 (128 KiB),
 * memory shared with the host at 0x60000000 (1 MiB), and a mailbox. There are no interrupts: `wfi` sleeps until the
 * mailbox has an event. Exceptions go to the emulator, and end the core.
 */
#ifndef RPX_UNICORN_MAILBOX_H
#define RPX_UNICORN_MAILBOX_H

#include <stdint.h>

#define BOARD_SHM 0x60000000u
#define BOARD_SHM_SIZE 0x100000u
#define BOARD_TRACE 0x2001f000u
#define BOARD_NOWHERE 0xa0000000u
#define BOARD_IRQS 0

struct board_mailbox {
	uint32_t kick;   /* W: rings the host for this notifyid */
	uint32_t events; /* R: the pending RPX_EVENT bits, which it clears */
	uint32_t ack;    /* W: the RPX_EVENT bits that were dealt with */
	uint32_t fault;  /* W: gives up; the cause as in board_died. The core stops */
	uint32_t sync;   /* R: returns when all earlier stores of this core are visible to the host */
	uint32_t shm[2]; /* R: what descriptors call the start of the shared memory, low word first */
};
#define BOARD_MAILBOX ((volatile struct board_mailbox *)0x40010000u)
#define BOARD_SYNC() ((void)BOARD_MAILBOX->sync)

#endif
