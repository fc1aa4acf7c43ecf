/* SPDX-License-Identifier: BSD-3-Clause */
/* The port of csrc/remote to the emulated board; RPX_APP names the application. */
#include "board.h"

#include "remote/remote.h"

#define BOARD_TRACE_SIZE 4096u
#define BOARD_STATE_SIZE 256u

void board_main(void);

static struct rpx_remote board_remote;
static uint64_t board_state[BOARD_STATE_SIZE / 8u];
static char board_trace[BOARD_TRACE_SIZE];

/* Only the host writes it. Not const: the compiler must not believe that it stays as it is. */
__attribute__((section(".resource_table"), used)) struct rpx_remote_table board_table =
	RPX_REMOTE_TABLE((uint32_t)(uintptr_t)board_trace, BOARD_TRACE_SIZE);

static void board_kick(void *ctx, uint32_t notifyid)
{
	(void)ctx;
	BOARD_MAILBOX->kick = notifyid;
}

static uint32_t board_poll(void *ctx)
{
	(void)ctx;
	return BOARD_MAILBOX->events;
}

static uint32_t board_wait(void *ctx)
{
	uint32_t events;
	while ((events = board_poll(ctx)) == 0)
		__asm__ volatile("wfi" ::: "memory");
	return events;
}

static void board_ack(void *ctx, uint32_t events)
{
	(void)ctx;
	BOARD_MAILBOX->ack = events;
}

static void board_hang(void *ctx)
{
	(void)ctx;
	for (;;)
		__asm__ volatile("" ::: "memory");
}

static void board_fault(void *ctx, uint32_t cause)
{
	if (cause == RPX_FAULT_UNDEFINED)
		__asm__ volatile("udf #0" ::: "memory");
	if (cause == RPX_FAULT_ACCESS)
		(void)*(volatile uint32_t *)0xa0000000u;
	BOARD_MAILBOX->fault = cause;
	board_hang(ctx);
}

void board_main(void)
{
	static const struct rpx_port port = {NULL, board_kick, board_poll, board_wait, board_ack, board_fault, board_hang};
	const uint32_t low = BOARD_MAILBOX->shm[0], high = BOARD_MAILBOX->shm[1];
	const struct rpx_grant grant = {(uint8_t *)BOARD_SHM, BOARD_SHM, (uint64_t)high << 32 | low, BOARD_SHM_SIZE};
	if (RPX_APP.state_size > sizeof(board_state))
		board_fault(NULL, RPX_FAULT_FATAL);
	rpx_remote_init(&board_remote, &RPX_APP, board_state, &port, &board_table, &grant, 1, board_trace,
			sizeof(board_trace));
	rpx_remote_run(&board_remote);
}
