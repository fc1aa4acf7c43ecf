/* SPDX-License-Identifier: BSD-3-Clause */
/* The boards that Unicorn emulates: all goes through the mailbox. */
#include "firmware/board.h"
#include "firmware/cpu.h"

void board_init(void)
{
}

void board_interrupt(void)
{
}

uint64_t board_shm_address(void)
{
	const uint32_t low = BOARD_MAILBOX->shm[0], high = BOARD_MAILBOX->shm[1];
	return (uint64_t)high << 32 | low;
}

void board_kick(void *ctx, uint32_t notifyid)
{
	(void)ctx;
	BOARD_MAILBOX->kick = notifyid;
}

uint32_t board_poll(void *ctx)
{
	(void)ctx;
	return BOARD_MAILBOX->events;
}

uint32_t board_wait(void *ctx)
{
	uint32_t events;
	while ((events = board_poll(ctx)) == 0)
		cpu_sleep();
	return events;
}

void board_ack(void *ctx, uint32_t events)
{
	(void)ctx;
	BOARD_MAILBOX->ack = events;
}

/* The emulator has the registers itself. */
void board_died(uint32_t cause, uint64_t address, const uintptr_t *registers, uint32_t count)
{
	(void)address;
	(void)registers;
	(void)count;
	board_give_up(cause);
}

void board_give_up(uint32_t cause)
{
	BOARD_MAILBOX->fault = cause;
}
