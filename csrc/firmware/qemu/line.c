/* SPDX-License-Identifier: BSD-3-Clause */
/* The port over the line of line.h. */
#include "firmware/board.h"
#include "firmware/cpu.h"
#include "remote/remote.h"

static volatile uint32_t line_events; /* written with interrupts off, or by their handler */

static void line_heard(uint8_t byte)
{
	if (byte == LINE_STOP)
		line_events |= RPX_EVENT_STOP;
	else
		line_events |= RPX_EVENT_KICK;
}

void board_init(void)
{
	cpu_mask();
	line_heard(line_init());
	cpu_unmask();
}

uint64_t board_shm_address(void)
{
	return line_page.shm;
}

void board_interrupt(void)
{
	const uint32_t irq = line_claim();
	uint8_t byte;
	while (line_get(&byte))
		line_heard(byte);
	line_complete(irq);
}

static uint32_t line_take(void)
{
	uint32_t events = line_events;
	line_events = 0;
	if (line_page.detach != 0) { /* not a byte: it can be withdrawn, and is not lost where the line is full of rings */
		line_page.detach = 0;
		events |= RPX_EVENT_DETACH;
	}
	return events;
}

uint32_t board_poll(void *ctx)
{
	uint32_t events;
	(void)ctx;
	cpu_mask();
	events = line_take();
	cpu_unmask();
	return events;
}

uint32_t board_wait(void *ctx)
{
	uint32_t events;
	(void)ctx;
	cpu_mask();
	while ((events = line_take()) == 0) {
		cpu_sleep(); /* masked: one that comes right before it still wakes it */
		cpu_unmask();
		cpu_mask();
	}
	cpu_unmask();
	return events;
}

static void line_send(uint8_t byte)
{
	while (line_full())
		;
	line_put(byte);
}

void board_kick(void *ctx, uint32_t notifyid)
{
	(void)ctx;
	(void)notifyid; /* any ring means "look at every vring" */
	if (!line_full()) /* the byte that is still there rings as well */
		line_put(LINE_RING);
}

void board_ack(void *ctx, uint32_t events)
{
	(void)ctx;
	if ((events & RPX_EVENT_DETACH) != 0)
		line_send(LINE_DETACH);
	if ((events & RPX_EVENT_STOP) != 0)
		line_send(LINE_STOP);
}

void board_died(uint32_t cause, uint64_t address, const uintptr_t *registers, uint32_t count)
{
	if (line_page.cause == 0)
		line_page.cause = cause;
	line_page.address = address;
	for (uint32_t i = 0; i < count; i++)
		line_page.registers[i] = registers[i];
	line_page.count = count;
	rpx_fence_doorbell();
	line_send(LINE_DEAD);
}

void board_give_up(uint32_t cause)
{
	line_page.cause = cause;
	cpu_undefined(); /* board_died tells, with the registers */
}
